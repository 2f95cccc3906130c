"""The driver: steps the rankers of all queries in lockstep and answers every outstanding ask in one batch.

A ranker is a generator: it yields an ask or a list of asks, receives an answer or a list of them, and returns the
ranking; a text that it yields is a note, which is counted. An ask that wants several samples is answered with a list of
answers. What stands behind the driver is any
function from a list of asks to a list of completions: the policy, a server (`api.py`), or a scripted one (`llms.py`);
where asks name roles, one function for each role.
"""

import random
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ranker import plugins
from ranker.data import Answer, Ask, Completion, Query
from ranker.errors import UserError, nearest

Model = Callable[[Sequence[Ask]], Sequence[tuple[int, Completion]]]
"""Asks -> (number of prompt tokens, completion) for each."""
Models = Model | Mapping[str, Model]  # of all roles; a single model plays the policy
SEEDS = 64  # of asks about one query, to see which decisions there are


@dataclass
class Cost:
    """What asks cost."""

    calls: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0  # its share of the batches it took part in
    cut: int = 0  # asks whose texts had to be cut

    def add(self, prompt_tokens: int, completion: Completion, failed: bool) -> None:
        self.calls += 1
        self.failed += failed
        self.prompt_tokens += prompt_tokens
        self.completion_tokens += completion.tokens
        self.seconds += completion.seconds
        self.cut += completion.cut is not None


@dataclass
class Ranking(Cost):
    """A query's final order (candidate ids, best first) and what it cost, in all and by role."""

    query: Query = None
    order: list[str] = field(default_factory=list)
    scores: dict[str, float] = field(default_factory=dict)  # of candidates, where the ranker gives them
    statuses: Counter = field(default_factory=Counter)
    notes: Counter = field(default_factory=Counter)  # what the ranker says of itself, such as a fall-back
    roles: dict[str, Cost] = field(default_factory=dict)

    @property
    def gains(self) -> list[float]:
        return [self.query.rel[c] for c in self.order]


def load_ranker(section: dict, where: str = "config") -> plugins.Plugin:
    """Return the ranker of a config's `ranker` section. Raise UserError."""
    return plugins.load("ranker", section, where)


def decisions(ranker: plugins.Plugin, query: Query, size: int | None = None) -> dict[str, Ask]:
    """Return the decisions that a ranker learns, each with an ask about the query, of those drawn that with most text.

    `size`: how many candidates are asked about; None: as in training.
    """
    asks = [ask for seed in range(SEEDS) for ask in ranker.sampled_asks(query, random.Random(seed), size)]
    length = lambda ask: sum(len(query.texts[c]) for c in ask.pool)  # noqa: E731
    return {decision: max((ask for ask in asks if ask.decision == decision), key=length)
            for decision in dict.fromkeys(ask.decision for ask in asks)}


class Driver:
    """Rank queries round by round; queries may join between two rounds.

    Random choices of a ranker depend on (seed, query id) alone, not on the order or number of queries. `on_ask` sees
    each finished ask with its round.
    """

    def __init__(self, ranker: plugins.Plugin, models: Models, seed: int = 0,
                 on_ask: Callable[[Ask, int, Completion], None] | None = None):
        self.ranker, self.models, self.seed, self.on_ask = ranker, models, seed, on_ask
        self.rounds = 0
        self.running: list[tuple[Ranking, Generator, Ask | list[Ask]]] = []  # with what each waits for

    def add(self, query: Query) -> Ranking:
        """Begin with a query; its ranking is filled while rounds go on."""
        ranking = Ranking(query=query)
        self._send(ranking, self.ranker.rank(query, random.Random(f"{self.seed}/{query.id}")), None)
        return ranking

    def round(self) -> bool:
        """Answer every outstanding ask in one batch; tell whether there was any."""
        waiting, self.running = self.running, []
        singles = [expanded(asked) for _, _, asked in waiting]
        results = iter(answered(self.models, [ask for asks in singles for ask in asks]))
        for (ranking, asking, asked), asks in zip(waiting, singles):
            given = [next(results) for _ in asks]
            read = {replace(ask, sample=0) for ask, (_, completion) in zip(asks, given) if completion.answer.ok}
            for ask, (prompt_tokens, completion) in zip(asks, given):
                ranking.statuses[completion.answer.status] += 1
                for cost in (ranking, ranking.roles.setdefault(ask.role, Cost())):
                    # A sample that cannot be read is no failure where another of the same ask can.
                    cost.add(prompt_tokens, completion, replace(ask, sample=0) not in read)
                if self.on_ask:
                    self.on_ask(ask, self.rounds, completion)
            self._send(ranking, asking, collected(asked, [completion.answer for _, completion in given]))
        self.rounds += 1
        return bool(waiting)

    def _send(self, ranking: Ranking, asking: Generator, answers) -> None:
        try:
            asked = asking.send(answers)
            while asked == [] or isinstance(asked, str):  # nothing asked, nothing to wait for
                ranking.notes.update([asked] if asked else [])
                asked = asking.send([])
            self.running.append((ranking, asking, asked))
        except StopIteration as stop:
            order = list(stop.value)
            if order and isinstance(order[0], tuple):
                ranking.scores, order = dict(order), [c for c, _ in order]
            ranking.order = order
            if sorted(order) != sorted(ranking.query.ids):
                raise UserError(f"ranker '{self.ranker.name}' did not return a permutation of the candidates of query"
                                f" {ranking.query.id}; see ranker/rankers/__init__.py") from None


def run(ranker: plugins.Plugin, queries: Iterable[Query], models: Models, seed: int = 0,
        on_ask: Callable[[Ask, int, Completion], None] | None = None) -> list[Ranking]:
    """Rank every query."""
    driver = Driver(ranker, models, seed, on_ask)
    rankings = [driver.add(query) for query in queries]
    while driver.running:
        driver.round()
    return rankings


def converse(asking: Generator, models: Models):
    """Answer what a lone generator of asks wants, and return what it returns."""
    answers = None
    while True:
        try:
            asked = asking.send(answers)
        except StopIteration as stop:
            return stop.value
        results = answered(models, expanded(asked)) if asked else []
        answers = collected(asked, [completion.answer for _, completion in results])


def answered(models: Models, asks: Sequence[Ask]) -> list[tuple[int, Completion]]:
    """Have every ask answered by who plays its role, all asks of a role in one batch."""
    models = models if isinstance(models, Mapping) else {"policy": models}
    found: list[tuple[int, Completion] | None] = [None] * len(asks)
    for role in dict.fromkeys(ask.role for ask in asks):
        if role not in models:
            raise UserError(f"nobody plays the role '{role}'{nearest(role, models)}; name an adapter or a server in the"
                            f" config: roles: {{{role}: {{adapter: FOLDER}}}}")
        places = [i for i, ask in enumerate(asks) if ask.role == role]
        results = models[role]([asks[i] for i in places])
        for i, result in zip(places, results, strict=True):
            found[i] = result
    return found


def expanded(asked: Ask | list[Ask]) -> list[Ask]:
    """Return the single asks of what a generator yielded: one for each sample that is wanted."""
    asks = asked if isinstance(asked, list) else [asked]
    return [replace(ask, samples=1, sample=ask.sample + i) if ask.samples > 1 else ask
            for ask in asks for i in range(ask.samples)]


def collected(asked: Ask | list[Ask], answers: Sequence[Answer]) -> Answer | list:
    """Return the answers in the form of what was yielded."""
    left = iter(answers)
    found = [[next(left) for _ in range(ask.samples)] if ask.samples > 1 else next(left)
             for ask in (asked if isinstance(asked, list) else [asked])]
    return found if isinstance(asked, list) else found[0]
