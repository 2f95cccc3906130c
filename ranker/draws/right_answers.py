"""The right answers of training queries, without a thought: a cold start where the policy answers at once.

Each is a group of its own; nobody sampled it, so its log-probabilities are NaN. Needs `model.think: false`.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from ranker import plugins
from ranker.asking import complete
from ranker.data import Group
from ranker.errors import UserError

GIVES, EPISODES = "texts", False


@dataclass
class Options:
    pass


def draw(source, sample, judge: Callable, state: dict, options: Options) -> list[Group]:
    seed, prompter, groups = sample.seed(state), sample.policy.prompter, []
    if prompter.think:
        raise UserError("draw.name=right_answers writes no thought: add model.think=false, or take draw.name=recorded")
    for i, query in source.take(sample.rollout.prompts_per_step, state):
        [ask, *_] = sample.ranker.sampled_asks(query, random.Random(f"{seed}/ask/{i}"), None)
        ids = prompter.completion(f"<answer>{plugins.module('decision', ask.decision).right(ask)}</answer>")
        prompt, cut = prompter.fitted(ask)
        trace = complete(sample.policy, ask, ids, [math.nan] * len(ids), True, cut=cut)
        trace.cohort = i
        groups.append(Group(ask, prompt, [trace]))
    return judge(groups)
