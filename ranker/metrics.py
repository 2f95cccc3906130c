"""Metrics of one ranking, and their exact expectation under a random order.

A ranking is given as the relevance of its candidates, best-ranked first. nDCG has linear gain and the ideal over the
query's pool ("within candidates"). RR and Hit count a candidate as relevant from `level` on; level 0 means the
query's best grade, so that ties at the top (two models of equal utility) are all relevant.
"""

import math
from collections.abc import Sequence

NAMES = ("MRR", "nDCG@1", "nDCG@5", "nDCG@10", "nDCG@20", "Hit@1", "Hit@5", "Hit@10")


def dcg(gains: Sequence[float], k: int) -> float:
    return sum(gain / math.log2(i + 2) for i, gain in enumerate(gains[:k]))


def ndcg(gains: Sequence[float], k: int) -> float:
    """nDCG@k in [0, 1]; 0 for a list without gain."""
    ideal = dcg(sorted(gains, reverse=True), k)
    return dcg(gains, k) / ideal if ideal > 0 else 0.0


def relevant(gains: Sequence[float], level: float = 0.0) -> list[bool]:
    threshold = level if level > 0 else max(gains)
    return [gain >= threshold and gain > 0 for gain in gains]


def reciprocal_rank(gains: Sequence[float], level: float = 0.0) -> float:
    return next((1 / i for i, hit in enumerate(relevant(gains, level), 1) if hit), 0.0)


def hit(gains: Sequence[float], k: int, level: float = 0.0) -> float:
    return float(any(relevant(gains, level)[:k]))


def all_metrics(gains: Sequence[float], level: float = 0.0) -> dict[str, float]:
    """Every metric of NAMES for one ranking."""
    values = {"MRR": reciprocal_rank(gains, level)}
    for name in NAMES[1:]:
        kind, k = name.split("@")
        values[name] = ndcg(gains, int(k)) if kind == "nDCG" else hit(gains, int(k), level)
    return values


def random_order(gains: Sequence[float], level: float = 0.0) -> dict[str, float]:
    """The exact expectation of every metric over all orders of `gains`."""
    n, p = len(gains), sum(relevant(gains, level))
    missed = lambda k: math.comb(n - p, k) / math.comb(n, k) if k < n else float(p == 0)  # noqa: E731
    # P(first relevant at rank r) = P(none in r-1) - P(none in r)
    values = {"MRR": sum((missed(r - 1) - missed(r)) / r for r in range(1, n + 1))}
    for name in NAMES[1:]:
        kind, k = name.split("@")
        k = min(int(k), n)
        ideal = dcg(sorted(gains, reverse=True), k)
        expected = dcg([sum(gains) / n] * n, k)
        values[name] = (expected / ideal if ideal > 0 else 0.0) if kind == "nDCG" else 1 - missed(k)
    return values


def mean(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
