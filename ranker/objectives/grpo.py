"""GRPO (arXiv 2402.03300): a completion's advantage is its reward minus its cohort's mean, the same for all its tokens."""

import torch

from ranker import losses
from ranker.config import Train

# Beside log-probabilities: `reference`, those of the reference (with a beta); `critic`, a value head; `answer`, which tokens are
# the answer's; `cohort`, whose completion one is.
NEEDS = {"reference"}
Tensors = dict[int, torch.Tensor]  # completion -> one number per token


def credit(train: Train, total: torch.Tensor, task: torch.Tensor, cohorts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Per completion [N]: its advantage, and whether it teaches anything.

    The task part alone decides that: form must not revive a cohort in which every ranking was as good.
    """
    alive = losses.live(task, cohorts, train.min_spread)
    return losses.cohort_advantages(total, cohorts, train.advantage), alive


def signals(train: Train, credit: Tensors, before: dict[str, Tensors]) -> tuple[dict[str, Tensors], dict[str, float]]:
    """What the loss needs per token, and what to log. `credit`: completion -> its advantage, repeated for each token."""
    return before | {"advantage": credit}, {}


def loss(train: Train, step: int, logprobs: torch.Tensor, values: None, mask: torch.Tensor, signal: dict[str, torch.Tensor],
         denominator: int) -> tuple[torch.Tensor, dict[str, float]]:
    """The loss of one micro-batch and sums over its tokens; logprobs, mask and each signal [N, T]."""
    return losses.policy_loss(
        logprobs, signal.get("old", logprobs.detach()), signal["advantage"], mask, denominator, clip_low=train.clip_low,
        clip_high=train.clip_high, beta=train.beta, kl=train.kl, reference=signal.get("reference"))
