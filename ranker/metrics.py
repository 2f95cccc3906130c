"""Metrics of rankings, many at a time, and their exact expectation under a random order.

A ranking is given as the relevance of its candidates, best-ranked first; relevance may be graded or real-valued.

- `nDCG`, `nDCG@k`: linear gain, `rel / log2(rank + 1)`; the ideal is over all that is judged.
- `MRR`, `AP`, `Hit`, `Recall`, `P` (each also `@k`) count a candidate as relevant from `level` on. Level 0 means the
  query's best grade, so that ties at the top (two models of equal utility) are all relevant.
- What is judged are the candidates themselves ("within candidates"), unless all judgements of a query are given.

With those, and a level, every value is trec_eval's: `recip_rank`, `ndcg_cut_k`, `map_cut_k`, `success_k`, `recall_k`,
`P_k`.
"""

import math
import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain

import numpy as np

from ranker.errors import UserError, nearest

NAMES = ("MRR", "nDCG@1", "nDCG@5", "nDCG@10", "nDCG@20", "Hit@1", "Hit@5", "Hit@10")  # what tables show by default
ALIASES = {"mrr": "MRR", "rr": "MRR", "reciprank": "MRR", "ndcg": "nDCG", "ndcgcut": "nDCG", "ap": "AP", "map": "AP",
           "mapcut": "AP", "hit": "Hit", "hr": "Hit", "hitrate": "Hit", "success": "Hit", "recall": "Recall",
           "r": "Recall", "p": "P", "precision": "P"}
NEED_K = ("Hit", "Recall", "P")


def canonical(name: str) -> str:
    """`ndcg_cut_10` -> `nDCG@10`, `hr@1` -> `Hit@1`, `recip_rank` -> `MRR`. Raises UserError."""
    word, k = re.fullmatch(r"(.*?)(?:[@_.]?(\d+))?", name.strip(), re.DOTALL).groups()
    kind = ALIASES.get(re.sub(r"[_\s]", "", word).lower())
    if kind is None or (k is None and kind in NEED_K) or (k is not None and not 1 <= int(k) <= 1_000_000):
        raise UserError("unknown metric "
                        f"'{name}'{nearest(name, [*NAMES, 'nDCG', 'AP', 'AP@10', 'MRR@10', 'Recall@10', 'P@10'])}")
    return f"{kind}@{int(k)}" if k else kind


def compute(names: Sequence[str], gains: Sequence[Sequence[float]], judged: Sequence[Sequence[float]] | None = None,
            level: float = 0.0) -> dict[str, np.ndarray]:
    """Every metric of every ranking, name -> [Q]. `judged[q]` is the relevance of all that was judged for query q.

    0 for a query without anything relevant, and for an empty ranking. Negative grades gain nothing.
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
    """The metrics of one ranking."""
    return {name: float(values[0]) for name, values in compute(names, [gains], level=level).items()}


def dcg(gains: Sequence[float], k: int) -> float:
    return sum(gain / math.log2(i + 2) for i, gain in enumerate(gains[:k]))


def _dcg(gains: np.ndarray) -> np.ndarray:
    """[Q, k] -> [Q], added from the first rank on, as trec_eval does."""
    return _last(np.cumsum(gains / np.log2(np.arange(2, gains.shape[1] + 2)), 1))


def _last(sums: np.ndarray) -> np.ndarray:
    return sums[:, -1] if sums.shape[1] else np.zeros(len(sums))


def _padded(lists: Sequence[Sequence[float]]) -> np.ndarray:
    """Lists -> [Q, longest], 0 behind their ends and in place of negative values."""
    lengths = np.fromiter(map(len, lists), int, len(lists))
    matrix = np.zeros((len(lists), lengths.max(initial=0)))
    matrix[np.arange(matrix.shape[1]) < lengths[:, None]] = np.fromiter(chain.from_iterable(lists), float,
                                                                        lengths.sum())
    return np.maximum(matrix, 0.0)


def random_order(gains: Sequence[float], level: float = 0.0, names: Sequence[str] = NAMES,
                 judged: Sequence[float] | None = None) -> dict[str, float]:
    """The exact expectation of every metric over all orders of `gains`."""
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
    """Expectation over the first k ranks of a metric that knows relevant and not: p of n candidates, of `relevant` in
    all."""
    at = min(k, n)
    missed = lambda r: math.comb(n - p, r) / math.comb(n, r)  # noqa: E731  no relevant one in the first r
    if kind == "MRR":
        return sum((missed(r - 1) - missed(r)) / r for r in range(1, at + 1))
    if kind == "AP":  # a relevant one at rank r has (r-1)(p-1)/(n-1) others above it
        return sum((1 + (r - 1) * (p - 1) / max(n - 1, 1)) / r for r in range(1, at + 1)) * p / n / relevant
    if kind == "Hit":
        return 1 - missed(at)
    return p * at / n / (relevant if kind == "Recall" else k)


def mean(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
