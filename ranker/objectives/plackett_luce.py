"""A policy gradient over whole rankings (Plackett-Luce), from the scores of a list and nothing but its reward.

Every candidate is a completion (draw `identifiers` or `candidates`), its score the log-probability of its tokens. The
loss draws `permutations` of the candidates from the Plackett-Luce distribution of the scores, pays each the nDCG@`k` of
its order, subtracts the group's mean (leave-one-out), and follows the gradient of their log-probabilities: no text is
sampled, so a group costs one forward pass (PL-Rank's estimator, arXiv 2204.10872, without its variance reduction). The
relevance is the task reward of the candidates.
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
    permutations: int = setting(32, low=2)  # drawn for each list
    metric: str = setting("ndcg", choices=("ndcg", "mrr"))  # what an order is paid: nDCG@k, or 1 / place of the best
    k: int = setting(10, low=1)  # of nDCG@k
    scale: float = setting(1.0, low=1e-3)  # of the scores: 1 / temperature
    scale_lr: float = setting(0.0, low=0.0)  # learning rate of its logarithm; 0: it stays
    min_spread: float = setting(1e-4, low=0.0)  # a list whose relevance spreads less is dead


def parameters(policy, options: Options) -> dict:
    """Return the scale of the scores, which is learned beside the adapter (or kept, at the rate 0)."""
    return {"scale": (losses.Scale(options.scale).to(policy.device), options.scale_lr)
            } if options.scale != 1.0 or options.scale_lr else {}


def alive(groups: Sequence[Group], options: Options) -> None:
    found = credit.completions(groups)
    credit.mark(found, losses.live(credit.returns(found, "task"), credit.cohorts(found), options.min_spread))


def passes(options: Options) -> set[str]:
    return set()


def targets(groups: Sequence[Group], options: Options) -> dict[str, float]:
    for c in credit.completions(groups):
        if c.alive:
            c.signals["relevance"] = torch.full((len(c.ids),), c.returns["task"])
    return {}


def loss(batch: Batch, options: Options) -> tuple[torch.Tensor, dict[str, float]]:
    scores = batch.scores  # [N]
    relevance, generator = batch["relevance"][:, 0], torch.Generator().manual_seed(batch.seed)
    total, earned = scores.new_zeros(()), 0.0
    for group in batch.groups:
        orders = losses.draw_permutations(scores[group].detach(), options.permutations, generator)  # [M, n]
        rewards = paid(orders, relevance[group], options)  # [M]
        advantages = losses.leave_one_out(rewards, torch.zeros(len(rewards), dtype=torch.long, device=rewards.device))
        total = total - (advantages * losses.plackett_luce(scores[group], orders)).mean()
        earned += rewards.mean().item()
    return total, {"drawn_reward": earned}


def paid(orders: torch.Tensor, relevance: torch.Tensor, options: Options) -> torch.Tensor:
    """Return the reward of each order [M]: orders [M, n] of candidates with the relevance [n]."""
    if options.metric == "ndcg":
        return losses.ndcg_of(orders, relevance, options.k)
    return 1 / (1 + (relevance[orders] == relevance.max()).float().argmax(-1))
