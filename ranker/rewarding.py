"""Names in the config's `reward` section -> files in rewards/, checked; and their weighted sum.

A reward file has `TASK` (bool) and `reward(groups, **options) -> list of one number per completion, per group`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from ranker import config as settings
from ranker.data import Group
from ranker.errors import UserError, nearest

FOLDER = Path(__file__).resolve().parent.parent / "rewards"


@dataclass(frozen=True)
class Part:
    name: str
    weight: float
    task: bool
    function: Callable[[list[Group]], list[list[float]]]


def load(section: dict, where: str = "config") -> list[Part]:
    """The parts of a `reward` section. Raises UserError for unknown names, options and weights."""
    known = [p.stem for p in FOLDER.glob("*.py") if p.stem != "__init__"]
    parts = []
    for name, options in section.items():
        if name not in known:
            raise UserError(f"{where}: unknown reward '{name}'{nearest(str(name), known)}")
        module = import_module(f"rewards.{name}")
        options = dict(settings.reward_entry(options))
        weight = settings.cast(options.pop("weight", 1.0), float, {"low": 0.0}, f"{where}: reward.{name}.weight")
        options = settings.options(module.reward, options, where, f"reward.{name}", 1, ["weight"])
        parts.append(Part(name, weight, module.TASK,
                          lambda groups, f=module.reward, o=options: f(groups, **o)))
    task = sum(p.weight for p in parts if p.task)
    shaping = sum(p.weight for p in parts if not p.task)
    if task <= 0:
        raise UserError(f"{where}: reward needs a task part with a weight above 0, such as top1_hit")
    if shaping >= task:
        raise UserError(f"{where}: shaping rewards weigh {shaping:g}, task rewards {task:g};"
                        " shaping must weigh less, or a wrong answer could be worth more than a right one")
    return parts


def score(parts: list[Part], groups: list[Group]) -> list[list[dict[str, float]]]:
    """Per group and completion: each part by name (unweighted), `task` (weighted task parts) and `total`."""
    columns = {part.name: part.function(groups) for part in parts}
    rows = []
    for g, group in enumerate(groups):
        rows.append([])
        for i in range(len(group.completions)):
            values = {part.name: float(columns[part.name][g][i]) for part in parts}
            task = sum((p.weight * values[p.name] for p in parts if p.task), 0.0)
            total = task + sum(p.weight * values[p.name] for p in parts if not p.task)
            scored = math.isfinite(total)  # else the completion is unscored, not worth 0
            rows[-1].append(values | {"task": task if scored else math.nan, "total": total if scored else math.nan})
    return rows
