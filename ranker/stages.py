"""The stages of a run: stretches of steps with their own sampling, reward and objective, such as a cold start and then RL.

Most runs have one. A later stage begins with the policy of the one before, which is its reference as well, and with an
optimizer that remembers nothing.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace

from ranker import config as settings, distributed, rewarding, thoughts
from ranker.data import Query
from ranker.errors import UserError


@dataclass
class Stage:
    first: int  # step
    config: settings.Config  # `train.steps` are the stage's own
    reward_parts: list[rewarding.Part]
    objective: ModuleType
    source: Callable[[int], object]  # position -> what is learned from: a query, or a trace


def load(config: settings.Config, ranker: SimpleNamespace, next_query: Callable[[int], Query], where: str) -> list[Stage]:
    """The stages of a config in order. Raises UserError for what is wrong with any of them."""
    found = []
    for first, now in settings.stages(config, where):
        if now.rollout.prompts_per_step % distributed.size():
            raise UserError(f"rollout.prompts_per_step ({now.rollout.prompts_per_step}) must be a multiple of the {distributed.size()} processes")
        source = next_query
        if now.rollout.traces:
            source = thoughts.drawn(Path(now.rollout.traces).expanduser(), ranker.sampled_ask(next_query(0), random.Random(0)).decision, now.run.seed)
        objective = import_module(f"ranker.objectives.{now.train.objective}")
        found.append(Stage(first, now, rewarding.load(now.reward, where), objective, source))
    return found
