"""The relevance of the one candidate that a completion names: what the draw `identifiers` teaches.

A completion that names several, such as the written list, has none (NaN, unscored).
"""

import math
from dataclasses import dataclass

from ranker.data import Group

TASK = True


@dataclass
class Options:
    pass


def reward(groups: list[Group], options: Options) -> list[list[float]]:
    """Return the relevance as it stands in the data, or NaN."""
    return [[group.ask.query.rel[c.answer.value[0]] if len(c.answer.value) == 1 else math.nan
             for c in group.completions] for group in groups]
