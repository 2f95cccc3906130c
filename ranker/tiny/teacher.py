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
    return ask, completion(reading, members, decision, wrong=rng.random() < ERROR_RATE)


def completion(reading: Reading, members: list[int], decision: str, wrong: bool) -> str:
    """What the teacher writes about the candidates at places `members` when it goes by the first sign or by both."""
    value = reading.half if wrong else reading.fit
    entries = "".join(f" [{k}] {reading.offers[i]} {reading.signs[i]} [{k}]" for k, i in enumerate(members, 1))
    way = "first sign" if wrong else "both signs"
    return f"<think> {reading.want}, by {way}.{entries}</think>\n" + answer(decision, [value[i] for i in members], max(value))


def answer(decision: str, values: list[float], best: float) -> str:
    """The answer span of a teacher who believes in `values` (one per candidate shown; `best` is the query's)."""
    order = sorted(range(len(values)), key=lambda i: (-values[i], -i))
    if decision == "eliminate":
        span = f"[{max(i for i in order if values[i] == min(values)) + 1}]"
    elif decision == "pick":
        span = f"[{order[0] + 1}]"
    elif decision == "score":
        span = str(round(10 * values[0] / best)) if best else "0"
    else:
        kept = order[:(len(order) + 1) // 2] if decision == "narrow" else order
        span = " > ".join(f"[{i + 1}]" for i in kept)
    return f"<answer>{span}</answer>"
