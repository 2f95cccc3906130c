"""RARL-style rewards (arXiv 2601.20585) of values and of orders, whichever was asked for.

A value earns 1 - ((value - gold) / delta)^2 within `delta` of the gold one, else 0; a list of values their mean, in
which a missing one counts 0. An order earns tau * (t + 1) / 2 + position * (share of right places) + top * (whether the
first is right): t is Kendall's tau over pairs of different relevance, and a place is right where the relevance is that
of the right order there. What has not the exact form earns 0. The first formula is the paper's as a review tells it;
the second one's parts and all weights are not published, so they must be given.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from ranker.data import Ask, Completion, Group
from ranker.decisions import values
from ranker.errors import UserError
from ranker.plugins import setting
from .format import exact

TASK = True
WANTS_THOUGHT = True


@dataclass
class Options:
    delta: float = setting(low=1e-6)  # tolerance of a value, on the scale from 0 to 10
    tau: float = setting(low=0.0)  # weights of an order's three parts, which sum to 1
    position: float = setting(low=0.0)
    top: float = setting(low=0.0)

    def __post_init__(self):
        if abs(self.tau + self.position + self.top - 1) > 1e-6:
            raise ValueError(f"tau, position and top must sum to 1, not to {self.tau + self.position + self.top:g}")


def reward(groups: list[Group], options: Options) -> list[list[float]]:
    """Return one number per completion of each group, in [0, 1]."""
    return [[paid(group.ask, c, options) for c in group.completions] for group in groups]


def paid(ask: Ask, completion: Completion, options: Options) -> float:
    if ask.decision not in ("values", "order"):
        raise UserError(f"reward 'values_and_order' judges values and orders, not to {ask.decision} (query"
                        f" '{ask.query.id}'); take ranker.name=valued")
    answer = completion.answer
    if not exact(completion.text) or not answer.value:
        return 0.0
    if ask.decision == "values":
        return closeness(answer.value, values.gold(ask), options.delta)
    return composite([ask.query.rel[c] for c in answer.value], options) if answer.ok else 0.0


def closeness(values: Sequence[float | None], gold: Sequence[float], delta: float) -> float:
    """Return the mean of what each value earns."""
    errors = [None if v is None else abs(v - g) for v, g in zip(values, gold, strict=True)]
    return sum(1 - (e / delta) ** 2 for e in errors if e is not None and e <= delta) / len(errors)


def composite(gains: Sequence[float], options: Options) -> float:
    """Return what an order earns, given the relevance of its candidates in order."""
    best = sorted(gains, reverse=True)
    places = sum(own == right for own, right in zip(gains, best)) / len(gains)
    return options.tau * (tau(gains) + 1) / 2 + options.position * places + options.top * (gains[0] == best[0])


def tau(gains: Sequence[float]) -> float:
    """Return Kendall's tau of an order against its gains, over pairs that differ; 1 where none does."""
    pairs = [(first > second) - (first < second) for first, second in combinations(gains, 2) if first != second]
    return sum(pairs) / len(pairs) if pairs else 1.0
