"""PPO (arXiv 1707.06347), the optimiser of R1-Ranker: a value head predicts the reward, GAE makes advantages per token.

Decisions a reader could doubt:
- The value head reads the policy's own hidden states, detached: it learns from the policy's features and does not bend
  them, so its learning rate is free and the policy does not move while the values warm up.
- The reward stands on the last token. With `kl_in: reward` each token also pays beta times its log-ratio to the
  reference; with `kl_in: loss` the KL is a term of the loss. Never both.
- Every completion takes part: there is no cohort to compare it with.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ranker import credit, losses
from ranker.data import Group
from ranker.passes import Batch
from ranker.plugins import setting

UNIT, LEARNS_FROM, WHOLE_GROUPS, LEAST = "token", {"samples"}, False, 1


@dataclass
class Options:
    value_lr: float = setting(low=1e-12)  # of the value head, such as 1e-2
    value_warmup: int = setting(0, low=0)  # steps in which only the values learn
    value_clip: float = setting(0.2, low=0.0)
    gamma: float = setting(1.0, low=0.0, high=1.0)  # of GAE, per token
    gae_lambda: float = setting(1.0, low=0.0, high=1.0)
    clip_low: float = setting(0.2, low=0.0, high=1.0)
    clip_high: float = setting(0.2, low=0.0)
    kl: str = setting("k2", choices=("k2", "k3"))
    beta: float = setting(0.0, low=0.0)  # weight of the KL to the reference; 0 skips its pass
    kl_in: str = setting("loss", choices=("loss", "reward"))  # where that KL counts


def parameters(policy, options: Options) -> dict[str, tuple[torch.nn.Module, float]]:
    """Return a value head that starts by predicting zero."""
    critic = torch.nn.Linear(policy.head.weight.shape[-1], 1, device=policy.device, dtype=torch.float32)
    torch.nn.init.zeros_(critic.weight), torch.nn.init.zeros_(critic.bias)
    return {"critic": (critic, options.value_lr)}


def adapter_waits(options: Options) -> int:
    return options.value_warmup


def alive(groups: Sequence[Group], options: Options) -> None:
    found = credit.completions(groups)
    credit.mark(found, ~credit.returns(found).isnan())


def passes(options: Options) -> set[str]:
    return {"old", "value"} | ({"reference"} if options.beta > 0 else set())


def targets(groups: Sequence[Group], options: Options) -> dict[str, float]:
    """Set advantages (whitened over the step) and returns per token, from rewards and values."""
    taught = [c for c in credit.completions(groups) if c.alive]
    lengths = torch.tensor([len(c.ids) for c in taught])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]  # [N, T]
    stacked = lambda name: torch.zeros(mask.shape).masked_scatter(  # noqa: E731
        mask, torch.cat([c.signals[name].float().cpu() for c in taught]))
    last = torch.nn.functional.one_hot(lengths - 1, mask.shape[1])
    rewards = credit.returns(taught)[:, None] * mask * last
    if options.kl_in == "reward" and options.beta > 0:
        rewards -= options.beta * (stacked("old") - stacked("reference"))
    values = stacked("value")
    advantages, returns = losses.gae(rewards, values, mask, options.gamma, options.gae_lambda)
    advantages = losses.whiten(advantages, mask)
    for c, advantage, earned, length in zip(taught, advantages, returns, lengths):
        c.signals["advantage"], c.signals["return"] = advantage[:length], earned[:length]
        c.advantage = advantage[:length].mean().item()
    return {"explained_variance": losses.explained_variance(values[mask], returns[mask])}


def loss(batch: Batch, options: Options) -> tuple[torch.Tensor, dict[str, float]]:
    """Return the value loss and, behind its warm-up, the policy's."""
    critic, parts = losses.value_loss(batch.values, batch["value"], batch["return"], batch.mask,
                                      clip=options.value_clip)
    if batch.step <= options.value_warmup:
        return critic, parts
    policy, more = losses.policy_loss(
        batch.logprobs, batch["old"], batch["advantage"], batch.mask, clip_low=options.clip_low,
        clip_high=options.clip_high, beta=options.beta if options.kl_in == "loss" else 0.0, kl=options.kl,
        reference=batch.get("reference"))
    return policy + critic, parts | more
