"""RLOO (arXiv 2402.14740): the baseline of a completion is the mean reward of the others of its cohort.

A completion is one action: the loss is minus its advantage times the log-probability of all its tokens, its mean one
over completions. No ratio and no clipping, so the first optimizer step of a rollout is exact and further ones are not;
`train.updates_per_rollout` and `train.minibatches` are best left at 1. With `beta` the reward pays beta times the
log-ratio of the completion to the reference.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ranker import credit, losses
from ranker.data import Group
from ranker.passes import Batch
from ranker.plugins import setting

UNIT, LEARNS_FROM, WHOLE_GROUPS, LEAST = "text", {"samples"}, False, 2


@dataclass
class Options:
    beta: float = setting(0.0, low=0.0)  # what a nat of log-ratio to the reference costs; 0 skips its pass
    min_spread: float = setting(1e-4, low=0.0)  # a cohort whose task rewards spread less is dead


def alive(groups: Sequence[Group], options: Options) -> None:
    found = credit.completions(groups)
    credit.mark(found, losses.live(credit.returns(found, "task"), credit.cohorts(found), options.min_spread))


def passes(options: Options) -> set[str]:
    return {"old", "reference"} if options.beta > 0 else set()


def targets(groups: Sequence[Group], options: Options) -> dict[str, float]:
    found = credit.completions(groups)
    earned = credit.returns(found)
    ratio = torch.tensor([(c.signals["old"] - c.signals["reference"]).sum().item() if c.alive and options.beta > 0
                          else 0.0 for c in found])  # [N]
    credit.spread(found, losses.leave_one_out(earned - options.beta * ratio, credit.cohorts(found)))
    kl = [r for r, c in zip(ratio.tolist(), found) if c.alive]
    return {"log_ratio": sum(kl) / len(kl)} if options.beta > 0 else {}


def loss(batch: Batch, options: Options) -> tuple[torch.Tensor, dict[str, float]]:
    logprob = (batch.logprobs * batch.mask).sum(-1)  # [N]
    return -(batch["advantage"][:, 0] * logprob).sum(), {"logprob": logprob.detach().sum().item()}
