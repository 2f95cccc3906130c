"""A cascade: one ranker orders all candidates, another one orders the head again, each played by a role of its own.

Such as a small adapter by windows and then a large one on its first ten. The tail keeps the first ranker's order.
"""

import random
from collections.abc import Generator
from dataclasses import dataclass, replace

from ranker import plugins
from ranker.data import Ask, Query
from ranker.plugins import setting


@dataclass
class Options:
    first: dict = setting({"name": "sliding"})  # the ranker of all candidates, a section like `ranker`
    second: dict = setting({"name": "sliding"})  # the ranker of the head
    depth: int = setting(10, low=2)  # candidates of the head
    first_role: str = setting("policy")
    second_role: str = setting("policy")


def rank(query: Query, rng: random.Random, options: Options) -> Generator:
    """Yield the asks of both rankers, receive answers, return candidate ids best first."""
    first, second = (plugins.load("ranker", section) for section in (options.first, options.second))
    order = yield from played(first.rank(query, rng), options.first_role)
    candidates = {c.id: (c, r) for c, r in zip(query.candidates, query.relevance)}
    head = [candidates[c] for c in order[:options.depth]]
    shown = replace(query, candidates=tuple(c for c, _ in head), relevance=tuple(r for _, r in head))
    best = yield from played(second.rank(shown, rng), options.second_role)
    return best + order[options.depth:]


def played(asking: Generator, role: str, whole: bool = False) -> Generator:
    """Yield the asks of a ranker as asks to a role, and return its order as ids, or (`whole`) as it gives it."""
    answers = None
    while True:
        try:
            asked = asking.send(answers)
        except StopIteration as stop:
            return list(stop.value) if whole else [c[0] if isinstance(c, tuple) else c for c in stop.value]
        if isinstance(asked, list):
            answers = yield [replace(ask, role=role) for ask in asked]
        else:
            answers = yield asked if isinstance(asked, str) else replace(asked, role=role)


def calls(n: int, options: Options) -> int:
    """Return the most asks that n candidates can cost."""
    first, second = (plugins.load("ranker", section) for section in (options.first, options.second))
    return first.calls(n) + second.calls(min(n, options.depth))


def sampled_asks(query: Query, rng: random.Random, size: int | None, options: Options) -> list[Ask]:
    """Return a training state of the ranker that the policy plays: the second one, unless only the first is its."""
    section = options.first if options.second_role != "policy" == options.first_role else options.second
    return plugins.load("ranker", section).sampled_asks(query, rng, size)
