"""Sampled pools (IRanker, arXiv 2506.21638): every query gives the asks that its ranker draws at random.

Mostly that is one, a pool of random size that holds the positive; its completions are compared with each other. (A
ranker may draw several asks about a query, whose rewards may depend on one another; still only the completions of one
ask are compared.) With `refills` more is drawn until as many cohorts as wanted are alive (DAPO, arXiv 2503.14476).
"""

import random
from dataclasses import dataclass

from ranker import credit
from ranker.data import Group
from ranker.plugins import setting

GIVES, EPISODES = "samples", False


@dataclass
class Options:
    refills: int = setting(0, low=0)  # draws that replace cohorts that are dead


def draw(source, sample, judge, state: dict, options: Options) -> list[Group]:
    groups = []
    for _ in range(1 + options.refills):
        groups += judge(asked(source, sample, state))
        if credit.live_cohorts(groups) >= sample.rollout.prompts_per_step:
            break
    return groups


def asked(source, sample, state: dict) -> list[Group]:
    """Sample for the asks about this process's share of the step's queries."""
    seed = sample.seed(state)
    drawn = [(i, sample.ranker.sampled_asks(query, random.Random(f"{seed}/ask/{i}"), None))
             for i, query in source.take(sample.rollout.prompts_per_step, state)]
    seeds = [seed + i + (number << 32) for i, asks in drawn for number in range(len(asks))]
    return sample([ask for _, asks in drawn for ask in asks], sample.rollout.completions_per_prompt, seeds)
