"""Learning to rank from the logits of the identifiers (FIRST, arXiv 2406.15657; RankGPT's distillation, arXiv 2304.09542).

`rollout.states: identifiers` gives every candidate a completion of one token, its identifier, so the log-probabilities
of a group are the list's scores: those losses that see differences only do not tell them from logits. The order taught
is that of the relevance, as integer ranks; equal relevance forms no pair. With `train.lm_weight` the written list of the
same group, the completion without a reward, is imitated as well: FIRST's joint loss. Lists weigh the same whatever
their length.
"""

import torch

from ranker import losses
from ranker.config import Train
from ranker.objectives.grpo import Tensors

NEEDS = {"cohort"}


def credit(train: Train, total: torch.Tensor, task: torch.Tensor, cohorts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Per completion [N]: its rank in the list, 1 for the best, 0 for the written list; and whether its list has any pair."""
    ranks = losses.ranks(task, cohorts)
    alive = losses.live(task, cohorts, train.min_spread)
    listed = torch.zeros(int(cohorts.max()) + 1, dtype=torch.bool).index_fill(0, cohorts[alive], True)  # [cohorts]
    return ranks, alive | (task.isnan() & listed[cohorts] & (train.lm_weight > 0))


def signals(train: Train, credit: Tensors, before: dict[str, Tensors]) -> tuple[dict[str, Tensors], dict[str, float]]:
    """Rank, list and the list's share of the step, on every token."""
    count = len({int(c[0]) for c in before["cohort"].values()})
    return {"advantage": credit, "cohort": before["cohort"], "share": {k: torch.full_like(c, 1 / count) for k, c in credit.items()}}, {"lists": count}


def loss(train: Train, step: int, logprobs: torch.Tensor, values: None, mask: torch.Tensor, signal: dict[str, torch.Tensor],
         denominator: int) -> tuple[torch.Tensor, dict[str, float]]:
    """This micro-batch's part of the mean over the step's lists; all tensors [N, T]. Tokens, and so `denominator`, do not count."""
    ranks, lists = signal["advantage"][:, 0], signal["cohort"][:, 0]
    rank_loss = lm_loss = logprobs.new_zeros(())
    for number in lists.unique():
        listed, written = (lists == number) & (ranks > 0), (lists == number) & (ranks == 0)
        rank_loss = rank_loss + losses.rank_loss(logprobs[listed, 0], ranks[listed], train.rank_loss)
        if written.any():
            lm_loss = lm_loss - (logprobs * mask)[written].sum() / mask[written].sum()
    return (train.rank_weight * rank_loss + train.lm_weight * lm_loss) * signal["share"][0, 0], {
        "rank_loss": rank_loss.item(), "lm_loss": lm_loss.item()}
