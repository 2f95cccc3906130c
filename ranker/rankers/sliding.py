"""Sliding window (RankGPT, arXiv 2304.09542): order `window` candidates at a time, from the end of the list to its
head.

Each window keeps `window - step` of the one before, so that one pass brings the best `window - step` of all to the
head; more need more passes. With `depth` only that many are ranked, the rest keeps its place. The last window always
starts at the head: as published the loop made no call for short lists, and never ranked the head when (n - window) was
no multiple of the step. The order given matters, since what stands last moves up only through good answers.
"""

import math
import random
from collections.abc import Generator
from dataclasses import dataclass

from ranker.data import Answer, Ask, Query
from ranker.plugins import setting
from ranker.rankers import listwise


@dataclass
class Options:
    window: int = setting(20, low=2)  # candidates ordered at a time
    step: int = setting(10, low=1)  # by which it moves
    passes: int = setting(1, low=1)
    depth: int = setting(0, low=0)  # candidates that are ranked, from the head; 0: all

    def __post_init__(self):
        if self.step >= self.window:
            raise ValueError(f"step ({self.step}) must be below window ({self.window}), "
                             "or candidates would be left out")


def rank(query: Query, rng: random.Random, options: Options) -> Generator[Ask, Answer, list[str]]:
    """Yield asks, receive answers, return candidate ids best first."""
    return (yield from slide(query, options))


def slide(query: Query, options: Options, by_logits: bool = False) -> Generator[Ask, Answer, list[str]]:
    order = list(query.ids)
    for _ in range(options.passes):
        end, start = reach(len(order), options.depth), None
        while start != 0:
            start = max(end - options.window, 0)
            if end - start > 1:
                pool = tuple(order[start:end])
                order[start:end] = listwise.completed((yield Ask(query, pool, "order", by_logits=by_logits)), pool)
            end -= options.step
    return order


def calls(n: int, options: Options) -> int:
    """Return the number of asks for n candidates."""
    n = reach(n, options.depth)
    return options.passes * (1 + max(math.ceil((n - options.window) / options.step), 0)) if n > 1 else 0


def reach(n: int, depth: int) -> int:
    """Return how many candidates are ranked; the rest keeps its place."""
    return min(n, depth) if depth else n


def sampled_asks(query: Query, rng: random.Random, size: int | None, options: Options) -> list[Ask]:
    """Return a training state: a window of candidates, a positive among them, in random order."""
    return listwise.sampled_asks(query, rng, min(size or options.window, options.window), listwise.Options())
