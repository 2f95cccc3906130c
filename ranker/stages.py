"""The stages of a run: stretches of steps with their own draw, reward and objective, such as a cold start and then RL.

Most runs have one. A later stage begins with the policy of the one before, which is its reference as well, and with an
optimizer that remembers nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from ranker import config as settings, plugins, rewarding
from ranker.engine import distributed
from ranker.engine.policy import Policy
from ranker.errors import UserError
from ranker.sources import Source


@dataclass
class Stage:
    """What a stretch of steps learns from and how."""

    first: int  # step
    config: settings.Config  # `train.steps` are the stage's own
    rewards: list[rewarding.Part]
    objective: plugins.Plugin
    draw: plugins.Plugin
    source: Source
    own: list[str] = field(default_factory=list)  # names of the objective's own parameters, in `policy.own`


def load(config: settings.Config, ranker: plugins.Plugin, source: Source, where: str) -> list[Stage]:
    """Return the stages of a config in order. Raise UserError for what is wrong with any of them."""
    found = []
    for first, now in settings.stages(config, where):
        if now.rollout.prompts_per_step % distributed.size():
            raise UserError(f"rollout.prompts_per_step ({now.rollout.prompts_per_step}) must be a multiple of the"
                            f" {distributed.size()} processes")
        objective, draw = (plugins.load(kind, getattr(now, kind), where) for kind in ("objective", "draw"))
        rewards = rewarding.load(now.reward, where) if objective.REWARDS else []
        rewarding.check(rewards, source.tasks if rewards else (), source.unlabelled, where)
        for part in rewards:
            part.plugin.fits(ranker)
        drawn = draw.source(source, ranker, now.run.seed)
        found.append(Stage(first, now, rewards, objective, draw, drawn))
    return found


def at(stages: Sequence[Stage], step: int) -> Stage:
    """Return the stage of a step."""
    return next(stage for stage in reversed(stages) if stage.first <= step)


def new_optimizer(config: settings.Train, policy: Policy, stages: Sequence[Stage]) -> torch.optim.Optimizer:
    """Return AdamW over the adapter and, in groups of their own, the parameters that objectives add to the policy.

    Raise UserError where two stages want the same parameters to begin differently: the later would go on with the
    earlier's.
    """
    begun: dict[str, tuple] = {}
    optimizer = torch.optim.AdamW(policy.adapter_parameters().values(), lr=config.lr, weight_decay=config.weight_decay)
    for stage in stages:
        for name, (module, rate) in stage.objective.parameters(policy).items():
            stage.own.append(name)
            begins = rate, *(value.detach().flatten().tolist() for value in module.parameters())
            if name == "scale" and begun.setdefault(name, begins) != begins:
                raise UserError("stages with other objective.scale or objective.scale_lr: they share one, which is"
                                " learned on; give both the same")
            if name not in policy.own:
                policy.own[name] = module
                optimizer.add_param_group({"params": list(module.parameters()), "lr": rate, "rate": rate})
    return optimizer


def schedule(optimizer: torch.optim.Optimizer, stage: Stage, step: int) -> float:
    """Set the learning rates of a stage's step (from 1), and return the adapter's."""
    train, waits = stage.config.train, stage.objective.adapter_waits()
    for group in optimizer.param_groups:
        own = "rate" in group
        group["lr"] = (group["rate"] if own else train.lr) * rate_share(train, step, 0 if own else waits)
    return optimizer.param_groups[0]["lr"]


def rate_share(train: settings.Train, step: int, waits: int = 0) -> float:
    """Return the share of a rate in step `step` (from 1): linear warm-up, then constant or a cosine down to a tenth.

    `waits` steps come before all that.
    """
    step, steps = step - waits, train.steps - waits
    if step <= train.warmup:
        return max(step, 0) / (train.warmup + 1)
    if train.schedule == "constant":
        return 1.0
    progress = (step - train.warmup) / max(steps - train.warmup, 1)
    return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
