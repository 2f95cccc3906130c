"""Iterative elimination (IRanker, arXiv 2506.21638 section 3): drop the least likely candidate until one is left.

n candidates cost n-1 asks. An ask that cannot be read drops a seeded random candidate, so that a model that says
nothing ranks at chance; the driver counts it as failed.
"""

import random
from collections.abc import Generator

from ranker.data import Answer, Ask, Query


def rank(query: Query, rng: random.Random) -> Generator[Ask, Answer, list[str]]:
    """Yields asks, receives answers, returns candidate ids best first."""
    pool, dropped = list(query.ids), []
    while len(pool) > 1:
        answer = yield Ask(query, tuple(pool), "eliminate")
        dropped.append(answer.value[0] if answer.ok else rng.choice(pool))
        pool.remove(dropped[-1])
    return pool + dropped[::-1]


def calls(n: int) -> int:
    """The number of asks for n candidates."""
    return max(n - 1, 0)


def sampled_ask(query: Query, rng: random.Random, size: int | None = None) -> Ask:
    """A training state as in the paper: one positive and k uniform negatives, k = 1..n-1 (or size-1), in random order.

    Of several positives (ties at the best grade) one is drawn; a negative is any candidate below the best grade.
    A query whose candidates are all of one grade has no negatives and gives a pool of any candidates.
    """
    positive = rng.choice(query.positives)
    negatives = [c for c in query.ids if query.rel[c] < query.rel[positive]] or [c for c in query.ids if c != positive]
    count = rng.randint(1, len(negatives)) if size is None else min(size - 1, len(negatives))
    pool = [positive, *rng.sample(negatives, count)]
    rng.shuffle(pool)
    return Ask(query, tuple(pool), "eliminate")
