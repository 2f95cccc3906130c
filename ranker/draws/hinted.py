"""Hinted samples: the prompt gives the right answer away, and the completion is learned for the prompt without it.

GR2's targeted sampling (arXiv 2602.07774), STaR's rationalisation. So the sampler's
log-probabilities are those of another prompt, and no gap to scoring is measured.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from ranker import plugins
from ranker.data import Group

GIVES, EPISODES = "texts", False


@dataclass
class Options:
    pass


def draw(source, sample, judge: Callable, state: dict, options: Options) -> list[Group]:
    seed = sample.seed(state)
    queries = source.take(sample.rollout.prompts_per_step, state)
    asks = [sample.ranker.sampled_asks(query, random.Random(f"{seed}/ask/{i}"), None)[0] for i, query in queries]
    told = [replace(ask, hint=plugins.module("decision", ask.decision).right(ask)) for ask in asks]
    groups = sample(told, sample.rollout.completions_per_prompt, [seed + i for i, _ in queries])
    encode = sample.policy.prompter.encode
    return judge([Group(ask, encode(ask), group.completions) for ask, group in zip(asks, groups)])
