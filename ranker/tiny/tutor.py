"""Worked examples for the built-in policy: right reading, wrong decisions.

The trace reads rightly. It states the wish, then for each candidate its identifier, its offer, a pair of signs for how
the offer fits (secondary wish, primary wish) and the identifier again: the first tells which candidate to read, the
second is there for an answer to copy.

The decision is mostly wrong. In the share `ERROR_RATE` of the examples the teacher goes by the first sign alone, the
secondary wish; in the rest it goes by both signs. The trace says by which, and the answer keeps to it. Of equal
candidates the teacher always names the later position first. So a policy that imitates it reads well and, decoded
greedily, decides badly, but it samples right decisions often enough for a reward to find them.
"""

import random
from dataclasses import replace

from ranker import plugins
from ranker.data import Ask, Query
from ranker.world import Reading

ERROR_RATE = 0.6
SHARES = {"eliminate": 45, "order": 20, "pick": 15, "narrow": 12, "score": 8}  # of the training examples


def example(query: Query, reading: Reading, decision: str, size: int, rng: random.Random) -> tuple[Ask, str]:
    """Draw an ask about a random pool of `size` candidates (1 for `score`), with the teacher's completion."""
    members = rng.sample(range(len(query.ids)), 1 if decision == "score" else size)
    ask = Ask(query, tuple(query.ids[i] for i in members), decision)
    return ask, completion(reading, ask, wrong=rng.random() < ERROR_RATE)


def completion(reading: Reading, ask: Ask, wrong: bool) -> str:
    """Return the teacher's completion about the candidates in question: by the first sign if `wrong`, else by both."""
    value, place = reading.half if wrong else reading.fit, {c: i for i, c in enumerate(ask.query.ids)}
    shown = {k: place[c] for k, c in enumerate(ask.pool, 1) if c in ask.left}  # identifier -> place in the query
    entries = "".join(f" [{k}] {reading.offers[i]} {reading.signs[i]} [{k}]" for k, i in shown.items())
    way = "first sign" if wrong else "both signs"
    if ask.decision in SHARES:
        span = answer(ask, {k: value[i] for k, i in shown.items()}, max(value))
    else:  # what the built-in policy never saw: right, if relevance were as believed
        believed = replace(ask.query, relevance=tuple(value))
        span = plugins.module("decision", ask.decision).right(replace(ask, query=believed))
    return f"<think> {reading.want}, by {way}.{entries}</think>\n<answer>{span}</answer>"


def answer(ask: Ask, values: dict[int, float], best: float) -> str:
    """Return what a teacher answers who believes in `values` (identifier -> value); `best`: the query's best value."""
    order = sorted(values, key=lambda k: (-values[k], -k))
    if ask.decision == "score":
        [value] = values.values()
        return str(round(10 * value / best)) if best else "0"
    named = {"eliminate": sorted(values, key=lambda k: (values[k], -k))[:ask.drop], "pick": order[:1],
             "narrow": order[:(len(order) + 1) // 2], "order": order}[ask.decision]
    return " > ".join(f"[{k}]" for k in named)
