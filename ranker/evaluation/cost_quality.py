"""The performance and the cost of a router's first choice, which a router is judged by beyond its ranking.

A task of routing is an objective (performance, balance or cost). The first choices of a row under each objective are a
point in the plane of cost and performance, taken over the questions that are asked under every objective. The curve of
the points is the upper hull that never falls; it begins at the cheapest single model and is drawn flat behind the last
point. Its area, divided by the range of cost from the cheapest to the dearest single model, is the mean performance
over that range (AIQ of RouterBench, arXiv 2403.12031, section 3).

What the router itself costs (its tokens and its seconds, where prices are given) is part of the cost of its choices.

A budget is kept by a threshold, in score per dollar: of each query the candidate with the highest score less threshold
times price is chosen. The score is the ranker's own, or where it gives none the place (1 for the first, 0 for the
last); the price is the candidate's mean cost over the queries. The threshold is the lowest that keeps the budget.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ranker.data import Candidate, Query
from ranker.files import write_figure

if TYPE_CHECKING:
    from ranker.drive import Ranking
    from ranker.evaluation.report import Row

Point = tuple[float, float]  # mean cost in USD, mean performance


def measured(queries: Sequence[Query]) -> bool:
    """Tell whether every candidate has a cost, as only candidates of routing have."""
    return all(c.cost is not None for q in queries for c in q.candidates)


def choices(row: "Row") -> dict[str, list[tuple[Query, Candidate]]]:
    """Return task -> pairs (query, the candidate that the row ranks first, its cost with the router's own)."""
    return {task: [(r.query, chosen(row, r, r.order[0])) for r in rankings]
            for task, rankings in by_task(row).items()}


def by_task(row: "Row") -> dict[str, list["Ranking"]]:
    """Return task -> the row's rankings of its queries."""
    found: dict[str, list[Ranking]] = {}
    for ranking in row.rankings:
        found.setdefault(ranking.query.task, []).append(ranking)
    return found


def reward(pairs: Sequence[tuple[Query, Candidate]]) -> float:
    """Return the mean relevance of the chosen candidates."""
    return sum(q.rel[c.id] for q, c in pairs) / len(pairs)


def chosen(row: "Row", ranking: "Ranking", identity: str) -> Candidate:
    """Return a candidate of a ranking, its cost with what the router itself cost."""
    candidate = ranking.query.candidates[ranking.query.ids.index(identity)]
    return replace(candidate, cost=candidate.cost + row.dollars_of(ranking))


def common(queries: Sequence[Query]) -> list[Query]:
    """Return the queries whose question is asked under every task, since only points over the same questions compare.

    Where no question is, return all queries.
    """
    by_task: dict[str, set] = {}
    for query in queries:
        by_task.setdefault(query.task, set()).add(query.context)
    shared = set.intersection(*by_task.values())
    return [query for query in queries if query.context in shared] if shared else list(queries)


def points(row: "Row", queries: Sequence[Query]) -> list[Point]:
    """Return a point per task of the row's first choices, over `queries` alone."""
    wanted = {query.id for query in queries}
    found = ([pair for pair in pairs if pair[0].id in wanted] for pairs in choices(row).values())
    return [point(pairs) for pairs in found if pairs]


def point(pairs: Sequence[tuple[Query, Candidate]]) -> Point:
    """Return the mean cost and the mean performance of the chosen candidates."""
    return sum(c.cost for _, c in pairs) / len(pairs), sum(c.performance for _, c in pairs) / len(pairs)


def standing(pairs: Sequence[tuple[Query, Candidate]]) -> tuple[float, float]:
    """Return the mean over tags of a router's rank among single models, and the share of tags where it is first.

    The first is Zooter's MTR (arXiv 2311.08692), the second its uplift. A tag is a benchmark or a category; queries
    without tags are one. The rank is 1 where no single model has a higher mean relevance.
    """
    tagged: dict[str, list[tuple[Query, Candidate]]] = {}
    for query, candidate in pairs:
        for tag in query.tags or ("",):
            tagged.setdefault(tag, []).append((query, candidate))
    ranks = [1 + sum(reward(alone) > reward(found) + 1e-9 for alone in single_choices([q for q, _ in found]).values())
             for found in tagged.values()]
    return sum(ranks) / len(ranks), ranks.count(1) / len(ranks)


def single_choices(queries: Sequence[Query]) -> dict[str, list[tuple[Query, Candidate]]]:
    """Return candidate id -> its choices when it alone answers every question."""
    by_id: dict[str, list[tuple[Query, Candidate]]] = {}
    for query in queries:
        for candidate in query.candidates:
            by_id.setdefault(candidate.id, []).append((query, candidate))
    return by_id


def singles(queries: Sequence[Query]) -> dict[str, Point]:
    """Return candidate id -> its point when it alone answers every question."""
    return {name: point(pairs) for name, pairs in single_choices(queries).items()}


def hull(points: Sequence[Point]) -> list[Point]:
    """Return the corners of the upper hull by rising cost, without those where performance would fall."""
    kept: list[Point] = []
    for x, y in sorted(points, key=lambda p: (p[0], -p[1])):
        if kept and (x == kept[-1][0] or y <= kept[-1][1]):
            continue
        while (len(kept) > 1
               and (kept[-1][1] - kept[-2][1]) * (x - kept[-2][0]) <= (y - kept[-2][1]) * (kept[-1][0] - kept[-2][0])):
            kept.pop()
        kept.append((x, y))
    return kept


def area(points: Sequence[Point], low: float, high: float) -> float:
    """Return the mean height of the hull of `points` from cost `low` to cost `high`; it is flat where no point is.

    The mean costs of a row and of a single model may be one sum in two orders: up to rounding they are equal.
    """
    costs, heights = zip(*(p for p in hull(points) if p[0] <= high + 1e-9 * abs(high)))
    if high <= low:
        return heights[-1]
    stops = [low, *(x for x in costs if low < x < high), high]
    at = [float(y) for y in np.interp(stops, costs, heights)]
    return sum((x2 - x1) * (y1 + y2) / 2 for x1, x2, y1, y2 in zip(stops, stops[1:], at, at[1:])) / (high - low)


def curve(found: Sequence[Point], alone: dict[str, Point]) -> list[Point]:
    """Return the hull of a row's points `found`, begun at the cheapest of the single models `alone`."""
    return hull([min(alone.values()), *found])


def table_lines(rows: Sequence["Row"], queries: Sequence[Query]) -> tuple[list[str], list[list[str]]]:
    """Return the header and the lines of a table with a line per row and task.

    A line shows the performance, the cost in USD per 1000 queries, the reward (mean relevance of the first choice), its
    gap to the best choice, the rank among single models and where it is the first (`standing`), the area under the
    row's curve, and the router's own tokens and seconds for a query.
    """
    shared = common(queries)
    alone = singles(shared)
    low, high = min(alone.values())[0], max(p[0] for p in alone.values())
    lines = []
    for row in rows:
        under = area(curve(points(row, shared), alone), low, high)
        chosen_by_task, rankings_by_task = choices(row), by_task(row)
        for task, pairs in chosen_by_task.items():
            (cost, performance), rankings = point(pairs), rankings_by_task[task]
            best = sum(max(q.relevance) for q, _ in pairs) / len(pairs)
            tokens = sum(r.prompt_tokens + r.completion_tokens for r in rankings) / len(rankings)
            rank, first = standing(pairs)
            lines.append([f"{task}: {row.name}", f"{performance:.3f}", f"{1000 * cost:.3f}", f"{reward(pairs):.3f}",
                          f"{best - reward(pairs):.3f}", f"{rank:.1f}", f"{first:.0%}", f"{under:.3f}", f"{tokens:.0f}",
                          f"{sum(r.seconds for r in rankings) / len(rankings):.3f}"])
    lines.sort(key=lambda line: line[0].split(":")[0])  # a stable sort: by task, then rows as given
    return ["routing", "performance", "$ per 1000", "reward", "gap to oracle", "mean rank", "first in", "area",
            "router's tokens", "seconds"], lines


def budget_lines(rows: Sequence["Row"], budget: float) -> tuple[list[str], list[list[str]]]:
    """Return the header and the lines of a table of what rows reach with `budget`, in USD per 1000 queries."""
    lines = []
    for row in rows:
        for task, rankings in by_task(row).items():
            threshold, pairs = within(row, rankings, budget / 1000)
            cost, performance = point(pairs)
            kept = f"{threshold:.4g}" if 1000 * cost <= budget else "none keeps it"
            lines.append([f"{task}: {row.name}", f"{performance:.3f}", f"{1000 * cost:.3f}", f"{reward(pairs):.3f}",
                          kept])
    lines.sort(key=lambda line: line[0].split(":")[0])
    return [f"within ${budget:g} per 1000", "performance", "$ per 1000", "reward", "threshold"], lines


def within(row: "Row", rankings: Sequence["Ranking"], budget: float) -> tuple[float, list[tuple[Query, Candidate]]]:
    """Return (the lowest threshold that keeps a budget in USD a query, the choices under it).

    Where none keeps it, the choices are the cheapest ones. The choices change where two candidates of a query have the
    same score less threshold times price; between two such thresholds nothing changes.
    """
    price = {name: cost for name, (cost, _) in singles([r.query for r in rankings]).items()}
    scores = [r.scores or {c: 1 - k / max(len(r.order) - 1, 1) for k, c in enumerate(r.order)} for r in rankings]
    turns = {(of[a] - of[b]) / (price[a] - price[b]) for of in scores for a in of for b in of if price[a] > price[b]}
    thresholds = [0.0, *sorted(np.nextafter(turn, np.inf) for turn in turns if turn > 0)]

    def choose(threshold: float) -> list[tuple[Query, Candidate]]:
        best = [min(of, key=lambda c: (threshold * price[c] - of[c], price[c])) for of in scores]
        return [(r.query, chosen(row, r, c)) for r, c in zip(rankings, best)]

    found = bisect_left(thresholds, True, key=lambda threshold: point(choose(threshold))[0] <= budget)
    threshold = thresholds[min(found, len(thresholds) - 1)]
    return float(threshold), choose(threshold)


def plot(path: Path, rows: Sequence["Row"], queries: Sequence[Query]) -> None:
    """Draw the plane of cost and performance as PNG: the single models, and each row's points with their curve."""
    from matplotlib.figure import Figure
    queries = common(queries)
    alone = singles(queries)
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    for name, (cost, performance) in alone.items():
        axes.plot(1000 * cost, performance, "x", color="gray")
        axes.annotate(name.rpartition("/")[2], (1000 * cost, performance), fontsize=7, color="gray", xytext=(3, 3),
                      textcoords="offset points")
    # The straight pieces of a curve are bent on a log axis, so that they are drawn through many costs.
    costs = np.geomspace(max(min(p[0] for p in alone.values()), 1e-9),
                         max(max(p[0] for p in alone.values()), 1e-9), 400)
    for row in rows:
        found = points(row, queries)
        corners = curve(found, alone)
        line, = axes.plot(1000 * costs, np.interp(costs, *zip(*corners)), label=row.name, lw=1)
        axes.plot([1000 * cost for cost, _ in found], [performance for _, performance in found], "o",
                  color=line.get_color())
    axes.set(xlabel="$ per 1000 queries", ylabel="performance", xscale="log",
             title="first choices under each objective, and single models (x)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    write_figure(path, figure)
