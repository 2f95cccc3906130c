"""PPO (arXiv 1707.06347), the optimiser of R1-Ranker: a value head predicts the reward, GAE makes advantages per token.

Decisions a reader could doubt:
- The value head reads the policy's own hidden states, detached: it learns from the policy's features and does not bend
  them, so its learning rate is free and the policy does not move while the values warm up.
- The reward stands on the last token. With `kl_in: reward` each token also pays beta times its log-ratio to the
  reference; with `kl_in: loss` the KL is a term of the loss. Never both.
- Every completion takes part: there is no cohort to compare it with.
"""

import torch

from ranker import losses
from ranker.config import Train
from ranker.objectives.grpo import Tensors

NEEDS = {"reference", "critic"}


def credit(train: Train, total: torch.Tensor, task: torch.Tensor, cohorts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Per completion [N]: its reward, and whether there is one."""
    return total.nan_to_num(nan=0.0), ~total.isnan()


def signals(train: Train, credit: Tensors, before: dict[str, Tensors]) -> tuple[dict[str, Tensors], dict[str, float]]:
    """Advantages (whitened) and returns per token from rewards and values. `credit`: completion -> its reward."""
    keys = list(credit)
    lengths = torch.tensor([len(credit[k]) for k in keys])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]  # [N, T]
    stacked = lambda tensors: torch.zeros(mask.shape).masked_scatter(mask, torch.cat([tensors[k].float().cpu() for k in keys]))  # noqa: E731
    last = torch.nn.functional.one_hot(lengths - 1, mask.shape[1])
    rewards = stacked(credit) * last
    if train.kl_in == "reward" and train.beta > 0:
        rewards -= train.beta * (stacked(before["old"]) - stacked(before["reference"]))
    values = stacked(before["value"])
    advantages, returns = losses.gae(rewards, values, mask, train.gamma, train.gae_lambda)
    cut = lambda tensor: {k: row[:n].to(credit[k].device) for k, row, n in zip(keys, tensor, lengths)}  # noqa: E731
    found = {"advantage": cut(losses.whiten(advantages, mask)), "return": cut(returns)}
    return before | found, {"explained_variance": losses.explained_variance(values[mask], returns[mask])}


def loss(train: Train, step: int, logprobs: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, signal: dict[str, torch.Tensor],
         denominator: int) -> tuple[torch.Tensor, dict[str, float]]:
    """The loss of one micro-batch and sums over its tokens; all tensors [N, T]. Only the values learn in the warm-up."""
    critic, parts = losses.value_loss(values, signal["value"], signal["return"], mask, denominator, train.value_clip)
    if step <= train.value_warmup:
        return critic, parts
    policy, more = losses.policy_loss(
        logprobs, signal["old"], signal["advantage"], mask, denominator, clip_low=train.clip_low, clip_high=train.clip_high,
        beta=train.beta if train.kl_in == "loss" else 0.0, kl=train.kl, reference=signal.get("reference"))
    return policy + critic, parts | more
