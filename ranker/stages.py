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

from ranker import config as settings, rewarding, thoughts
from ranker.data import Query


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
        source = next_query
        if now.rollout.traces:
            source = thoughts.drawn(Path(now.rollout.traces), ranker.sampled_ask(next_query(0), random.Random(0)).decision, now.run.seed)
        objective = import_module(f"ranker.objectives.{now.train.objective}")
        found.append(Stage(first, now, rewarding.load(now.reward, where), objective, source))
    return found
