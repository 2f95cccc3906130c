"""Rewards -> advantages -> loss, as pure functions of tensors. Nothing here knows a model.

Shapes: rewards [groups, G]; everything per token [N, T] with a 0/1 mask of the same shape.

Decisions a reader could doubt:
- Advantages are mean-only by default. nDCG-like rewards can have a tiny spread, and dividing by it makes noise
  into +-1 (Dr. GRPO, arXiv 2503.20783).
- The denominator counts the tokens of the whole optimizer step, not of one micro-batch (DAPO, arXiv 2503.14476):
  1x8 and 8x1 give the same gradient.
- The KL is added to the loss that is minimised. As a loss on the policy's own samples, k2 = D^2/2 has the gradient of
  KL(policy, reference), raw k3 has that of KL(reference, policy); `k3` here is ratio-corrected, which mends it.
"""

import torch

Tensor = torch.Tensor
MAX_LOG_RATIO = 20.0  # one token must not dominate exp()


def live_groups(task_rewards: Tensor, min_spread: float) -> Tensor:
    """[groups] bool: groups whose task reward spreads by more than `min_spread`; NaN (unscored) is left out."""
    low = task_rewards.nan_to_num(nan=torch.inf).amin(-1)
    high = task_rewards.nan_to_num(nan=-torch.inf).amax(-1)
    return high - low > min_spread


def group_advantages(rewards: Tensor, kind: str = "mean") -> Tensor:
    """[groups, G]: reward minus the group's mean, for `std` divided by its population deviation + 1e-4.

    NaN rewards (unscored) are left out of mean and deviation and get advantage 0.
    """
    scored = ~rewards.isnan()
    count = scored.sum(-1, keepdim=True).clamp(min=1)
    values = rewards.nan_to_num(nan=0.0)
    mean = (values * scored).sum(-1, keepdim=True) / count
    centred = (values - mean) * scored
    if kind == "mean":
        return centred
    deviation = (centred.square().sum(-1, keepdim=True) / count).sqrt()
    return centred / (deviation + 1e-4)


def kl_terms(logprobs: Tensor, reference: Tensor, ratio: Tensor, kind: str) -> Tensor:
    """Per-token KL loss [N, T]: `k2`, or `k3` corrected by the (differentiable) ratio policy / sampler."""
    difference = (logprobs - reference).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    if kind == "k2":
        return difference.square() / 2
    return ratio * ((-difference).exp() + difference - 1)


def policy_loss(logprobs: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, denominator: float, *,
                clip_low: float = 0.2, clip_high: float = 0.2, reference: Tensor | None = None, beta: float = 0.0,
                kl: str = "k2") -> tuple[Tensor, dict[str, float]]:
    """The clipped surrogate with its KL term, summed over the mask and divided by `denominator`.

    `old` are the log-probabilities the completions were sampled under, scored in the training graph; `advantages` is
    [N, 1] or [N, T]; `denominator` is the number of loss tokens of the whole optimizer step. Also returns sums over
    the mask (not means), so that micro-batches can be added up.
    """
    ratio = (logprobs - old).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()  # [N, T]
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    loss = -torch.minimum(ratio * advantages, clipped * advantages)
    sums = {
        "clip_low": ((ratio < 1 - clip_low) & (advantages < 0)),
        "clip_high": ((ratio > 1 + clip_high) & (advantages > 0)),
    }
    if reference is not None:
        loss = loss + beta * kl_terms(logprobs, reference, ratio, kl)
        difference = (logprobs - reference).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        sums["kl"] = (-difference).exp() + difference - 1  # k3: unbiased and never negative, the one to read
    return (loss * mask).sum() / denominator, {k: (v.detach() * mask).sum().item() for k, v in sums.items()}
