"""SELM (arXiv 2405.19332): online DPO that also pushes down what the previous iterate says by itself, to go on looking.

    loss = -log sigmoid(beta * ((lw - ll) - (lw_ref - ll_ref))) + alpha * beta * (lo - lo_ref)

of sums of log-probabilities: w and l are the best and the worst completion of a group, o is the likeliest one of the
reference, which the draw `optimistic` adds. The reference is the previous iterate where a run has `stages`. The
algorithm box prints alpha alone; the equation and the code use alpha * beta, as here. With alpha 0 it is online DPO, o
is neither needed nor computed. Ours: a ranking's reward in the place of a preference model; o is left alone where it is
the best of its group (`skip_chosen`), which else were pushed up and down at once; and since nothing bounds the second
term, a run ends when the mean log-probability of o's tokens falls below `runaway`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ranker import credit, losses
from ranker.data import Completion, Group
from ranker.errors import UserError
from ranker.objectives import dpo
from ranker.passes import Batch
from ranker.plugins import setting

UNIT, LEARNS_FROM, WHOLE_GROUPS, LEAST = "group", {"samples"}, True, 2


@dataclass
class Options:
    beta: float = setting(0.1, low=1e-9)  # how sharply the margin to the reference counts
    alpha: float = setting(0.001, low=0.0)  # weight of the optimism, times beta; 0: online DPO
    margin: float = setting(1e-4, low=0.0)  # by which the better return must be ahead
    skip_chosen: bool = True  # no optimism where the reference's own completion is the best one
    per_token: bool = False  # whether the optimism is a mean over o's tokens; as published, a sum
    runaway: float = setting(-10.0, high=0.0)  # nats a token


def alive(groups: Sequence[Group], options: Options) -> None:
    """Choose the pair of each group, signs +1 and -1, and give o its part in the optimism; o may be of the pair."""
    dpo.alive(groups, dpo.Options(options.beta, options.margin))
    for group in groups:
        pair = sorted((c for c in group.completions if c.alive), key=dpo.total)
        own = [c for c in group.completions if "optimism" in c.signals]
        if pair and options.alpha and not own:
            raise UserError("objective.name=selm with alpha above 0 needs draw.name=optimistic, which adds what the"
                            " previous iterate says")
        for c in (*pair, *own) if pair else ():
            pushed = bool(own) and c is own[0] and options.alpha > 0
            pushed = pushed and not (options.skip_chosen and c.ids == pair[-1].ids)
            sign = 1.0 if c is pair[-1] else -1.0 if c is pair[0] else 0.0
            c.signals |= {"sign": filled(c, sign), "own": filled(c, float(pushed))}
            c.alive, c.advantage = bool(sign) or pushed, sign


def passes(options: Options) -> set[str]:
    return {"reference"}


def targets(groups: Sequence[Group], options: Options) -> dict[str, float]:
    pairs = float(sum(any(c.alive for c in group.completions) for group in groups))
    pushed = [c for c in credit.completions(groups) if c.alive and c.signals["own"].any()]
    for c in pushed:
        c.signals["own"] = filled(c, pairs / len(pushed))  # so that a mean over pairs is one over those who are pushed
    return {"pairs": pairs}


def filled(completion: Completion, value: float) -> torch.Tensor:
    return torch.full((len(completion.ids),), value)


def loss(batch: Batch, options: Options) -> tuple[torch.Tensor, dict[str, float]]:
    signs, weights = batch["sign"][:, 0], batch["own"][:, 0]  # [N]
    own, length = (weights > 0).float(), batch.mask.sum(-1)  # [N]
    ahead = ((batch.logprobs - batch["reference"]) * batch.mask).sum(-1)  # [N]
    margins = torch.stack([(ahead * signs)[group].sum() for group in batch.groups])  # [pairs]
    optimism = (ahead * own / (length if options.per_token else 1)).sum()
    each = (batch.logprobs.detach() * batch.mask).sum(-1) / length  # [N], nats a token
    said = ((each * own).sum() / own.sum().clamp(min=1)).item()
    if said < options.runaway:
        raise UserError(f"objective.name=selm: the optimism ran away: what the previous iterate says has {said:.1f}"
                        f" nats a token (objective.runaway={options.runaway:g}); lower objective.alpha or train.lr")
    loss = losses.dpo_loss(margins, options.beta).sum() + options.alpha * options.beta * optimism
    return loss, {"margin": margins.detach().sum().item(), "right": (margins > 0).sum().item(),
                  "own_logprob": (each * weights).sum().item(), "optimism": optimism.item()}
