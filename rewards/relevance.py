"""The relevance of the one candidate that a completion names: what `rollout.states: identifiers` teaches by `objectives/ranknet.py`.

A completion that names several, such as the written list, has none (NaN, unscored).
"""

import math

from ranker.data import Group

TASK = True


def reward(groups: list[Group]) -> list[list[float]]:
    """The relevance as it stands in the data, or NaN."""
    return [[group.ask.query.rel[c.answer.value[0]] if len(c.answer.value) == 1 else math.nan for c in group.completions] for group in groups]
