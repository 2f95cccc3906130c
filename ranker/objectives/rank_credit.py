"""Rank-level credit for lists (Rank-GRPO, arXiv 2510.20150): every place of a list is paid for itself and what follows.

The return of place k is the DCG from k on, in shares of the best DCG of the pool; its advantage is the return less the
mean of the same place over the group. The tokens from one candidate to the next are one segment, whose ratio is a
geometric mean. Ours: the thought, and all before the first candidate, takes the return of place 1; a list that is not
whole (a candidate missing, repeated or foreign) loses `slip` behind its last place, which all returns before carry.
The task reward of the config decides which groups teach; it is not what is paid.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ranker import credit, losses
from ranker.data import Group
from ranker.errors import UserError
from ranker.objectives import grpo
from ranker.passes import Batch
from ranker.plugins import setting

UNIT, LEARNS_FROM, WHOLE_GROUPS, LEAST = "token", {"samples"}, False, 2


@dataclass
class Options:
    slip: float = setting(0.5, low=0.0)  # what a list that is not whole loses
    advantage: str = setting("mean", choices=("mean", "std"))  # std: divided by the place's deviation
    min_spread: float = setting(1e-4, low=0.0)  # a cohort whose task rewards spread less is dead
    clip_low: float = setting(0.2, low=0.0, high=1.0)
    clip_high: float = setting(0.2, low=0.0)
    kl: str = setting("k2", choices=("k2", "k3"))
    beta: float = setting(0.0, low=0.0)  # weight of the KL to the reference; 0 skips its pass


alive = grpo.alive


def passes(options: Options) -> set[str]:
    return grpo.passes(options) | {"place"}


def targets(groups: Sequence[Group], options: Options) -> dict[str, float]:
    for group in groups:
        taught = [c for c in group.completions if c.alive]
        if not taught:
            continue
        if group.ask.decision != "order":
            raise UserError(f"objective.name=rank_credit pays the places of a list; the ranker asks to"
                            f" {group.ask.decision}; take ranker.name=listwise")
        rel = group.ask.query.rel
        paid = torch.stack([place_returns([rel[v] for v in c.answer.value], len(group.ask.left), c.answer.ok,
                                          sorted((rel[p] for p in group.ask.left), reverse=True), options.slip)
                            for c in taught])  # [completions, places]
        advantages = torch.stack([losses.cohort_advantages(place, torch.zeros(len(taught), dtype=torch.long),
                                                           options.advantage) for place in paid.T], 1)
        for c, own in zip(taught, advantages):
            c.signals["advantage"] = own[(c.signals["place"].cpu() - 1).clamp(min=0)]  # the thought: place 1
            c.advantage = c.signals["advantage"].mean().item()
    return {}


def place_returns(gains: Sequence[float], places: int, whole: bool, best: Sequence[float], slip: float) -> torch.Tensor:
    """Return what each of `places` is paid, [places]: the discounted gains from it on, less `slip` if not whole.

    `gains` are those of the list, which may be shorter; `best` those of the best list.
    """
    discounts = 1 / torch.arange(2.0, places + 2).log2()
    own, ideal = (torch.zeros(places), torch.tensor(best, dtype=torch.float32))
    own[:len(gains)] = torch.tensor(gains, dtype=torch.float32)[:places]
    to_go = (own * discounts).flip(0).cumsum(0).flip(0) / (ideal * discounts).sum().clamp(min=1e-12)
    return to_go - (0.0 if whole else slip)


def loss(batch: Batch, options: Options) -> tuple[torch.Tensor, dict[str, float]]:
    return losses.policy_loss(
        batch.logprobs, batch.get("old", batch.logprobs.detach()), batch["advantage"], batch.mask,
        clip_low=options.clip_low, clip_high=options.clip_high, beta=options.beta, kl=options.kl,
        reference=batch.get("reference"), segments=batch["place"])
