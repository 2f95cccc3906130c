"""The reward of Rank-R1 (arXiv 2503.06034): 1 for `[i]` of the best candidate in the exact form, else 0.

As published nothing is negative: a broken form, an answer with one word more and a wrong candidate are all worth 0. The
published comparison ignores case, which numbers do not have; the tags are those that the prompt names. Ours: of several
candidates of the pool's best grade each is right.
"""

from dataclasses import dataclass

from ranker.answers import span
from ranker.data import Ask, Completion, Group
from ranker.errors import UserError
from .format import exact

TASK = True
WANTS_THOUGHT = True


@dataclass
class Options:
    pass


def reward(groups: list[Group], options: Options) -> list[list[float]]:
    """Return 0 or 1 per completion of each group."""
    return [[label_reward(group.ask, c) for c in group.completions] for group in groups]


def label_reward(ask: Ask, completion: Completion) -> float:
    if ask.decision != "pick":
        raise UserError("reward 'right_label' judges asks to pick the best, "
                        f"not to {ask.decision} (query '{ask.query.id}')")
    if not (completion.answer.ok and exact(completion.text)):
        return 0.0
    [named], rel = completion.answer.value, ask.query.rel
    return float(span(completion.text).strip() == f"[{ask.pool.index(named) + 1}]"
                 and rel[named] == max(rel[c] for c in ask.pool))
