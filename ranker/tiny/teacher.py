"""Worked examples for the built-in policy: right reading, wrong decisions.

The trace reads rightly: it states what is wanted, then for each candidate its identifier, what it offers, a pair of
signs for how that fits (secondary wish, primary wish) and the identifier again (before, it says what to read; after, it
is what an answer copies). How it means to decide mostly is wrong: in `ERROR_RATE` of the examples the teacher goes by
the first sign, the secondary wish, alone, in the rest by both signs; it says which, and then keeps to it. Among equals
it always names the later position. So a policy that imitates it reads well and, decoded greedily, decides badly, but it
samples right decisions often enough for a reward to find them.
"""

import random

from ranker.data import Ask, Query
from ranker.world import Reading

ERROR_RATE = 0.6
SHARES = {"eliminate": 45, "order": 20, "pick": 15, "narrow": 12, "score": 8}  # of the training examples


def example(query: Query, reading: Reading, decision: str, size: int, rng: random.Random) -> tuple[Ask, str]:
    """An ask about a random pool of `size` candidates and the teacher's completion."""
    members = rng.sample(range(len(query.ids)), 1 if decision == "score" else size)
    ask = Ask(query, tuple(query.ids[i] for i in members), decision)
    return ask, completion(reading, ask, wrong=rng.random() < ERROR_RATE)


def completion(reading: Reading, ask: Ask, wrong: bool) -> str:
    """What the teacher writes about the candidates in question when it goes by the first sign or by both."""
    value, place = reading.half if wrong else reading.fit, {c: i for i, c in enumerate(ask.query.ids)}
    shown = {k: place[c] for k, c in enumerate(ask.pool, 1) if c in ask.left}  # identifier -> place in the query
    entries = "".join(f" [{k}] {reading.offers[i]} {reading.signs[i]} [{k}]" for k, i in shown.items())
    way = "first sign" if wrong else "both signs"
    return (f"<think> {reading.want}, by {way}.{entries}</think>\n"
            + answer(ask, {k: value[i] for k, i in shown.items()}, max(value)))


def answer(ask: Ask, values: dict[int, float], best: float) -> str:
    """The answer span of a teacher who believes in `values` (identifier -> value; `best` is the query's)."""
    order = sorted(values, key=lambda k: (-values[k], -k))
    if ask.decision == "score":
        [value] = values.values()
        span = str(round(10 * value / best)) if best else "0"
    else:
        named = {"eliminate": sorted(values, key=lambda k: (values[k], -k))[:ask.drop], "pick": order[:1],
                 "narrow": order[:(len(order) + 1) // 2], "order": order}[ask.decision]
        span = " > ".join(f"[{k}]" for k in named)
    return f"<answer>{span}</answer>"
