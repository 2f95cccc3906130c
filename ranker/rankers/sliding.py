"""Sliding window (RankGPT, arXiv 2304.09542): order `window` candidates at a time, from the end of the list to its head.

Each window keeps `window - step` of the one before, so that one pass brings the best `window - step` of all to the
head; more need more passes. With `depth` only that many are ranked, the rest keeps its place. The last window always starts at the head: as published the loop made no call for short
lists, and never ranked the head when (n - window) was no multiple of the step. The order given matters, since what
stands last moves up only through good answers.
"""

import math
import random
from collections.abc import Generator

from ranker.data import Answer, Ask, Query
from ranker.errors import UserError
from ranker.rankers import listwise


def rank(query: Query, rng: random.Random, *, window: int = 20, step: int = 10, passes: int = 1, depth: int = 0) -> Generator[Ask, Answer, list[str]]:
    """Yields asks, receives answers, returns candidate ids best first."""
    return (yield from slide(query, window, step, passes, depth))


def slide(query: Query, window: int, step: int, passes: int, depth: int, by_logits: bool = False) -> Generator[Ask, Answer, list[str]]:
    order = list(query.ids)
    for _ in range(passes):
        end, start = reach(len(order), depth), None
        while start != 0:
            start = max(end - window, 0)
            if end - start > 1:
                pool = tuple(order[start:end])
                order[start:end] = listwise.completed((yield Ask(query, pool, "order", by_logits=by_logits)), pool)
            end -= step
    return order


def calls(n: int, *, window: int = 20, step: int = 10, passes: int = 1, depth: int = 0) -> int:
    """The number of asks for n candidates."""
    n = reach(n, depth)
    return passes * (1 + max(math.ceil((n - window) / step), 0)) if n > 1 else 0


def reach(n: int, depth: int) -> int:
    """How many candidates are ranked; the rest keeps its place."""
    return min(n, depth) if depth else n


def sampled_ask(query: Query, rng: random.Random, size: int | None = None, *, window: int = 20, step: int = 10, passes: int = 1, depth: int = 0) -> Ask:
    """A training state: a window of candidates, a positive among them, in random order."""
    return listwise.sampled_ask(query, rng, min(size or window, window))


def check(where: str, *, window: int = 20, step: int = 10, passes: int = 1, depth: int = 0) -> None:
    if not 1 <= step < window or passes < 1 or depth < 0:
        raise UserError(f"{where}: ranker.window ({window}), ranker.step ({step}) and ranker.passes ({passes}) must be at least 1, ranker.depth"
                        f" ({depth}) at least 0, and the step below the window, or candidates would be left out")
