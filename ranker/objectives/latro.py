"""LaTRO (arXiv 2411.04282): a thought is worth the log-probability of the right answer behind it, under the policy.

    r = log p(gold | x, z) - beta * (log p(z | x) - log p_0(z | x))
    loss = -mean(A log p(z | x)) - sft_weight * mean(log p(gold | x, z)),  A the leave-one-out advantage of r

sums over tokens, so answers of like length are compared (an elimination, a pick; of an order the list as `right` writes
it, ties as shown; for others there is `per_token`); no reward of the config, no parser is asked. Of several right
answers (elimination) log p(gold) is the logarithm of their summed probability. A thought without an end has `gamma`
times the mean log p(gold) of the batch (or of its prompt) in the place of its own, which is never more than the mean.
Ours against the released code: the answer's term is there, its mask is exact (there the last token before the answer
counts too), thoughts end by themselves, and where they end is learned.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ranker import credit, losses
from ranker.data import Completion, Group
from ranker.passes import Batch
from ranker.plugins import setting

UNIT, LEARNS_FROM, WHOLE_GROUPS, LEAST, REWARDS = "group", {"thoughts"}, True, 2, False


@dataclass
class Options:
    beta: float = setting(0.05, low=0.0)  # what a nat of log-ratio to the reference costs; 0 skips its pass
    gamma: float = setting(2.0, low=1.0)  # of the mean, for a thought without an end
    penalty_mean: str = setting("batch", choices=("batch", "prompt"))  # whose mean
    sft_weight: float = setting(1.0, low=0.0)  # of the answers' own log-probability
    per_token: bool = False  # whether an answer's log-probability is a mean over its tokens; as published, a sum


def alive(groups: Sequence[Group], options: Options) -> None:
    found = credit.completions(groups)
    credit.mark(found, torch.ones(len(found), dtype=torch.bool))


def passes(options: Options) -> set[str]:
    return {"old", "reference"} if options.beta > 0 else {"old"}


def targets(groups: Sequence[Group], options: Options) -> dict[str, float]:
    """Give thoughts their advantages and answers their weight, both per thought of the step."""
    thoughts = [c for group in groups for c in group.completions if not behind(c)]
    gold = torch.tensor(gold_logprobs(groups, thoughts, options.per_token))  # [thoughts], NaN without an end
    cohorts = credit.cohorts(thoughts)
    full = penalised(gold, cohorts, options)
    ratio = torch.tensor([(c.signals["old"] - c.signals["reference"]).sum().item() if options.beta > 0 else 0.0
                          for c in thoughts])
    earned = full - options.beta * ratio
    share = len(groups) / len(thoughts)  # the loop divides by the groups
    credit.spread(thoughts, losses.leave_one_out(earned, cohorts) * share)
    for c in (c for group in groups for c in group.completions if behind(c)):
        c.signals["answered"] = torch.full((len(c.ids),), options.sft_weight * share)
    unfinished = gold.isnan().float().mean().item()
    return {"gold_logprob": gold.nanmean().item(), "self_reward": earned.mean().item(), "unfinished": unfinished}


def behind(completion: Completion) -> bool:
    """Tell whether a completion is a right answer behind a thought: its cohort names its thought."""
    return isinstance(completion.cohort[-1], tuple)


def gold_logprobs(groups: Sequence[Group], thoughts: Sequence[Completion], per_token: bool = False) -> list[float]:
    """Return the log of the summed probability of the right answers behind each thought, NaN where there are none."""
    found: dict[object, list[torch.Tensor]] = {}  # thought -> log-probabilities of its answers
    for c in filter(behind, credit.completions(groups)):
        found.setdefault((*c.cohort[:-1], *c.cohort[-1]), []).append(
            c.signals["old"].sum() / (len(c.ids) if per_token else 1))
    numbers: dict[object, int] = {}  # of the next thought of a cohort
    values = []
    for c in thoughts:
        numbers[c.cohort] = numbers.get(c.cohort, -1) + 1
        answers = found.get((*c.cohort, numbers[c.cohort]))
        values.append(torch.stack(answers).logsumexp(0).item() if answers else torch.nan)
    return values


def penalised(gold: torch.Tensor, cohorts: torch.Tensor, options: Options) -> torch.Tensor:
    """Return log p(gold) [thoughts] with the penalty in the place of NaN; where all are NaN, all are alike."""
    means = (torch.stack([gold[cohorts == cohort].nanmean() for cohort in cohorts]) if options.penalty_mean == "prompt"
             else gold.nanmean().expand(len(gold)))
    worse = torch.minimum(options.gamma * means, means).nan_to_num(nan=0.0)
    return torch.where(gold.isnan(), worse, gold)


def loss(batch: Batch, options: Options) -> tuple[torch.Tensor, dict[str, float]]:
    sums = (batch.logprobs * batch.mask).sum(-1)  # [N]
    weights = torch.tensor([0.0 if behind(c) else c.advantage for c in batch.completions], device=sums.device)  # [N]
    loss, answered = -(weights * sums).sum(), {}  # thought -> places of its answers
    for i, c in enumerate(batch.completions):
        if behind(c):
            answered.setdefault(c.cohort, []).append(i)
    for places in answered.values():
        own = sums[places] / (batch.mask[places].sum(-1) if options.per_token else 1)
        loss = loss - batch.completions[places[0]].signals["answered"][0].item() * own.logsumexp(0)
    return loss, {}
