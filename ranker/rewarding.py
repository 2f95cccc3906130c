"""The rewards of a config and their weighted sum. What a reward is, rewards/__init__.py says."""

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass

from ranker import drive, plugins
from ranker.data import Group
from ranker.engine import distributed
from ranker.errors import UserError, nearest


@dataclass(frozen=True)
class Part:
    """One reward of a config."""

    plugin: plugins.Plugin
    weight: float
    tasks: tuple[str, ...] = ()  # empty: all

    @property
    def name(self) -> str:
        return self.plugin.name

    @property
    def task(self) -> bool:
        return self.plugin.TASK

    @property
    def asks(self) -> bool:
        """Tell whether it asks somebody."""
        return inspect.isgeneratorfunction(self.plugin.module.reward)


def load(section: dict, where: str = "config") -> list[Part]:
    """Return the parts of a `reward` section. Raise UserError for unknown names, options and weights."""
    parts = []
    for name, entry in section.items():
        entry = plugins.resolved_reward(name, entry, where)
        weight, tasks = entry.pop("weight"), tuple(entry.pop("tasks"))
        parts.append(Part(plugins.load("reward", {"name": name} | entry, where), weight, tasks))
    task = sum(p.weight for p in parts if p.task)
    shaping = sum(p.weight for p in parts if not p.task)
    if task <= 0:
        raise UserError(f"{where}: reward needs a task part with a weight above 0, such as"
                        f" {' or '.join(n for n in plugins.names('reward') if plugins.module('reward', n).TASK)}")
    if shaping >= task:
        raise UserError(f"{where}: shaping rewards weigh {shaping:g}, task rewards {task:g};"
                        " shaping must weigh less, or a wrong answer could be worth more than a right one")
    return parts


def check(parts: Sequence[Part], tasks: Sequence[str], unlabelled: Sequence[str], where: str) -> None:
    """Raise UserError where a task of the training queries is not paid for by one kind of reward.

    That is: a reward that names a task which is not there; a task that no task reward pays for, or where form weighs
    more; a judge beside a reward that reads labels, on one task; labels read where there are none (`unlabelled`).
    """
    for part in parts:
        for name in set(part.tasks) - set(tasks):
            raise UserError(f"{where}: reward.{part.name}.tasks: the training queries have no task"
                            f" '{name}'{nearest(name, tasks)}")
    for task in tasks:
        paid = [part for part in parts if part.weight and (not part.tasks or task in part.tasks)]
        own, shaping = [p for p in paid if p.task], [p for p in paid if not p.task]
        if not own:
            raise UserError(f"{where}: no task reward pays for '{task}'; give one more of its tasks")
        if sum(p.weight for p in shaping) >= sum(p.weight for p in own):
            raise UserError(f"{where}: for '{task}' shaping rewards weigh as much as task rewards; a wrong answer could"
                            " be worth more than a right one")
        judges, readers = [p.name for p in own if p.asks], [p.name for p in own if not p.asks]
        if judges and readers:
            raise UserError(f"{where}: '{task}' is paid for by {judges[0]}, which asks a judge, and by {readers[0]};"
                            " limit each to its tasks")
        if task in unlabelled and readers:
            raise UserError(f"{where}: '{task}' has queries without labels, which reward.{readers[0]} reads; take"
                            " reward.reference_judge for it, or data.unlabelled=false")


def score(parts: Sequence[Part], groups: Sequence[Group], models: drive.Models = ()) -> None:
    """Set the rewards of all completions: each part by name (unweighted), `task` (weighted task parts) and `total`.

    A completion with a part that is no number is unscored, not worth 0: its `task` and `total` are NaN. `models` answer
    the asks of rewards that ask. Raise UserError for a reward that returns another shape than the groups have.
    """
    for group in groups:
        for c in group.completions:
            c.rewards = {}
    for part in parts:
        judged = [group for group in groups if not part.tasks or group.ask.query.task in part.tasks]
        paid = part.plugin.reward(judged) if judged else []
        if inspect.isgenerator(paid):  # one process asks, and all hear the answer
            paid = distributed.gather(drive.converse(paid, models or {}) if distributed.first() else None)[0]
        if [len(row) for row in paid] != [len(group.completions) for group in judged]:
            raise UserError(f"rewards/{part.name}.py: reward must return a number for every completion of every group")
        for group in groups:
            for c in group.completions:
                c.rewards[part.name] = 0.0
        for group, row in zip(judged, paid):
            for c, value in zip(group.completions, row):
                c.rewards[part.name] = float(value)
    for c in (c for group in groups for c in group.completions):
        task = sum((p.weight * c.rewards[p.name] for p in parts if p.task), 0.0)
        total = task + sum(p.weight * c.rewards[p.name] for p in parts if not p.task)
        scored = math.isfinite(total)
        c.rewards |= {"task": task if scored else math.nan, "total": total if scored else math.nan}
