"""A hybrid of two rankers, which run side by side: candidates are ordered by a weighted sum of both.

Each counts by its scores where it gives them (`likelihood`), else by 1 / (60 + place) (reciprocal rank fusion, Cormack
et al. 2009), standardised within the query as ERank (arXiv 2509.00520) mixes a first stage in.
"""

import random
from collections.abc import Generator
from dataclasses import dataclass

from ranker import plugins
from ranker.data import Ask, Query
from ranker.plugins import setting
from ranker.rankers.cascade import played
from ranker.rankers.pointwise import standardised


@dataclass
class Options:
    first: dict = setting({"name": "likelihood"})  # a section like `ranker`
    second: dict = setting({"name": "elimination"})
    weight: float = setting(0.5, low=0.0, high=1.0)  # of the first
    first_role: str = setting("policy")
    second_role: str = setting("policy")


def rank(query: Query, rng: random.Random, options: Options) -> Generator:
    """Yield the asks of both rankers round by round, receive answers, return (id, score) pairs best first."""
    running = {i: _scored(query, rng, section, role) for i, (section, role) in enumerate(
        ((options.first, options.first_role), (options.second, options.second_role)))}
    scores: dict[int, dict[str, float]] = {}
    given: dict[int, object] = dict.fromkeys(running)
    while running:
        asked = {}
        for i, asking in list(running.items()):
            try:
                asked[i] = asking.send(given[i])
                while isinstance(asked[i], str):  # a note
                    yield asked[i]
                    asked[i] = asking.send(None)
            except StopIteration as stop:
                scores[i] = stop.value
                del running[i]
                asked.pop(i, None)
        if asked:
            flat = [ask for asks in asked.values() for ask in (asks if isinstance(asks, list) else [asks])]
            answers = iter((yield flat))
            given = {i: [next(answers) for _ in asks] if isinstance(asks, list) else next(answers)
                     for i, asks in asked.items()}
    mixed = {c: options.weight * scores[0][c] + (1 - options.weight) * scores[1][c] for c in query.ids}
    return sorted(mixed.items(), key=lambda pair: -pair[1])  # stable: ties keep the order given


def _scored(query: Query, rng: random.Random, section: dict, role: str) -> Generator:
    """Run a ranker as a role, and return standardised scores of its candidates."""
    order = yield from played(plugins.load("ranker", section).rank(query, rng), role, whole=True)
    pairs = [c if isinstance(c, tuple) else (c, 1 / (60 + place)) for place, c in enumerate(order, 1)]
    return standardised(dict(pairs))


def calls(n: int, options: Options) -> int:
    """Return the most asks that n candidates can cost."""
    return sum(plugins.load("ranker", section).calls(n) for section in (options.first, options.second))


def sampled_asks(query: Query, rng: random.Random, size: int | None, options: Options) -> list[Ask]:
    """Return a training state of the first ranker."""
    return plugins.load("ranker", options.first).sampled_asks(query, rng, size)
