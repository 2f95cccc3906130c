"""Paired statistics over queries, seeded: a sign-flip randomization test, a bootstrap interval, Holm's correction."""

from collections.abc import Sequence

import numpy as np

SAMPLES = 10_000  # sign flips of a test, resamples of an interval


def randomization_p(differences: Sequence[float], seed: int = 0, samples: int = SAMPLES) -> float:
    """Return the two-sided p of a paired randomization test: the share of random signs with a mean as far from zero."""
    differences = np.asarray(differences, dtype=float)
    rng = np.random.default_rng(seed)
    observed, beyond = abs(differences.sum()), 0
    for start in range(0, samples, 1000):
        signs = rng.integers(0, 2, size=(min(1000, samples - start), len(differences))) * 2 - 1
        beyond += int((abs(signs @ differences) >= observed - 1e-12).sum())
    return (beyond + 1) / (samples + 1)


def bootstrap_interval(values: Sequence[float], seed: int = 0, samples: int = SAMPLES,
                       level: float = 0.95) -> tuple[float, float]:
    """Return the percentile bootstrap interval (low, high) of the mean of `values` at confidence `level`."""
    values = np.asarray(values, dtype=float)
    rng = np.random.default_rng(seed)
    means = np.concatenate([values[rng.integers(0, len(values), size=(min(1000, samples - s), len(values)))].mean(1)
                            for s in range(0, samples, 1000)])
    tail = (1 - level) / 2 * 100
    return float(np.percentile(means, tail)), float(np.percentile(means, 100 - tail))


def holm(p: Sequence[float]) -> list[float]:
    """Return the p-values corrected for their number (Holm 1979), in the order given; raise ValueError for NaN."""
    if any(value != value for value in p):
        raise ValueError("a p-value is NaN")
    corrected, largest = [0.0] * len(p), 0.0
    for place, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        largest = max(largest, min((len(p) - place) * p[i], 1.0))
        corrected[i] = largest
    return corrected


def compare(differences: Sequence[float]) -> dict[str, float]:
    """Return statistics of paired differences, one per query.

    These are their number (`queries`), mean (`gain`), `p`, 95% interval (`low`, `high`), and how many are above, at and
    below zero (`wins`, `ties`, `losses`).
    """
    low, high = bootstrap_interval(differences)
    wins, losses = sum(d > 1e-12 for d in differences), sum(d < -1e-12 for d in differences)
    return {"queries": len(differences), "gain": sum(differences) / len(differences), "p": randomization_p(differences),
            "low": low, "high": high, "wins": wins, "ties": len(differences) - wins - losses, "losses": losses}
