"""What a router is judged by beyond its ranking: the performance and the cost of its first choice.

A row's first choices under several objectives (performance, balance, cost) are points in the plane of cost and
performance, over the questions that stand under every objective. Their curve is the upper hull that never falls, begun
at the cheapest single model and drawn flat behind the last point; its area, divided by the cost from the cheapest to
the dearest single model, is the mean performance over that range (AIQ of RouterBench, arXiv 2403.12031, section 3).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ranker.data import Candidate, Query
from ranker.files import write_figure

if TYPE_CHECKING:
    from ranker.evaluation.report import Row

Point = tuple[float, float]  # mean cost, mean performance


def measured(queries: Sequence[Query]) -> bool:
    return all(c.cost is not None for q in queries for c in q.candidates)


def choices(row: "Row") -> dict[str, list[tuple[Query, Candidate]]]:
    """task -> (query, the candidate ranked first)."""
    found: dict[str, list[tuple[Query, Candidate]]] = {}
    for ranking in row.rankings:
        query = ranking.query
        found.setdefault(query.task, []).append((query, query.candidates[query.ids.index(ranking.order[0])]))
    return found


def common(queries: Sequence[Query]) -> list[Query]:
    """The queries whose question stands under every task: only their points can be compared."""
    by_task: dict[str, set] = {}
    for query in queries:
        by_task.setdefault(query.task, set()).add(query.context)
    shared = set.intersection(*by_task.values())
    return [query for query in queries if query.context in shared] if shared else list(queries)


def points(row: "Row", queries: Sequence[Query]) -> list[Point]:
    """A point per task, over `queries` alone."""
    wanted = {query.id for query in queries}
    found = ([pair for pair in pairs if pair[0].id in wanted] for pairs in choices(row).values())
    return [point(pairs) for pairs in found if pairs]


def point(pairs: Sequence[tuple[Query, Candidate]]) -> Point:
    return sum(c.cost for _, c in pairs) / len(pairs), sum(c.performance for _, c in pairs) / len(pairs)


def singles(queries: Sequence[Query]) -> dict[str, Point]:
    """candidate id -> its point when it answers everything."""
    by_id: dict[str, list[tuple[Query, Candidate]]] = {}
    for query in queries:
        for candidate in query.candidates:
            by_id.setdefault(candidate.id, []).append((query, candidate))
    return {name: point(pairs) for name, pairs in by_id.items()}


def hull(points: Sequence[Point]) -> list[Point]:
    """The upper hull by rising cost that never falls in performance."""
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
    """Mean height of the hull of `points` from cost `low` (where it must begin) to `high`."""
    corners = [p for p in hull(points) if p[0] <= high]
    corners.append((high, corners[-1][1]))
    total = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in zip(corners, corners[1:]))
    return total / (high - low) if high > low else corners[-1][1]


def curve(found: Sequence[Point], alone: dict[str, Point]) -> list[Point]:
    return hull([min(alone.values()), *found])


def table_lines(rows: Sequence["Row"], queries: Sequence[Query]) -> tuple[list[str], list[list[str]]]:
    """Header and lines: per row and task performance, cost in USD per 1000 queries, reward (relevance of the first
    choice), gap to the best."""
    shared = common(queries)
    alone = singles(shared)
    low, high = min(alone.values())[0], max(p[0] for p in alone.values())
    lines = []
    for row in rows:
        under = area(curve(points(row, shared), alone), low, high)
        for task, pairs in choices(row).items():
            cost, performance = point(pairs)
            reward = sum(q.rel[c.id] for q, c in pairs) / len(pairs)
            best = sum(max(q.relevance) for q, _ in pairs) / len(pairs)
            lines.append([f"{task}: {row.name}", f"{performance:.3f}", f"{1000 * cost:.3f}", f"{reward:.3f}",
                          f"{best - reward:.3f}", f"{under:.3f}"])
    lines.sort(key=lambda line: line[0].split(":")[0])  # stable: by task, rows in their order
    return ["routing", "performance", "$ per 1000", "reward", "gap to oracle", "area"], lines


def plot(path: Path, rows: Sequence["Row"], queries: Sequence[Query]) -> None:
    """The plane of cost and performance: single models, and each row with its curve."""
    from matplotlib.figure import Figure
    queries = common(queries)
    alone = singles(queries)
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    for name, (cost, performance) in alone.items():
        axes.plot(1000 * cost, performance, "x", color="gray")
        axes.annotate(name.rpartition("/")[2], (1000 * cost, performance), fontsize=7, color="gray", xytext=(3, 3),
                      textcoords="offset points")
    # lines bend on a log axis
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
