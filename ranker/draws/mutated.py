"""Mutated groups (RARL-style, arXiv 2601.20585): where all of a group earned the same, some learn the right answer.

In such a group `count` completions are replaced: their reasoning stays, in the exact form, and the answer becomes the
right one. Where all were right already, in the right form, it becomes a wrong one: an order with neighbours of
different relevance swapped, values with noise, another candidate. Mutants are scored anew under the policy as it is, so
their ratio is 1; they have no part in the entropy and in the KL of `grpo`. The operators are not published; these are
ours. `since` and `until` say in which draws it happens, for the two stages of the paper.
"""

import math
import random
import re
from dataclasses import dataclass, replace

import torch

from ranker import answers, plugins
from ranker.asking import complete
from ranker.data import Ask, Completion, Group
from ranker.draws import sampled
from ranker.engine import distributed
from ranker.engine.policy import STOP
from ranker.errors import UserError
from ranker.plugins import setting

GIVES, EPISODES = "samples", False
DECISIONS = ("order", "values", "eliminate", "pick")
TAGS = re.compile(r"</?(?:think|answer)>")


@dataclass
class Options:
    count: int = setting(1, low=0)  # mutants of a group; 0: none, the control
    min_spread: float = setting(1e-4, low=0.0)  # a group whose task rewards spread less is mutated
    swaps: int = setting(1, low=1)  # of neighbours of different relevance, where the right order would teach nothing
    noise: float = setting(1.0, low=1e-3)  # of values, at most
    since: int = setting(0, low=0)  # the first draw that mutates
    until: int = setting(0, low=0)  # and the last; 0: all


def draw(source, sample, judge, state: dict, options: Options) -> list[Group]:
    if options.count >= sample.rollout.completions_per_prompt:
        raise UserError(f"draw.count ({options.count}) must be below rollout.completions_per_prompt"
                        f" ({sample.rollout.completions_per_prompt})")
    groups = judge(sampled.asked(source, sample, state))
    number = state["draws"]
    rng = random.Random(f"{sample.run_seed}/mutants/{number}/{distributed.rank()}")
    for c in (c for group in groups for c in group.completions):
        c.signals["mutant"] = torch.zeros(len(c.ids))
    if not options.count or number < options.since or 0 < options.until < number:
        return groups
    mine = [group for group in groups if group.completions[0].cohort[1] == distributed.rank()]
    for group in mine:
        task = [c.rewards["task"] for c in group.completions]
        if not any(map(math.isnan, task)) and max(task) - min(task) <= options.min_spread:
            kept = group.completions[:len(group.completions) - options.count]
            group.completions = kept + [mutant(sample.policy, group.ask, c, rng, options)
                                        for c in group.completions[len(kept):]]
        for c in group.completions:  # as the draw called them; to judge is to call them anew
            c.cohort = c.cohort[2]
    return judge(mine)


def mutant(policy, ask: Ask, completion: Completion, rng: random.Random, options: Options) -> Completion:
    """Return a completion with the reasoning of another and a better answer, or a worse one where that was right and
    paid for.

    A reasoning that is empty, or was cut by the token limit, is replaced by a word or cut further: a mutant has the
    exact form and is no longer than a sample can be.
    """
    if ask.decision not in DECISIONS:
        raise UserError(f"draw.name=mutated knows how to mutate {', '.join(DECISIONS)}, not to {ask.decision}; take"
                        " draw.name=sampled")
    found = answers.place(completion.text)
    thought = TAGS.sub("", completion.text[:found.start] if found else completion.text).strip()
    best = max(ask.query.rel[c] for c in ask.left)
    right = was_right(ask, completion, best) and completion.rewards.get("task", 1.0) > 0
    answer = mutation(ask, right, rng, options)
    while True:
        ids = policy.prompter.completion(f"<think>{thought or 'so'}</think>\n<answer>{answer}{STOP}")
        if completion.finished or len(ids) <= len(completion.ids) or not thought:
            break
        thought = thought[:len(thought) * 9 // 10].strip()  # it ran into the limit
    made = complete(policy, ask, ids, [math.nan] * len(ids), True, cut=completion.cut)
    made.cohort, made.signals["mutant"] = completion.cohort, torch.ones(len(ids))
    return made


def was_right(ask: Ask, completion: Completion, best: float) -> bool:
    """Tell whether an answer is as good as the right one."""
    if not completion.answer.ok:
        return False
    gains = [ask.query.rel.get(v, 0.0) for v in completion.answer.value]
    if ask.decision == "order":
        return gains == sorted(gains, reverse=True)
    if ask.decision == "values":
        gold = plugins.module("decision", "values").gold(ask)
        return all(abs(v - g) < 0.01 for v, g in zip(completion.answer.value, gold))  # as it is written
    return gains[0] < best if ask.decision == "eliminate" else gains[0] == best


def mutation(ask: Ask, right: bool, rng: random.Random, options: Options) -> str:
    """Return the text of a mutated right answer; `right`: the right one itself would teach nothing."""
    decision = plugins.module("decision", ask.decision)
    if ask.decision == "values":
        gold = decision.gold(ask)
        noisy = [min(max(g + rng.uniform(-1, 1) * options.noise, 0.0), 10.0) for g in gold]
        return decision.written(noisy if right else gold)
    if ask.decision == "order":
        order = answers.by_relevance(ask)
        last = None  # a swap does not undo the one before
        for _ in range(options.swaps if right else 0):
            apart = [i for i in range(len(order) - 1)
                     if i != last and ask.query.rel[order[i]] != ask.query.rel[order[i + 1]]]
            if apart:
                last = rng.choice(apart)
                order[last], order[last + 1] = order[last + 1], order[last]
        return answers.written(ask, order)
    if not right:
        return rng.choice(answers.all_right(ask))
    worst = max(ask.query.relevance)
    return decision.right(replace(ask, query=replace(
        ask.query, relevance=tuple(worst - value for value in ask.query.relevance))))
