"""Zooter's loss (arXiv 2311.08692): the KL between the router's distribution over candidates and a soft label.

The distribution is the softmax of the candidates' scores, which are the logits of their identifiers (draw
`identifiers`) or their texts' log-probabilities (draw `candidates`); the label is the reward `relevance`, scaled to sum
1, as the lesson `soft_labels` makes it. The paper prints KLD(Z, s), which leaves the direction open: `target_first` is
KL(s || Z), soft cross-entropy less the label's entropy; `policy_first` is KL(Z || s), which seeks a mode.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ranker import credit
from ranker.data import Group
from ranker.errors import UserError
from ranker.passes import Batch
from ranker.plugins import setting

UNIT, LEARNS_FROM, WHOLE_GROUPS, LEAST = "group", {"candidates"}, True, 2


@dataclass
class Options:
    kl: str = setting("target_first", choices=("target_first", "policy_first"))


def alive(groups: Sequence[Group], options: Options) -> None:
    """Candidates are learned from; the written list of the draw `identifiers`, which nobody rewards, is not."""
    found = credit.completions(groups)
    credit.mark(found, ~credit.returns(found, "task").isnan())


def passes(options: Options) -> set[str]:
    return set()


def targets(groups: Sequence[Group], options: Options) -> dict[str, float]:
    """Give every candidate its share of the label."""
    for group in groups:
        taught = [c for c in group.completions if c.alive]
        total = sum(c.returns["task"] for c in taught)
        if taught and not total > 0:
            raise UserError(f"objective.name=zooter: the candidates of query '{group.ask.query.id}' are worth {total:g}"
                            " together; a label needs shares that sum to 1")
        for c in taught:
            c.advantage = c.returns["task"] / total
            c.signals["label"] = torch.full((len(c.ids),), c.advantage)
    return {}


def loss(batch: Batch, options: Options) -> tuple[torch.Tensor, dict[str, float]]:
    labels, scores = batch["label"][:, 0], batch.scores  # [N]
    kl, right = scores.new_zeros(()), 0
    for group in batch.groups:
        kl = kl + divergence(scores[group].log_softmax(0), labels[group], options.kl)
        right += int(labels[group][scores[group].argmax()] == labels[group].max())
    return kl, {"kl_label": kl.item(), "right": float(right)}


def divergence(logs: torch.Tensor, label: torch.Tensor, kind: str) -> torch.Tensor:
    """Return KL(label || policy) or KL(policy || label) of log-probabilities [n] and a label [n] that sums to 1."""
    if kind == "target_first":
        return (torch.special.xlogy(label, label) - label * logs).sum()
    return (logs.exp() * (logs - label.clamp(min=1e-12).log())).sum()
