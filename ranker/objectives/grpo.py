"""GRPO (arXiv 2402.03300): a completion's advantage is its reward minus its cohort's mean, the same for all its tokens.

Only cohorts whose task rewards spread are learned from: form must not revive a cohort in which every ranking was as
good.

Its kin are options: `advantage: rare` (MaxRL, arXiv 2602.02710), `ratio: sequence` (GSPO, arXiv 2507.18071) and
`surrogate: cispo` (MiniMax-M1, arXiv 2506.13585); the last two differ from GRPO only with several updates a rollout.
`entropy` pays every token its surprise while the policy samples with less entropy than `entropy_floor`.
"""

from dataclasses import dataclass
from collections.abc import Sequence

import torch

from ranker import credit, losses
from ranker.data import Completion, Group
from ranker.errors import UserError
from ranker.passes import Batch
from ranker.plugins import setting

UNIT, LEARNS_FROM, WHOLE_GROUPS, LEAST = "token", {"samples"}, False, 2


@dataclass
class Options:
    # std: divided by the cohort's deviation; rare: by its mean, for rewards that are not negative
    advantage: str = setting("mean", choices=("mean", "std", "rare"))
    min_spread: float = setting(1e-4, low=0.0)  # a cohort whose task rewards spread less is dead
    clip_low: float = setting(0.2, low=0.0, high=1.0)
    clip_high: float = setting(0.2, low=0.0)
    kl: str = setting("k2", choices=("k2", "k3"))
    beta: float = setting(0.0, low=0.0)  # weight of the KL to the reference; 0 skips its pass
    ratio: str = setting("token", choices=("token", "sequence"))  # sequence: the geometric mean over a completion
    surrogate: str = setting("ppo", choices=("ppo", "cispo"))  # what is clipped: the objective, or a weight
    entropy: float = setting(0.0, low=0.0)  # weight of the entropy bonus
    entropy_floor: float = setting(0.0, low=0.0)  # nats a token: it is paid while sampling has less; 0: always


def alive(groups: Sequence[Group], options: Options) -> None:
    found = credit.completions(groups)
    credit.mark(found, losses.live(credit.returns(found, "task"), credit.cohorts(found), options.min_spread))


def passes(options: Options) -> set[str]:
    return {"reference"} if options.beta > 0 else set()


def targets(groups: Sequence[Group], options: Options) -> dict[str, float]:
    found = credit.completions(groups)
    total = credit.returns(found)
    if options.advantage == "rare" and (total < 0).any():
        raise UserError(f"objective.advantage=rare needs rewards that are not negative; one completion earned"
                        f" {total[total < 0][0]:g}")
    credit.spread(found, losses.cohort_advantages(total, credit.cohorts(found), options.advantage))
    return explore([c for c in found if c.alive], options) if options.entropy > 0 else {}


def explore(taught: Sequence[Completion], options: Options) -> dict[str, float]:
    """Add to the advantages what tokens are paid for their surprise, -log p less its mean.

    The gradient of a distribution's entropy is the expectation of -log p times the gradient of log p, over tokens that
    are sampled from it; the mean of -log p estimates the entropy itself.
    """
    surprise = [-torch.tensor(c.logprobs) for c in taught]
    entropy = torch.cat(surprise).nanmean()  # NaN: nobody sampled it
    paid = not 0 < options.entropy_floor <= entropy
    for c, own in zip(taught, surprise) if paid else ():
        c.signals["advantage"] = c.signals["advantage"] + options.entropy * (own - entropy).nan_to_num(nan=0.0)
    return {"entropy_bonus": float(paid)}


def loss(batch: Batch, options: Options) -> tuple[torch.Tensor, dict[str, float]]:
    reference = batch.get("reference")
    if reference is not None and "mutant" in batch.completions[0].signals:  # nobody sampled them: no part in the KL
        reference = torch.where(batch["mutant"] > 0, batch.logprobs.detach(), reference)
    return losses.policy_loss(
        batch.logprobs, batch.get("old", batch.logprobs.detach()), batch["advantage"], batch.mask,
        clip_low=options.clip_low, clip_high=options.clip_high, beta=options.beta, kl=options.kl,
        reference=reference, surrogate=options.surrogate,
        segments=torch.zeros_like(batch.mask, dtype=torch.long) if options.ratio == "sequence" else None)
