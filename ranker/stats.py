"""Paired statistics over queries: a sign-flip randomization test and a bootstrap interval, seeded, in numpy."""

from collections.abc import Sequence

import numpy as np

SAMPLES = 10_000


def randomization_p(differences: Sequence[float], seed: int = 0, samples: int = SAMPLES) -> float:
    """Two-sided p of a paired randomization test: how often random signs give a mean at least as far from zero."""
    differences = np.asarray(differences, dtype=float)
    rng = np.random.default_rng(seed)
    observed, beyond = abs(differences.sum()), 0
    for start in range(0, samples, 1000):
        signs = rng.integers(0, 2, size=(min(1000, samples - start), len(differences))) * 2 - 1
        beyond += int((abs(signs @ differences) >= observed - 1e-12).sum())
    return (beyond + 1) / (samples + 1)


def bootstrap_interval(values: Sequence[float], seed: int = 0, samples: int = SAMPLES, level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean."""
    values = np.asarray(values, dtype=float)
    rng = np.random.default_rng(seed)
    means = np.concatenate([values[rng.integers(0, len(values), size=(min(1000, samples - s), len(values)))].mean(1)
                            for s in range(0, samples, 1000)])
    tail = (1 - level) / 2 * 100
    return float(np.percentile(means, tail)), float(np.percentile(means, 100 - tail))
