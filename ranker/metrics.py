"""Metrics of rankings, many at a time, and their exact expectation under a random order.

A ranking is given as its gains: the relevance of its candidates, best-ranked first, graded or real-valued.

- `nDCG`, `nDCG@k`: linear gain, `rel / log2(rank + 1)`; the ideal order is over everything that is judged.
- `MRR`, `AP`, `Hit`, `Recall`, `P` (each also `@k`): a candidate is relevant if its relevance is at least `level`.
  Level 0 means the query's best grade, so that candidates that tie at the top (two models of equal utility) are all
  relevant.
- Only the candidates count as judged ("within candidates"), unless all judgements of a query are given.

With all judgements and a level given, every value is trec_eval's: `recip_rank`, `ndcg_cut_k`, `map_cut_k`, `success_k`,
`recall_k`, `P_k`.
"""

import math
import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain

import numpy as np

from ranker.errors import UserError, nearest

NAMES = ("MRR", "nDCG@1", "nDCG@5", "nDCG@10", "nDCG@20", "Hit@1", "Hit@5", "Hit@10")  # shown by default
ALIASES = {"mrr": "MRR", "rr": "MRR", "reciprank": "MRR", "ndcg": "nDCG", "ndcgcut": "nDCG", "ap": "AP", "map": "AP",
           "mapcut": "AP", "hit": "Hit", "hr": "Hit", "hitrate": "Hit", "success": "Hit", "recall": "Recall",
           "r": "Recall", "p": "P", "precision": "P"}
NEED_K = ("Hit", "Recall", "P")  # metrics that mean nothing without @k


def canonical(name: str) -> str:
    """Return the one name of a metric: `ndcg_cut_10` -> `nDCG@10`, `hr@1` -> `Hit@1`, `recip_rank` -> `MRR`.

    Raise UserError for an unknown metric.
    """
    word, k = re.fullmatch(r"(.*?)(?:[@_.]?(\d+))?", name.strip(), re.DOTALL).groups()
    kind = ALIASES.get(re.sub(r"[_\s]", "", word).lower())
    if kind is None or (k is None and kind in NEED_K) or (k is not None and not 1 <= int(k) <= 1_000_000):
        raise UserError(f"unknown metric '{name}'"
                        f"{nearest(name, [*NAMES, 'nDCG', 'AP', 'AP@10', 'MRR@10', 'Recall@10', 'P@10'])}")
    return f"{kind}@{int(k)}" if k else kind


def compute(names: Sequence[str], gains: Sequence[Sequence[float]], judged: Sequence[Sequence[float]] | None = None,
            level: float = 0.0) -> dict[str, np.ndarray]:
    """Return every metric of every ranking, name -> [Q], from the gains of each ranking.

    `judged[q]` is the relevance of everything judged for query q (default: of its candidates). A query without anything
    relevant and an empty ranking have 0. Negative grades count as 0.
    """
    ranked = _padded(gains)  # [Q, N]
    known = ranked if judged is None else _padded(judged)  # [Q, M]
    best = known.max(1, initial=0.0)
    threshold = np.where(best > 0, level if level > 0 else best, np.inf)[:, None]
    hits = (ranked >= threshold).astype(float)  # [Q, N]
    relevant = np.maximum((known >= threshold).sum(1), 1)  # [Q], at least 1 to divide by
    ranks = np.arange(1, ranked.shape[1] + 1)
    ideal = -np.sort(-known, axis=1)
    values = {}
    for name in names:
        kind, _, k = canonical(name).partition("@")
        k = int(k) if k else max(ranked.shape[1], known.shape[1])
        head = hits[:, :k]
        if kind == "nDCG":
            best_dcg = _dcg(ideal[:, :k])
            values[name] = np.divide(_dcg(ranked[:, :k]), best_dcg, out=np.zeros(len(ranked)), where=best_dcg > 0)
        elif kind == "MRR":
            values[name] = (head / ranks[:k]).max(1, initial=0.0)
        elif kind == "AP":
            values[name] = _last(np.cumsum(head * np.cumsum(head, 1) / ranks[:k], 1)) / relevant
        elif kind == "Hit":
            values[name] = head.max(1, initial=0.0)
        else:
            values[name] = head.sum(1) / (relevant if kind == "Recall" else k)
    return values


def of(gains: Sequence[float], level: float = 0.0, names: Sequence[str] = NAMES) -> dict[str, float]:
    """Return the metrics of a single ranking by name."""
    return {name: float(values[0]) for name, values in compute(names, [gains], level=level).items()}


def dcg(gains: Sequence[float], k: int) -> float:
    """Return the discounted cumulative gain of the first k ranks."""
    return sum(gain / math.log2(i + 2) for i, gain in enumerate(gains[:k]))


def _dcg(gains: np.ndarray) -> np.ndarray:
    """Return the discounted cumulative gains [Q] of gains [Q, k], added from the first rank on, as trec_eval does."""
    return _last(np.cumsum(gains / np.log2(np.arange(2, gains.shape[1] + 2)), 1))


def _last(sums: np.ndarray) -> np.ndarray:
    return sums[:, -1] if sums.shape[1] else np.zeros(len(sums))


def _padded(lists: Sequence[Sequence[float]]) -> np.ndarray:
    """Return Q lists as a matrix [Q, longest], with 0 behind their ends and in place of negative values."""
    lengths = np.fromiter(map(len, lists), int, len(lists))
    matrix = np.zeros((len(lists), lengths.max(initial=0)))
    matrix[np.arange(matrix.shape[1]) < lengths[:, None]] = np.fromiter(chain.from_iterable(lists), float,
                                                                        lengths.sum())
    return np.maximum(matrix, 0.0)


def random_order(gains: Sequence[float], level: float = 0.0, names: Sequence[str] = NAMES,
                 judged: Sequence[float] | None = None) -> dict[str, float]:
    """Return the exact expectation of every metric over all orders of `gains`; arguments as for `compute`."""
    known = gains if judged is None else judged
    threshold = level if level > 0 else max(known, default=0.0)
    hits = lambda values: sum(value >= threshold and value > 0 for value in values)  # noqa: E731
    n, p, relevant = len(gains), hits(gains), max(hits(known), 1)
    values = {}
    for name in names:
        kind, _, k = canonical(name).partition("@")
        k = int(k) if k else max(n, len(known))
        if kind == "nDCG":
            ideal = dcg(sorted(known, reverse=True), k)
            values[name] = sum(gains) / n * dcg([1.0] * n, k) / ideal if ideal > 0 and n else 0.0
        else:
            values[name] = _random_hits(kind, n, p, relevant, k) if p else 0.0
    return values


@lru_cache(maxsize=None)
def _random_hits(kind: str, n: int, p: int, relevant: int, k: int) -> float:
    """Return the expectation of a metric of binary relevance over the first k ranks.

    Of the n candidates p are relevant; in all, `relevant` documents are.
    """
    at = min(k, n)
    # The probability that no relevant candidate is among the first r.
    missed = lambda r: math.comb(n - p, r) / math.comb(n, r)  # noqa: E731
    if kind == "MRR":
        return sum((missed(r - 1) - missed(r)) / r for r in range(1, at + 1))
    if kind == "AP":  # above a relevant candidate at rank r stand (r-1)(p-1)/(n-1) others on average
        return sum((1 + (r - 1) * (p - 1) / max(n - 1, 1)) / r for r in range(1, at + 1)) * p / n / relevant
    if kind == "Hit":
        return 1 - missed(at)
    return p * at / n / (relevant if kind == "Recall" else k)


def mean(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the mean of each metric over rows with the same metrics."""
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
