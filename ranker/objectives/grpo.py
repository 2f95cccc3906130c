"""GRPO (arXiv 2402.03300): a completion's advantage is its reward minus its cohort's mean, the same for all its tokens.

Only cohorts whose task rewards spread are learned from: form must not revive a cohort in which every ranking was as
good.
"""

from dataclasses import dataclass
from collections.abc import Sequence

import torch

from ranker import credit, losses
from ranker.data import Group
from ranker.passes import Batch
from ranker.plugins import setting

UNIT, LEARNS_FROM, WHOLE_GROUPS, LEAST = "token", {"samples"}, False, 2


@dataclass
class Options:
    advantage: str = setting("mean", choices=("mean", "std"))  # std: divided by the cohort's deviation
    min_spread: float = setting(1e-4, low=0.0)  # a cohort whose task rewards spread less is dead
    clip_low: float = setting(0.2, low=0.0, high=1.0)
    clip_high: float = setting(0.2, low=0.0)
    kl: str = setting("k2", choices=("k2", "k3"))
    beta: float = setting(0.0, low=0.0)  # weight of the KL to the reference; 0 skips its pass


def alive(groups: Sequence[Group], options: Options) -> None:
    found = credit.completions(groups)
    credit.mark(found, losses.live(credit.returns(found, "task"), credit.cohorts(found), options.min_spread))


def passes(options: Options) -> set[str]:
    return {"reference"} if options.beta > 0 else set()


def targets(groups: Sequence[Group], options: Options) -> dict[str, float]:
    found = credit.completions(groups)
    credit.spread(found, losses.cohort_advantages(credit.returns(found), credit.cohorts(found), options.advantage))
    return {}


def loss(batch: Batch, options: Options) -> tuple[torch.Tensor, dict[str, float]]:
    return losses.policy_loss(
        batch.logprobs, batch.get("old", batch.logprobs.detach()), batch["advantage"], batch.mask,
        clip_low=options.clip_low, clip_high=options.clip_high, beta=options.beta, kl=options.kl,
        reference=batch.get("reference"))
