"""The step reward of IRanker (arXiv 2506.21638 section 3.2): the one candidate that an ask names is right or not.

Published: +1 for dropping a negative, 0 for the positive, -0.5 for something that is no candidate, -1 for no answer.
Ours for graded relevance: an elimination is right when nothing that stays is less relevant, a pick when nothing is
more relevant; with one positive that is the published reward. Of several eliminated the best one counts. `graded: true`
scales linearly between the pool's worst and best instead.
"""

from ranker.data import Answer, Ask, Group
from ranker.errors import UserError

TASK = True  # its spread within a group decides whether the group teaches anything

NO_CANDIDATE, NO_ANSWER = -0.5, -1.0


def reward(groups: list[Group], graded: bool = False) -> list[list[float]]:
    """One number per completion of each group, in [-1, 1]."""
    return [[step_reward(group.ask, c.answer, graded) for c in group.completions] for group in groups]


def step_reward(ask: Ask, answer: Answer, graded: bool = False) -> float:
    if ask.decision not in ("eliminate", "pick"):
        raise UserError(f"reward 'top1_hit' judges asks that name one candidate (eliminate, pick), not '{ask.decision}'")
    if answer.status in ("missing_answer", "truncated"):
        return NO_ANSWER
    if not answer.ok:
        return NO_CANDIDATE
    rel = [ask.query.rel[c] for c in ask.left if c not in answer.value[1:]]  # with one named: all
    named = max(ask.query.rel[c] for c in answer.value)
    low, high = min(named, *rel), max(named, *rel)
    if ask.decision == "eliminate":
        named, low, high = -named, -high, -low
    if graded:
        return (named - low) / (high - low) if high > low else 1.0
    return float(named >= high)
