"""Listwise ranking (DRanker, arXiv 2506.21638 section 3): one ask, the model writes the whole order.

Of an answer that is no full order, what could be read keeps its place and the missing candidates follow in the order
given (so that a model that says nothing scores the input order); the driver counts it as failed.

Training shows the candidates in random order. With `order: given` it keeps the order of the data, for a reward that
compares with it: GR2 (arXiv 2602.07774) reranks what a first stage ordered. The answer's form stays `[i] > [j]`, not
that paper's JSON, so that there is one parser.
"""

import random
from collections.abc import Generator, Sequence
from dataclasses import dataclass

from ranker.data import Answer, Ask, Query
from ranker.plugins import setting


@dataclass
class Options:
    order: str = setting("shuffled", choices=("shuffled", "given"))  # of the candidates shown in training


def rank(query: Query, rng: random.Random, options: Options) -> Generator[Ask, Answer, list[str]]:
    """Yield one ask, receive its answer, return candidate ids best first."""
    if len(query.ids) < 2:
        return list(query.ids)
    answer = yield Ask(query, query.ids, "order")
    return completed(answer, query.ids)


def completed(answer: Answer, pool: Sequence[str]) -> list[str]:
    """Return what could be read, then what is missing in the order given."""
    return [*answer.value, *(c for c in pool if c not in answer.value)]


def calls(n: int, options: Options) -> int:
    """Return the number of asks for n candidates."""
    return int(n > 1)


def sampled_asks(query: Query, rng: random.Random, size: int | None, options: Options) -> list[Ask]:
    """Return a training state: all candidates (or a positive and size-1 others) in random order, or as given."""
    pool = list(query.ids)
    if size is not None and size < len(pool):
        positive = rng.choice(query.positives)
        pool = [positive, *rng.sample([c for c in pool if c != positive], size - 1)]
    rng.shuffle(pool)
    return [Ask(query, tuple(pool if options.order == "shuffled" else sorted(pool, key=query.ids.index)), "order")]
