"""Position bias: how well candidates are ranked by where in the prompt the right one was shown.

A ranker without bias is as good wherever the right candidate stands. With `--orders K` every query is ranked in K
random orders, so a query's difficulty does not decide where its right candidate is shown.
"""

from collections.abc import Sequence

import numpy as np

from ranker import metrics
from ranker.drive import Ranking

PARTS = ("first third", "middle third", "last third")


def by_place(rankings: Sequence[Ranking], metric: str, level: float = 0.0) -> dict[str, tuple[float, int]]:
    """Return part of the list shown -> (mean of `metric`, rankings), by the place of the first of the best candidates.

    A part that no right candidate was shown in is missing. Of n candidates the one at place i (from 0) stands in part
    3 * i // n.
    """
    rankings = [r for r in rankings if r.query.labelled]
    if not rankings:
        return {}
    values = np.asarray(metrics.compute([metric], [r.gains for r in rankings], None, level)[metric])
    part = np.array([3 * min(map(r.query.ids.index, r.query.positives)) // len(r.query.ids) for r in rankings])
    return {name: (float(values[part == i].mean()), int((part == i).sum()))
            for i, name in enumerate(PARTS) if (part == i).any()}


def table_lines(found: dict[str, dict[str, tuple[float, int]]], metric: str) -> tuple[list[str], list[list[str]]]:
    """Return the header and the lines of a table from row name -> `by_place`."""
    lines = []
    for name, parts in found.items():
        values = [parts[p][0] for p in PARTS if p in parts]
        lines.append([name, *(f"{parts[p][0]:.3f}" if p in parts else "" for p in PARTS),
                      f"{max(values) - min(values):.3f}"])
    return [f"{metric} by where the right one was shown", *PARTS, "most - least"], lines
