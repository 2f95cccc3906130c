"""The driver: steps the rankers of all queries in lockstep and answers every outstanding ask in one batch.

A ranker is a generator: it yields an ask or a list of asks, receives an answer or a list of them, and returns the
ranking. What stands behind the driver is any function from a list of asks to a list of completions: the policy, a
server (`api.py`), or a scripted one (`llms.py`).
"""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from types import SimpleNamespace

from ranker import config as settings
from ranker.data import Ask, Completion, Query


@dataclass
class Ranking:
    """A query's final order (candidate ids, best first) and what it cost."""

    query: Query
    order: list[str] = field(default_factory=list)
    calls: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0  # its share of the batches it took part in
    cut: int = 0  # asks whose texts had to be cut
    statuses: Counter = field(default_factory=Counter)

    @property
    def gains(self) -> list[float]:
        return [self.query.rel[c] for c in self.order]


Model = Callable[[Sequence[Ask]], Sequence[tuple[int, Completion]]]
"""Asks -> (number of prompt tokens, completion) for each."""


def load_ranker(section: dict, where: str = "config") -> SimpleNamespace:
    """The functions of a file in rankers/ with the options of a config's `ranker` section bound. Raises UserError."""
    module = import_module(f"ranker.rankers.{section['name']}")
    given = {key: value for key, value in section.items() if key != "name"}
    options = settings.options(module.rank, given, where, "ranker", 2, ["name"])
    if hasattr(module, "check"):
        module.check(where, **options)
    ranker = SimpleNamespace(name=section["name"], **{function: partial(getattr(module, function), **options)
                                                      for function in ("rank", "calls", "sampled_ask")})
    # What a training step asks about a query: one thing, unless the ranker says otherwise.
    ranker.sampled_asks = (partial(module.sampled_asks, **options) if hasattr(module, "sampled_asks")
                           else lambda query, rng: [ranker.sampled_ask(query, rng)])
    return ranker


def run(ranker: SimpleNamespace, queries: Sequence[Query], model: Model, seed: int = 0,
        on_ask: Callable[[Ask, int, Completion], None] | None = None) -> list[Ranking]:
    """Rank every query. `on_ask` sees each finished ask with its round.

    Random choices of a ranker depend on (seed, query id) alone, not on the order or number of queries.
    """
    rankings = [Ranking(query) for query in queries]
    generators = [ranker.rank(q, random.Random(f"{seed}/{q.id}")) for q in queries]
    pending: dict[int, Ask | list[Ask]] = {}

    def step(i: int, answers) -> None:
        try:
            pending[i] = generators[i].send(answers)
            while pending[i] == []:  # nothing asked, nothing to wait for
                pending[i] = generators[i].send([])
        except StopIteration as stop:
            pending.pop(i, None)
            rankings[i].order = list(stop.value)
            if sorted(stop.value) != sorted(rankings[i].query.ids):
                raise AssertionError(f"{ranker.name} did not return a permutation for query {rankings[i].query.id}")

    for i in range(len(queries)):
        step(i, None)
    rounds = 0
    while pending:
        owners = [(i, ask) for i, asks in pending.items() for ask in (asks if isinstance(asks, list) else [asks])]
        results = model([ask for _, ask in owners])
        answers: dict[int, list] = {}
        for (i, ask), (prompt_tokens, completion) in zip(owners, results, strict=True):
            ranking, status = rankings[i], completion.answer.status
            ranking.calls += 1
            ranking.failed += status != "ok"
            ranking.statuses[status] += 1
            ranking.prompt_tokens += prompt_tokens
            ranking.completion_tokens += completion.tokens
            ranking.seconds += completion.seconds
            ranking.cut += completion.cut is not None
            answers.setdefault(i, []).append(completion.answer)
            if on_ask:
                on_ask(ask, rounds, completion)
        for i, given in answers.items():
            step(i, given if isinstance(pending[i], list) else given[0])
        rounds += 1
    return rankings
