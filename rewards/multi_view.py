"""The reward of ReasonRank (arXiv 2508.07050): nDCG@10 + phi * Recall@10 + gamma * RBO of a list in the exact form.

As published a completion without that form is worth -1, and one whose answer is no ranking 0. Published code took
counts for that, so that three good identifiers among foreign ones earned 1.24 of 1.3; here every candidate stands in
the list once.

RBO compares with a teacher's order, which here is that of the relevance. Candidates of equal relevance stand in it as
they do in the answer: the teacher has nothing to say about them, and neither their order in the prompt nor that in the
data may earn anything. So every perfect list earns 1 + phi + gamma. With `rbo_p` 1 RBO is the average overlap, which
the published code computes; below 1 it is the paper's formula, cut at the length of the list (1 is then out of reach).
nDCG has linear gain and, as Recall, knows the pool alone; Recall counts its best grade. A pool in which nothing is
relevant pays all rankings the same, so its group teaches nothing and is counted as such.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ranker import metrics
from ranker.data import Ask, Completion, Group
from ranker.errors import UserError
from ranker.plugins import setting
from .format import exact

TASK = True
WANTS_THOUGHT = True


@dataclass
class Options:
    phi: float = setting(0.2, low=0.0)  # weight of Recall@10
    gamma: float = setting(0.1, low=0.0)  # weight of the overlap with the right order
    rbo_p: float = setting(1.0, low=1e-9, high=1.0)  # persistence of that overlap; 1: the average overlap


def reward(groups: list[Group], options: Options) -> list[list[float]]:
    """Return one number per completion of each group, in [-1, 1 + phi + gamma]."""
    weights = options.phi, options.gamma, options.rbo_p
    return [[list_reward(group.ask, c, *weights) for c in group.completions] for group in groups]


def list_reward(ask: Ask, completion: Completion, phi: float, gamma: float, rbo_p: float) -> float:
    if ask.decision != "order":
        raise UserError("reward 'multi_view' judges asks to order candidates, "
                        f"not to {ask.decision} (query '{ask.query.id}')")
    if not exact(completion.text):
        return -1.0
    if not completion.answer.ok:
        return 0.0
    order, rel = completion.answer.value, ask.query.rel
    return views(order, sorted(order, key=lambda c: -rel[c]), rel, phi, gamma, rbo_p)  # stable: ties as in the answer


def views(order: Sequence, gold: Sequence, rel: Mapping, phi: float, gamma: float, rbo_p: float) -> float:
    """Return the weighted sum for an order, a teacher's order of the same candidates, and their relevance."""
    found = metrics.of([rel[c] for c in order], names=("nDCG@10", "Recall@10"))
    return found["nDCG@10"] + phi * found["Recall@10"] + gamma * rbo(order, gold, rbo_p)


def rbo(order: Sequence, gold: Sequence, p: float = 1.0) -> float:
    """Return the rank-biased overlap of two orders of the same candidates; for p = 1 the average overlap."""
    overlaps = [len({*order[:d]} & {*gold[:d]}) / d for d in range(1, len(gold) + 1)]
    return (sum(overlaps) / len(overlaps) if p == 1
            else (1 - p) * sum(p**i * overlap for i, overlap in enumerate(overlaps)))
