"""Online DPO (arXiv 2305.18290; online: arXiv 2402.04792): the best completion of a group against its worst.

The loss of a pair is -log sigmoid(beta * ((lw - ll) - (lw_ref - ll_ref))), sums of log-probabilities of all tokens, end
token included; its mean is one over pairs. A pair is kept where the returns of the two differ by more than `margin`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ranker import credit, losses
from ranker.data import Group
from ranker.passes import Batch
from ranker.plugins import setting

UNIT, LEARNS_FROM, WHOLE_GROUPS, LEAST = "group", {"samples"}, True, 2


@dataclass
class Options:
    beta: float = setting(0.1, low=1e-9)  # how sharply the margin to the reference counts
    margin: float = setting(1e-4, low=0.0)  # by which the better return must be ahead


def alive(groups: Sequence[Group], options: Options) -> None:
    for group in groups:
        scored = [c for c in group.completions if c.returns["total"] == c.returns["total"]]  # NaN is not
        for c in group.completions:
            c.alive = False
        if pair := (max(scored, key=total), min(scored, key=total)) if scored else ():
            if total(pair[0]) - total(pair[1]) > options.margin and pair[0].ids != pair[1].ids:
                pair[0].alive = pair[1].alive = True


def total(completion) -> float:
    return completion.returns["total"]


def passes(options: Options) -> set[str]:
    return {"reference"}


def targets(groups: Sequence[Group], options: Options) -> dict[str, float]:
    """Call the better one of a pair +1 and the other -1."""
    pairs = [sorted((c for c in group.completions if c.alive), key=total) for group in groups]
    for worse, better in filter(None, pairs):
        for c, sign in ((worse, -1.0), (better, 1.0)):
            c.signals["sign"], c.advantage = torch.full((len(c.ids),), sign), sign
    return {"pairs": float(len(list(filter(None, pairs))))}


def loss(batch: Batch, options: Options) -> tuple[torch.Tensor, dict[str, float]]:
    signs = batch["sign"][:, 0]  # [N]
    ahead = ((batch.logprobs - batch["reference"]) * batch.mask).sum(-1) * signs  # [N]
    margins = torch.stack([ahead[group].sum() for group in batch.groups])  # [pairs]
    return losses.dpo_loss(margins, options.beta).sum(), {
        "margin": margins.detach().sum().item(), "right": (margins > 0).sum().item()}
