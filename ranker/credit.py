"""The facts that completions carry, as tensors: what objectives work with before any model runs."""

from collections.abc import Iterable, Sequence

import torch

from ranker import losses
from ranker.data import Completion, Group


def completions(groups: Iterable[Group]) -> list[Completion]:
    """Return all completions of groups, in order."""
    return [c for group in groups for c in group.completions]


def sampled(groups: Iterable[Group]) -> list[Completion]:
    """Return the completions that the policy sampled, without what a draw sets beside them (right answers behind a
    thought, mutants, what another policy says); where it sampled none, all."""
    found = completions(groups)
    return [c for c in found if c.sampled] or found


def cohorts(of: Sequence[Completion]) -> torch.Tensor:
    """Return the cohort of each completion [N], numbered from 0 as they appear."""
    numbers: dict[object, int] = {}
    return torch.tensor([numbers.setdefault(c.cohort, len(numbers)) for c in of])


def returns(of: Sequence[Completion], part: str = "total") -> torch.Tensor:
    """Return what each completion and those that follow it earned [N]: `task` or `total`; NaN where unscored."""
    return torch.tensor([c.returns[part] for c in of])


def add_returns(groups: Iterable[Group], discount: float) -> None:
    """Set the returns of completions from their rewards and those of what follows them in their episodes."""
    found = completions(groups)
    place = {id(c): i for i, c in enumerate(found)}
    following = [place[id(c.next)] if c.next is not None else -1 for c in found]
    parts = {part: losses.returns_to_go(torch.tensor([c.rewards[part] for c in found]), following, discount).tolist()
             for part in ("task", "total")}
    for i, c in enumerate(found):
        c.returns = {part: values[i] for part, values in parts.items()}


def mark(of: Sequence[Completion], alive: torch.Tensor) -> None:
    """Say of each completion whether it is learned from; alive [N], bool."""
    for c, lives in zip(of, alive.tolist()):
        c.alive = lives


def spread(of: Sequence[Completion], values: torch.Tensor) -> None:
    """Make one number a completion [N] its advantage, the same for all its tokens."""
    for c, value in zip(of, values.tolist()):
        if c.alive:
            c.signals["advantage"] = torch.full((len(c.ids),), value)
            c.advantage = value


def live_cohorts(groups: Iterable[Group]) -> int:
    """Count the cohorts that hold a completion that is learned from."""
    return len({c.cohort for c in completions(groups) if c.alive})


def dead(groups: Iterable[Group]) -> float:
    """Return the share of cohorts that hold none."""
    groups = list(groups)
    return 1 - live_cohorts(groups) / len({c.cohort for c in completions(groups)})
