"""A curriculum of scenarios (Omni-Thinker-style, arXiv 2507.14783): one after the other, so that little is forgotten.

`python -m ranker.transfer` measures, by short runs on one scenario each, what training on i does to j: A[i][j], from
the base a[j]; D = A - a. If transfer is constant and a stage brings its scenario to A[j][j], an order ends with

    P_j = A[j][j] + sum of D[i][j] over the scenarios i that come after j

`exact` takes the order of the highest mean of P (of equal ones the first by the names' order), `greedy` rising
forgettability -mean over i != j of D[i][j] (the paper's: from the least to the most forgettable). Controls: `reversed`
(exact, backwards), `fixed` (as `scenarios` says) and `joint` (taking turns). Every scenario gives `prompts` / K queries
whatever the order. Ours: the formulas, which no version of the paper prints; the measure, MRR as a share of the way
from chance to 1.
"""

import itertools
import json
import os.path
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ranker.data import Query
from ranker.errors import UserError, nearest
from ranker.plugins import setting
from ranker.reading import open_text
from ranker.sources import Source
from ranker.templates import wording

MOST = 8  # scenarios whose orders are all looked at


@dataclass
class Options:
    prompts: int = setting(0, low=0)  # queries of the whole run; 0: train.steps x rollout.prompts_per_step
    order: str = setting("exact", choices=("exact", "greedy", "reversed", "fixed", "joint"))
    transfer: str = setting("", file=True)  # what `python -m ranker.transfer` wrote, for an order made from it
    scenarios: list[str] = setting([])  # their order if `fixed`, and which of equal orders is first; empty: as named

    def __post_init__(self):
        if self.order in ("exact", "greedy", "reversed") and not self.transfer:
            raise ValueError(f"order={self.order} needs transfer=FILE, made by python -m ranker.transfer")


@dataclass(frozen=True)
class Transfer:
    """Hold what training on one scenario does to another, each a share of the way from chance to 1."""

    base: dict[str, float]  # scenario j -> a[j]
    after: dict[str, dict[str, float]]  # scenario i -> j -> A[i][j]

    def gain(self, i: str, j: str) -> float:
        return self.after[i][j] - self.base[j]

    def predicted(self, order: Sequence[str]) -> dict[str, float]:
        """Return scenario -> the measure that an order of training ends with."""
        return {j: self.after[j][j] + sum(self.gain(i, j) for i in order[place + 1:]) for place, j in enumerate(order)}

    def exact(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return the best of all orders, the first of equal ones. Raise UserError for too many scenarios."""
        if len(names) > MOST:
            raise UserError(f"curriculum: {len(names)} scenarios have too many orders to look at; take order=greedy")
        return max(itertools.permutations(names), key=lambda order: round(sum(self.predicted(order).values()), 12))

    def greedy(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return the scenarios from the least to the most forgettable."""
        others = lambda j: [self.gain(i, j) for i in names if i != j]  # noqa: E731
        return tuple(sorted(names, key=lambda j: -sum(others(j)) / max(len(others(j)), 1)))


def read(path: str, names: Sequence[str]) -> Transfer:
    """Read a file of `python -m ranker.transfer`. Raise UserError where it lacks a cell of these scenarios."""
    with open_text(os.path.expanduser(path)) as file:
        text = file.read()
    try:
        record = json.loads(text)
        found = Transfer({j: float(record["base"][j]) for j in names},
                         {i: {j: float(record["after"][i][j]) for j in names} for i in names})
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not what python -m ranker.transfer wrote for {', '.join(names)}"
                        f" ({type(error).__name__}: {error})") from None
    return found


def lesson(source: Source, fit: Sequence[Query], options: Options) -> Source:
    by_scenario: dict[str, list[Query]] = {}
    for query in source.items:
        by_scenario.setdefault(wording(query.task)["scenario"], []).append(query)
    names = options.scenarios or sorted(by_scenario)
    for name in [*({*names} ^ {*by_scenario}), *(name for name in names if names.count(name) > 1)]:
        raise UserError(f"curriculum: scenarios={options.scenarios} must name each scenario of the training queries"
                        f" once; '{name}'{nearest(name, by_scenario)}")
    parts = [replace(source, items=by_scenario[name]) for name in arranged(names, options)]
    stage = max(-(-(options.prompts or source.planned) // len(parts)), 1)  # queries of a scenario, rounded up

    def item(position: int) -> Query:
        if options.order == "joint":
            place, number = divmod(position, len(parts))
        else:  # what goes beyond the prompts stays with the last
            number = min(position // stage, len(parts) - 1)
            place = position - number * stage
        return parts[number][place]

    return replace(source, items=None, item=item)


def arranged(names: Sequence[str], options: Options) -> Sequence[str]:
    """Return the scenarios in the order of training."""
    if options.order in ("fixed", "joint"):
        return names
    transfer = read(options.transfer, names)
    order = transfer.greedy(names) if options.order == "greedy" else transfer.exact(names)
    return order[::-1] if options.order == "reversed" else order
