"""The step reward of IRanker (arXiv 2506.21638 section 3.2): the one candidate that an ask names is right or not.

Published: +1 for dropping a negative, 0 for the positive, -0.5 for something that is no candidate, -1 for no answer.
Ours for graded relevance: an elimination is right when nothing that stays is less relevant, a pick when nothing is
more relevant; with one positive that is the published reward. Of several eliminated the best one counts, against those
that stay: the k least relevant earn the most, for every k and in any order. `graded: true` scales linearly between the
worst and the best of these instead.
"""

from dataclasses import dataclass

from ranker.data import Answer, Ask, Group
from ranker.errors import UserError
from ranker.plugins import setting

TASK = True  # its spread within a group decides whether the group teaches anything

NO_CANDIDATE, NO_ANSWER = -0.5, -1.0


@dataclass
class Options:
    graded: bool = setting(False)  # scale between the worst and the best, see above


def reward(groups: list[Group], options: Options) -> list[list[float]]:
    """Return one number per completion of each group, in [-1, 1]."""
    return [[step_reward(group.ask, c.answer, options.graded) for c in group.completions] for group in groups]


def step_reward(ask: Ask, answer: Answer, graded: bool = False) -> float:
    """Return the reward of an answer to an ask. Raise UserError for other decisions than eliminate and pick."""
    if ask.decision not in ("eliminate", "pick"):
        raise UserError("reward 'top1_hit' judges asks that name one candidate (eliminate, pick), "
                        f"not '{ask.decision}'")
    if answer.status in ("missing_answer", "truncated"):
        return NO_ANSWER
    if not answer.ok:
        return NO_CANDIDATE
    named = max(ask.query.rel[c] for c in answer.value)
    compared = [named, *(ask.query.rel[c] for c in ask.left if c not in answer.value)]  # with one named: all
    low, high = min(compared), max(compared)
    if ask.decision == "eliminate":
        named, low, high = -named, -high, -low
    if graded:
        return (named - low) / (high - low) if high > low else 1.0
    return float(named >= high)
