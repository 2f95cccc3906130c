"""Values and rankings under one policy (RARL-style, arXiv 2601.20585): a number for every candidate, or their order.

Training asks for values and for orders in turn; ranking goes by the one or the other. Of values that cannot be read
their candidates come last, in the order given.
"""

import random
from collections.abc import Generator
from dataclasses import dataclass, replace

from ranker.data import Answer, Ask, Query
from ranker.plugins import setting
from ranker.rankers import listwise


@dataclass
class Options:
    by: str = setting("values", choices=("values", "order"))  # what ranks
    values: float = setting(0.5, low=0.0, high=1.0)  # share of training asks that ask for values; others: for an order


def rank(query: Query, rng: random.Random, options: Options) -> Generator[Ask, Answer, list]:
    """Yield one ask, receive its answer, return candidate ids, with scores where values rank."""
    if len(query.ids) < 2:
        return list(query.ids)
    answer = yield Ask(query, query.ids, options.by)
    if options.by == "order":
        return listwise.completed(answer, query.ids)
    values = answer.value or (None,) * len(query.ids)
    pairs = [(c, -1.0 if value is None else value) for c, value in zip(query.ids, values)]
    return sorted(pairs, key=lambda pair: -pair[1])  # stable: ties keep the order given


def calls(n: int, options: Options) -> int:
    """Return the number of asks for n candidates."""
    return int(n > 1)


def sampled_asks(query: Query, rng: random.Random, size: int | None, options: Options) -> list[Ask]:
    """Return a training state: all candidates, or a positive and others, in random order."""
    [ask] = listwise.sampled_asks(query, rng, size, listwise.Options())
    return [replace(ask, decision="values") if rng.random() < options.values else ask]
