"""Passes over completions: what an objective wants to know of each token before its loss, by name.

A pass is a function of this file. It sets `signals[NAME]`, one number a token, of the completions in its rows; each
process of a run passes over its own rows, and all know the results.

`old`        log-probabilities under the policy as it is before the first optimizer step
`reference`  log-probabilities under the reference: the base, or the policy that a stage began with
`value`      the value head's predictions (made together with `old`)
`answer`     1 from the token on in which the last opening answer tag begins, else 0
`place`      k for the tokens of the k-th candidate that an answer names, up to the next one; 0 for all before the first
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from ranker.asking import answer_mask, written
from ranker.data import Completion, Group
from ranker.engine import distributed
from ranker.engine.policy import Policy
from ranker.engine.scoring import Row, batches, pack, score
from ranker.errors import UserError, nearest


@dataclass
class Batch:
    """Completions that were computed together, with gradients; `batch["name"]` is a signal of theirs, [N, T]."""

    completions: list[Completion]  # [N]
    groups: list[slice]  # of completions that are of one row
    logprobs: torch.Tensor  # [N, T], fp32
    values: torch.Tensor | None  # [N, T], of the value head
    mask: torch.Tensor  # [N, T], True for tokens of the completion
    step: int = 1  # of the stage
    seed: int = 0  # of what a loss draws
    own: dict[str, torch.nn.Module] = field(default_factory=dict)  # parameters of objectives, `policy.own`

    @property
    def scores(self) -> torch.Tensor:
        """Return what candidates score [N]: the sum over their tokens (by the signal `share`: a weighted sum), times
        the learned scale where there is one."""
        share = self.get("share", torch.ones_like(self.logprobs))
        scores = (self.logprobs * share * self.mask).sum(-1)
        return self.own["scale"](scores) if "scale" in self.own else scores

    def __getitem__(self, name: str) -> torch.Tensor:
        return stack([c.signals[name] for c in self.completions], self.mask)

    def get(self, name: str, otherwise: torch.Tensor | None = None) -> torch.Tensor | None:
        return self[name] if name in self.completions[0].signals else otherwise


def rows_of(groups: Sequence[Group], budget: float) -> list[Row]:
    """Return the rows of completions that are alive, at most `budget` tokens each; `keys` are the completions."""
    found = [c for group in groups for c in group.completions]
    ids = [[c.stem + c.ids for c in group.completions] for group in groups]
    rows = pack([group.prompt for group in groups], ids, budget, lambda key: found[key].alive)
    for row in rows:
        row.keys = [found[key] for key in row.keys]
        row.given = [len(c.stem) for c in row.keys]
        place = {id(c): i for i, c in enumerate(row.keys)}
        if any(c.behind is not None for c in row.keys):  # then all of a group is alive and stands in one row
            row.behind = [place[id(c.behind)] if c.behind is not None else -1 for c in row.keys]
    return rows


def batched(policy: Policy, rows: Sequence[Row], temperature: float, budget: int, step: int = 1, seed: int = 0,
            own: Sequence[str] = ()) -> Iterator[Batch]:
    """Compute rows in batches of at most `budget` tokens; each has a seed of its own. `own`: names of the objective's
    parameters."""
    for number, chosen in enumerate(batches(rows, budget)):
        logprobs, values, mask = score(policy, chosen, temperature)
        ends = [0]
        for row in chosen:
            ends.append(ends[-1] + len(row.keys))
        yield Batch([c for row in chosen for c in row.keys], [slice(*ends[i:i + 2]) for i in range(len(chosen))],
                    logprobs, values, mask, step, seed + number, {name: policy.own[name] for name in own})


@torch.no_grad()
def old(policy: Policy, rows: Sequence[Row], temperature: float, budget: int) -> None:
    """Score under the policy as it is; with a value head, its predictions too."""
    for batch in batched(policy, rows, temperature, budget):
        keep("old", batch.completions, batch.logprobs, batch.mask)
        if batch.values is not None:
            keep("value", batch.completions, batch.values, batch.mask)


value = old  # one forward pass gives both


@torch.no_grad()
def reference(policy: Policy, rows: Sequence[Row], temperature: float, budget: int) -> None:
    """Score under the reference."""
    with policy.reference():
        for batch in batched(policy, rows, temperature, budget):
            keep("reference", batch.completions, batch.logprobs, batch.mask)


def answer(policy: Policy, rows: Sequence[Row], temperature: float, budget: int) -> None:
    """Tell the tokens of the answer from those of the thought; no model runs."""
    for c in (c for row in rows for c in row.keys):
        c.signals["answer"] = answer_mask(policy, c.ids)


def place(policy: Policy, rows: Sequence[Row], temperature: float, budget: int) -> None:
    """Tell whose place in the answer's list tokens write; no model runs."""
    for c in (c for row in rows for c in row.keys):
        lengths = [len(written(policy, c.ids[:k])) for k in range(len(c.ids) + 1)] if c.answer.places else []
        starts = [max(k for k, length in enumerate(lengths) if length <= begin) for begin, _ in c.answer.places]
        c.signals["place"] = sum((torch.arange(len(c.ids)) >= start for start in starts),
                                 torch.zeros(len(c.ids), dtype=torch.long)).to(policy.device)


PASSES: dict[str, Callable] = {"reference": reference, "old": old, "value": value, "answer": answer, "place": place}


def run(names: set[str], taught: Sequence[Completion], policy: Policy, rows: Sequence[Row], temperature: float,
        budget: int) -> None:
    """Run the named passes over this process's rows; all processes know what they set of all that is taught."""
    for name in names - PASSES.keys():
        raise UserError(f"an objective asks for the pass '{name}'{nearest(name, PASSES)}; see ranker/passes.py")
    for done in dict.fromkeys(PASSES[name] for name in PASSES if name in names):
        done(policy, rows, temperature, budget)
    share(taught, policy.device)


def units(rows: Sequence[Row], unit: str) -> int:
    """Count the units of rows: tokens, texts (completions) or groups."""
    return {"token": sum(len(c.ids) for row in rows for c in row.keys), "text": sum(len(row.keys) for row in rows),
            "group": len(rows)}[unit]


def keep_first(name: str, batch: Batch) -> None:
    """Set a signal to the log-probabilities of a batch, for completions that do not have it."""
    if name not in batch.completions[0].signals:
        keep(name, batch.completions, batch.logprobs.detach(), batch.mask)


def sampler_gap(taught: Sequence[Completion], device: torch.device) -> dict[str, float]:
    """Return how far sampling and scoring are apart before the first optimizer step, mean and most over tokens.

    What nobody sampled for its prompt (traces, hinted completions) has no log-probabilities to compare.
    """
    share(taught, device)
    gap = torch.cat([(c.signals["old"] - torch.tensor(c.logprobs, device=device)).abs() for c in taught
                     if "old" in c.signals] or [torch.zeros(0)])
    gap = gap[~gap.isnan()].tolist()
    return {"sampler_gap": sum(gap) / len(gap) if gap else math.nan, "sampler_gap_max": max(gap, default=math.nan)}


def share(taught: Sequence[Completion], device: torch.device) -> None:
    """Let all processes know the signals of all completions."""
    if distributed.size() == 1:
        return
    mine = [{name: tensor.cpu() for name, tensor in c.signals.items()} for c in taught]
    for c, *parts in zip(taught, *distributed.gather(mine)):
        for part in parts:
            c.signals |= {name: tensor.to(device) for name, tensor in part.items()}


def keep(name: str, completions: Sequence[Completion], values: torch.Tensor, mask: torch.Tensor) -> None:
    """Set a signal of completions from values [N, T]."""
    for c, line, kept in zip(completions, values, mask):
        c.signals[name] = line[kept]


def stack(values: Sequence[torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
    """Lay out one number a token of each completion as `mask`, [N, T], zero elsewhere."""
    flat = torch.cat([value.to(mask.device) for value in values])
    return flat.new_zeros(mask.shape).masked_scatter(mask, flat)
