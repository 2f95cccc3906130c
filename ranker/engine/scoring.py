"""Log-probabilities of completions: [prompt, completion 1, ..., completion G] per group, all groups in one packed row.

Every token sees the prompt and its own completion; the positions of every completion continue from the prompt. So a
prompt is computed once per group, nothing is computed for padding, and loss and gradients equal those of separate rows.
The first token of each completion is predicted by the prompt's last position. Only hidden states that predict
completion tokens go through the LM head, in chunks that are recomputed in the backward pass, so that the full logits
never exist. Masks come from lengths; the end token is part of the completion.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch.utils.checkpoint import checkpoint

from ranker.engine.attention import PACKED, layout
from ranker.engine.policy import Policy

CHUNK, LOGITS = 1024, 2**28  # the most tokens that go through the LM head at once, the most bytes of their fp32 logits


def chunk_of(head: torch.nn.Linear) -> int:
    """Return how many tokens go through the LM head at once.

    The number depends on the vocabulary alone, not on the memory free at the moment: that would change the order of
    sums, and a resumed run would not end the same.
    """
    return max(1, min(CHUNK, LOGITS // (4 * head.weight.shape[0])))


@dataclass
class Row:
    """Hold a prompt with completions of its group; `keys[i]` is the number of `completions[i]` among all groups.

    A completion may continue another one, which stands before it in the row: an answer behind a thought that other
    answers continue as well. Its first tokens may be given: of its own prompt, where the prompts of a group begin alike
    and differ. They are seen and get no log-probability.
    """

    prompt: list[int]
    completions: list[list[int]]
    keys: list[int]
    behind: list[int] = field(default_factory=list)  # place of the completion that each continues, -1: none; empty: all
    given: list[int] = field(default_factory=list)  # how many first tokens of each completion are; empty: none

    def __len__(self) -> int:
        return len(self.prompt) + sum(map(len, self.completions))


def pack(prompts: Sequence[list[int]], completions: Sequence[list[list[int]]], budget: int,
         alive: Callable[[int], bool] = lambda key: True) -> list[Row]:
    """Return a row per group; a group over `budget` tokens is split into rows that repeat its prompt.

    Keys count the completions of all groups. A completion whose key is not `alive` is left out, and so is a group
    without alive completions. A single completion over the budget still makes a row: nothing is cut.
    """
    rows, key = [], 0
    for prompt, group in zip(prompts, completions, strict=True):
        row = Row(prompt, [], [])
        for key, completion in enumerate(group, key):
            if not alive(key):
                continue
            if row.keys and len(row) + len(completion) > budget:
                rows.append(row)
                row = Row(prompt, [], [])
            row.completions.append(completion)
            row.keys.append(key)
        key += bool(group)
        if row.keys:
            rows.append(row)
    return rows


def batches(rows: Sequence[Row], budget: int) -> Iterator[list[Row]]:
    """Yield batches of rows of similar length, the longest first: at most `budget` tokens, but at least one row."""
    batch: list[Row] = []
    for row in sorted(rows, key=len, reverse=True):
        if batch and sum(map(len, batch)) + len(row) > budget:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def predicting(policy: Policy, rows: Sequence[Row]) -> tuple[torch.Tensor, list[int], list[int]]:
    """Return the hidden states [tokens, H] that predict completion tokens, these tokens, and how many a completion has.

    Given tokens are not among them.
    """
    ids, positions, prompts, completions, owner, behind = [], [], [], [], [], []
    places, targets, sizes = [], [], []  # places[i]: where in the packed row the state stands that predicts targets[i]
    for r, row in enumerate(rows):
        p, prompt_end = len(row.prompt), len(ids) + len(row.prompt)
        prompts.append((len(ids), p))
        ids += row.prompt
        positions += range(p)
        first = len(completions)
        every = len(row.completions)
        for completion, parent, given in zip(row.completions, row.behind or [-1] * every, row.given or [0] * every):
            start, end = len(ids), len(ids) + len(completion)
            before, length = completions[first + parent] if parent >= 0 else (0, 0)
            ids += completion
            positions += range(p + length, p + length + len(completion))
            completions.append((start, len(completion)))
            behind.append(first + parent if parent >= 0 else -1)
            owner.append(r)
            last = before + length - 1 if length else prompt_end - 1
            places += [last, *range(start, end - 1)][given:len(completion)]
            targets += completion[given:]
            sizes.append(len(completion) - given)
    tensor = lambda numbers: torch.tensor(numbers, device=policy.device)  # noqa: E731
    policy.taught = taught = tensor(places)
    try:
        with policy.attend(PACKED):
            packed = layout(prompts, completions, owner, policy.device, behind)
            hidden = policy.trunk(input_ids=tensor([ids]), position_ids=tensor([positions]), use_cache=False,
                                  layout=packed).last_hidden_state[0]  # [total, H]
    finally:
        policy.taught = None
    return hidden.index_select(0, taught), targets, sizes  # not by indexing: see `packed`


def score(policy: Policy, rows: Sequence[Row],
          temperature: float) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """Compute fp32 log-probabilities at `temperature`, the critic's values (None without a critic) and a mask: [N, T].

    N counts the completions of the rows in order. The value of a token is computed from the state that predicts the
    token: it knows the tokens before, not the token itself. The critic's gradient stops at the hidden states.
    """
    states, targets, sizes = predicting(policy, rows)  # [tokens, H]
    targets, counts = (torch.tensor(numbers, device=policy.device) for numbers in (targets, sizes))
    flat = head_logprobs(policy.head, states, targets, temperature, policy.behind_head)  # [tokens]
    token_mask = torch.arange(max(sizes), device=policy.device) < counts[:, None]  # [N, T]
    spread = lambda flat: flat.new_zeros(token_mask.shape).masked_scatter(token_mask, flat)  # noqa: E731
    values = spread(policy.critic(states.detach().float())[:, 0]) if policy.critic is not None else None
    return spread(flat), values, token_mask


@torch.no_grad()
def score_all(policy: Policy, rows: Sequence[Row], temperature: float,
              budget: int) -> tuple[dict[int, torch.Tensor], dict[int, torch.Tensor]]:
    """Return completion key -> log-probabilities [its tokens], and key -> the critic's values (empty without a critic).

    Nothing has a gradient. `budget`: the most tokens of a batch.
    """
    found, valued = {}, {}
    for batch in batches(rows, budget):
        logprobs, values, mask = score(policy, batch, temperature)
        keys = [k for row in batch for k in row.keys]
        found.update(zip(keys, (line[kept] for line, kept in zip(logprobs, mask))))
        if values is not None:
            valued.update(zip(keys, (line[kept] for line, kept in zip(values, mask))))
    return found, valued


def stack(values: dict[int, torch.Tensor], keys: Sequence[int], mask: torch.Tensor) -> torch.Tensor:
    """Return the values of `keys` as a matrix [N, T] with the values where `mask` is true, zero elsewhere."""
    flat = torch.cat([values[k] for k in keys])
    return flat.new_zeros(mask.shape).masked_scatter(mask, flat)


def head_logprobs(head, states: torch.Tensor, targets: torch.Tensor, temperature: float,
                  behind: Callable[[torch.Tensor], torch.Tensor] = lambda logits: logits) -> torch.Tensor:
    """Return log softmax(behind(head(states)) / temperature) at `targets`, fp32: states [tokens, H] -> [tokens].

    `behind` is what a model does with its logits, such as soft-capping. Chunks are recomputed in the backward pass.
    """

    def chunk(states, targets):
        logits = behind(head(states).float()) / temperature
        return logits.gather(-1, targets[:, None])[:, 0] - logits.logsumexp(-1)

    parts, size = [], chunk_of(head)
    for start in range(0, len(targets), size):
        piece = states[start:start + size], targets[start:start + size]
        recompute = torch.is_grad_enabled() and states.requires_grad and len(targets) > size
        parts.append(checkpoint(chunk, *piece, use_reentrant=False) if recompute else chunk(*piece))
    return torch.cat(parts)
