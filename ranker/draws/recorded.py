"""Recorded traces (`thoughts.jsonl` as training writes it): each is a group of its own, for a cold start.

Their log-probabilities are unknown: NaN.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ranker import thoughts
from ranker.asking import imitated
from ranker.data import Group
from ranker.drive import decisions
from ranker.plugins import setting
from ranker.sources import Source

GIVES, EPISODES = "texts", False


@dataclass
class Options:
    traces: str = setting(file=True)  # a JSON lines file


def source(source: Source, ranker, seed: int, options: Options) -> Source:
    """Return the traces of the decisions that the ranker asks for in training. Raise UserError for held-out queries."""
    [(_, query)] = source.take(1, {})
    wanted = set(decisions(ranker, query))
    return thoughts.drawn(Path(options.traces).expanduser(), wanted, seed, source.held_out())


def draw(source: Source, sample, judge: Callable, state: dict, options: Options) -> list[Group]:
    sample.seed(state)
    return judge([imitated(sample.policy, ask, text, i)
                  for i, (ask, text) in source.take(sample.rollout.prompts_per_step, state)])
