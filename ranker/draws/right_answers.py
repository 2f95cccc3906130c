"""The right answers of training queries, without a thought: a cold start where the policy answers at once.

Where several answers are right, as any of nineteen films may be the least likely one, one is drawn; else the policy
would learn the place in the list at which the rule of ties picks it. Each is a group of its own; nobody sampled it, so
its log-probabilities are NaN. Needs `model.think: false`.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from ranker import llms
from ranker.asking import imitated
from ranker.data import Ask, Group
from ranker.errors import UserError

GIVES, EPISODES = "texts", False


@dataclass
class Options:
    pass


def draw(source, sample, judge: Callable, state: dict, options: Options) -> list[Group]:
    seed, groups = sample.seed(state), []
    if sample.policy.prompter.think:
        raise UserError("draw.name=right_answers writes no thought: add model.think=false, or take draw.name=recorded")
    for i, query in source.take(sample.rollout.prompts_per_step, state):
        rng = random.Random(f"{seed}/ask/{i}")
        [ask, *_] = sample.ranker.sampled_asks(query, rng, None)
        groups.append(imitated(sample.policy, ask, right(ask, rng), i))
    return judge(groups)


def right(ask: Ask, rng: random.Random) -> str:
    """Return a right answer's text, one of several at random."""
    [(_, known)] = llms.scripted(llms.right_answer)([ask])
    named = set(known.answer.value) <= set(ask.pool)  # else a number, which ties do not make ambiguous
    return llms.right_answer(untied(ask, rng) if named else ask)


def untied(ask: Ask, rng: random.Random) -> Ask:
    """Return the ask with its candidates' relevance replaced by their ranks, those of equal relevance at random."""
    order = sorted(ask.query.ids, key=lambda c: (ask.query.rel[c], rng.random()))
    relevance = tuple(float(order.index(c)) for c in ask.query.ids)
    return replace(ask, query=replace(ask.query, relevance=relevance))
