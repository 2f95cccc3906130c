"""What a split into halves is worth (ours): the share of the better half that an answer to `narrow` keeps.

Of candidates of equal relevance at the border any may be kept: the relevance that is kept is compared, from that of the
worst choice (0) to that of the best (1). Where all choices are as good, every answer earns 1, so its group is dead. An
answer that cannot be read is worth -1.
"""

from dataclasses import dataclass

from ranker.data import Answer, Ask, Group
from ranker.decisions.narrow import half
from ranker.errors import UserError

TASK = True


@dataclass
class Options:
    pass


def reward(groups: list[Group], options: Options) -> list[list[float]]:
    """Return one number per completion of each group: -1, or a share in [0, 1]."""
    return [[kept(group.ask, c.answer) for c in group.completions] for group in groups]


def kept(ask: Ask, answer: Answer) -> float:
    if ask.decision != "narrow":
        raise UserError(f"reward 'half' judges asks to narrow the candidates, not to {ask.decision} (query"
                        f" '{ask.query.id}')")
    if not answer.ok:
        return -1.0
    ordered = sorted((ask.query.rel[c] for c in ask.left), reverse=True)
    best, worst = sum(ordered[:half(ask)]), sum(ordered[-half(ask):])
    found = sum(ask.query.rel[c] for c in answer.value)
    return (found - worst) / (best - worst) if best > worst else 1.0
