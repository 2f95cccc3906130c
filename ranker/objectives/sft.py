"""Supervised fine-tuning on completions worth imitating: of every group the best one, if its task reward reaches `train.keep_above`.

On the policy's own samples that is rejection sampling; on recorded traces (`rollout.states: recorded`, groups of one) it
is a cold start, with the same filter: ReasonRank (arXiv 2508.07050) drops lists below nDCG@10 0.4. Tokens of the thought
weigh `train.thought_weight`, those of the answer 1 (GR2, arXiv 2602.07774: reasoning weighs less than ranking).
"""

import torch

from ranker.config import Train
from ranker.objectives.grpo import Tensors

NEEDS = {"answer"}


def credit(train: Train, total: torch.Tensor, task: torch.Tensor, cohorts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Per completion [N]: 1, and whether it is imitated. Of equally good ones of a cohort the first."""
    ranked = torch.where(task.isnan() | (task < train.keep_above), -torch.inf, task + 1e-6 * total.nan_to_num(nan=0.0))
    kept = torch.zeros(len(task), dtype=torch.bool)
    for cohort in cohorts.unique().tolist():
        members = (cohorts == cohort).nonzero()[:, 0]
        best = members[ranked[members].argmax()]
        kept[best] = ranked[best] > -torch.inf
    return torch.ones_like(task), kept


def signals(train: Train, credit: Tensors, before: dict[str, Tensors]) -> tuple[dict[str, Tensors], dict[str, float]]:
    """The weight of every token. `before["answer"]`: 1 from the answer's opening tag on, else 0."""
    weights = {k: train.thought_weight + (1 - train.thought_weight) * before["answer"][k] for k in credit}
    return {"advantage": weights}, {}


def loss(train: Train, step: int, logprobs: torch.Tensor, values: None, mask: torch.Tensor, signal: dict[str, torch.Tensor],
         denominator: int) -> tuple[torch.Tensor, dict[str, float]]:
    """Weighted cross-entropy, divided by the tokens of the optimizer step; all tensors [N, T]."""
    return -(logprobs * signal["advantage"] * mask).sum() / denominator, {"nll": -(logprobs.detach() * mask).sum().item()}
