"""Supervised fine-tuning on completions worth imitating: the best of every cohort, if its task reward is high enough.

On the policy's own samples that is rejection sampling; on recorded traces (draw `recorded`, cohorts of one) it is a
cold start, with the same filter: ReasonRank (arXiv 2508.07050) drops lists below nDCG@10 0.4. Tokens of the thought
weigh `thought_weight`, those of the answer 1 (GR2, arXiv 2602.07774: reasoning weighs less than ranking).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ranker import credit
from ranker.data import Group
from ranker.passes import Batch
from ranker.plugins import setting

UNIT, LEARNS_FROM, WHOLE_GROUPS, LEAST = "token", {"samples", "texts"}, False, 1


@dataclass
class Options:
    keep_above: float = setting(0.0)  # the least task reward of what is imitated
    thought_weight: float = setting(1.0, low=0.0)  # of the tokens before the answer


def alive(groups: Sequence[Group], options: Options) -> None:
    """Of equally good completions of a cohort the one with the better form, then the first, is imitated."""
    found = credit.completions(groups)
    task, total, cohorts = credit.returns(found, "task"), credit.returns(found), credit.cohorts(found)
    ranked = torch.where(task.isnan() | (task < options.keep_above), -torch.inf,
                         task + 1e-6 * total.nan_to_num(nan=0.0))
    kept = torch.zeros(len(task), dtype=torch.bool)
    for cohort in cohorts.unique().tolist():
        members = (cohorts == cohort).nonzero()[:, 0]
        best = members[ranked[members].argmax()]
        kept[best] = ranked[best] > -torch.inf
    credit.mark(found, kept)


def passes(options: Options) -> set[str]:
    return {"answer"}


def targets(groups: Sequence[Group], options: Options) -> dict[str, float]:
    """Weigh every token, as its advantage: answers 1, thoughts `thought_weight`."""
    for c in credit.completions(groups):
        if c.alive:
            c.signals["weight"] = options.thought_weight + (1 - options.thought_weight) * c.signals["answer"]
            c.advantage = c.signals["weight"].mean().item()
    return {}


def loss(batch: Batch, options: Options) -> tuple[torch.Tensor, dict[str, float]]:
    """Return the weighted cross-entropy."""
    return -(batch.logprobs * batch["weight"] * batch.mask).sum(), {
        "nll": -(batch.logprobs.detach() * batch.mask).sum().item()}
