"""Samples, and beside them what the previous iterate would have said: SELM's pairs (arXiv 2405.19332).

As `sampled`, with one more completion in every group: the likeliest one of the reference (the adapter as the stage
began), which SELM pushes down. It may be the best or the worst of its group as well. With `gold` a right answer joins
the samples, so that a group without a success has a pair.
"""

import random
from dataclasses import dataclass

import torch

from ranker.asking import imitated, sample_groups
from ranker.data import Group
from ranker.draws.right_answers import right
from ranker.errors import UserError

GIVES, EPISODES = "samples", False


@dataclass
class Options:
    gold: bool = False  # whether a right answer is among the completions; it has no thought


def draw(source, sample, judge, state: dict, options: Options) -> list[Group]:
    if options.gold and sample.policy.prompter.think:
        raise UserError("draw.gold adds right answers without a thought: add model.think=false")
    seed = sample.seed(state)
    queries = source.take(sample.rollout.prompts_per_step, state)
    asks = [sample.ranker.sampled_asks(query, random.Random(f"{seed}/ask/{i}"), None)[0] for i, query in queries]
    groups = sample(asks, sample.rollout.completions_per_prompt, [seed + i for i, _ in queries])
    with sample.policy.playing("previous"):
        likeliest = sample_groups(sample.sampler, asks, 1, 0.0)
    for group, other in zip(groups, likeliest):
        [said] = other.completions
        said.cohort = group.completions[0].cohort
        said.signals["optimism"] = torch.ones(len(said.ids))
        said.logprobs = [float("nan")] * len(said.ids)  # of another policy than the one that is trained
        group.completions.append(said)
        if options.gold:
            told = right(group.ask, random.Random(f"{seed}/gold/{group.ask.query.id}"))
            group.completions += imitated(sample.policy, group.ask, told, said.cohort).completions
    return judge(groups)
