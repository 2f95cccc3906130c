"""Learning to rank from the scores of a list (FIRST, arXiv 2406.15657; RankGPT's distillation, arXiv 2304.09542).

Every candidate is a completion (draw `identifiers`: one token; draw `candidates`: its text), so the log-probabilities
of a group are the list's scores: those losses that see differences only do not tell them from logits. The order
taught is that of the relevance, as integer ranks; equal relevance forms no pair. With `lm_weight` the written list of
the same group, the completion without a reward, is imitated as well: FIRST's joint loss. Lists weigh the same whatever
their length.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ranker import credit, losses
from ranker.data import Group
from ranker.passes import Batch
from ranker.plugins import setting

UNIT, LEARNS_FROM, WHOLE_GROUPS, LEAST = "group", {"candidates"}, True, 2


@dataclass
class Options:
    rank_loss: str = setting("weighted_ranknet", choices=losses.RANK_LOSSES)
    rank_weight: float = setting(10.0, low=0.0)  # of that loss
    lm_weight: float = setting(1.0, low=0.0)  # of imitating the written list beside it
    scale: float = setting(1.0, low=1e-3)  # of the scores: 1 / temperature
    scale_lr: float = setting(0.0, low=0.0)  # learning rate of its logarithm; 0: it stays
    min_spread: float = setting(1e-4, low=0.0)  # a list whose relevance spreads less is dead


def parameters(policy, options: Options) -> dict:
    """Return the scale of the scores, which is learned beside the adapter (or kept, at the rate 0)."""
    return {"scale": (losses.Scale(options.scale).to(policy.device), options.scale_lr)
            } if options.scale != 1.0 or options.scale_lr else {}


def alive(groups: Sequence[Group], options: Options) -> None:
    """A list is alive where it holds a pair; its written list is, where that is imitated."""
    found = credit.completions(groups)
    task, cohorts = credit.returns(found, "task"), credit.cohorts(found)
    lives = losses.live(task, cohorts, options.min_spread)
    listed = torch.zeros(int(cohorts.max()) + 1, dtype=torch.bool).index_fill(0, cohorts[lives], True)  # [cohorts]
    credit.mark(found, lives | (task.isnan() & listed[cohorts] & (options.lm_weight > 0)))


def passes(options: Options) -> set[str]:
    return set()


def targets(groups: Sequence[Group], options: Options) -> dict[str, float]:
    """Give every candidate its rank in the list, 1 for the best, and the written list 0."""
    found = credit.completions(groups)
    for c, rank in zip(found, losses.ranks(credit.returns(found, "task"), credit.cohorts(found)).tolist()):
        if c.alive:
            c.signals["rank"] = torch.full((len(c.ids),), rank)
    return {"lists": float(len({c.cohort for c in found if c.alive}))}


def loss(batch: Batch, options: Options) -> tuple[torch.Tensor, dict[str, float]]:
    ranks, scores = batch["rank"][:, 0], batch.scores  # [N]
    rank_loss = lm_loss = batch.logprobs.new_zeros(())
    mrr = 0.0
    for group in batch.groups:
        logprobs, mask, rank = batch.logprobs[group], batch.mask[group], ranks[group]
        listed, written = rank > 0, rank == 0
        rank_loss = rank_loss + losses.rank_loss(scores[group][listed], rank[listed], options.rank_loss)
        best = scores[group][rank == 1].max()
        mrr += 1 / (1 + (scores[group][listed] > best).sum().item())
        if written.any():
            lm_loss = lm_loss - (logprobs * mask)[written].sum() / mask[written].sum()
    return options.rank_weight * rank_loss + options.lm_weight * lm_loss, {
        "rank_loss": rank_loss.item(), "lm_loss": lm_loss.item(), "mrr": mrr}
