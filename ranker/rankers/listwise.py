"""Listwise ranking (DRanker, arXiv 2506.21638 section 3): one ask, the model writes the whole order.

Of an answer that is no full order, what could be read keeps its place and the missing candidates follow in the order
given (so that a model that says nothing scores the input order); the driver counts it as failed.
"""

import random
from collections.abc import Generator, Sequence

from ranker.data import Answer, Ask, Query


def rank(query: Query, rng: random.Random) -> Generator[Ask, Answer, list[str]]:
    """Yields one ask, receives its answer, returns candidate ids best first."""
    if len(query.ids) < 2:
        return list(query.ids)
    answer = yield Ask(query, query.ids, "order")
    return completed(answer, query.ids)


def completed(answer: Answer, pool: Sequence[str]) -> list[str]:
    """What could be read, then what is missing in the order given."""
    return [*answer.value, *(c for c in pool if c not in answer.value)]


def calls(n: int) -> int:
    """The number of asks for n candidates."""
    return int(n > 1)


def sampled_ask(query: Query, rng: random.Random, size: int | None = None) -> Ask:
    """A training state: all candidates (or a positive and size-1 others) in random order."""
    pool = list(query.ids)
    if size is not None and size < len(pool):
        positive = rng.choice(query.positives)
        pool = [positive, *rng.sample([c for c in pool if c != positive], size - 1)]
    rng.shuffle(pool)
    return Ask(query, tuple(pool), "order")
