"""Attention for groups that share a prompt: one function for scoring whole completions, one for decoding.

Both compute what separate rows would. `packed` takes a long row of prompts, each followed by its completions, without
any padding: a prompt attends to itself, a completion to its prompt and itself. A block mask over the whole row would do
the same with several times the work, since completions never see each other.

`decoding` holds, and reads, a prompt's keys and values once for its group: a step's queries of a group are multiplied
with the keys of their prompt as one matrix, each with the keys of its own completion, and one softmax runs over both.
Reading a copy of the prompt a row is what bounds decoding otherwise. Groups may have unlike sizes; rows that ended leave.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import AttentionInterface, Cache
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward

PACKED, DECODING = "packed_groups", "shared_prompt"  # their names among the attention functions of transformers


@dataclass
class Layout:
    """Where prompts and completions stand in a packed row of `total` tokens; shorter ones are filled up at their end."""

    prompts: torch.Tensor  # [B, P], index of each token in the row
    completions: torch.Tensor  # [N, T]
    owner: torch.Tensor  # [N], the prompt of each completion
    visible: torch.Tensor  # [N, 1, T, P + T]: what a completion's token sees of its prompt and of itself
    order: torch.Tensor  # [total], where each token of the row stands in prompts and completions, one behind the other


def layout(prompts: Sequence[tuple[int, int]], completions: Sequence[tuple[int, int]], owner: Sequence[int], device: torch.device) -> Layout:
    """prompts, completions: (start, length) in the row; owner: the prompt of each completion."""
    def table(spans):
        starts, lengths = torch.tensor(spans, device=device).T  # [spans] each
        steps = torch.arange(int(lengths.max()), device=device)
        return starts[:, None] + steps.minimum(lengths[:, None] - 1), steps < lengths[:, None]  # [spans, longest] each

    (prompt, seen), (completion, real), owner = table(prompts), table(completions), torch.tensor(owner, device=device)
    steps = completion.shape[1]
    causal = torch.ones(steps, steps, dtype=torch.bool, device=device).tril()
    visible = torch.cat([seen[owner][:, None].expand(-1, steps, -1), causal.expand(len(owner), -1, -1)], -1)[:, None]
    kept = torch.cat([seen.flatten(), real.flatten()])
    index = torch.cat([prompt.flatten(), completion.flatten()])
    order = torch.empty(int(kept.sum()), dtype=torch.long, device=device)
    order[index[kept]] = kept.nonzero()[:, 0]
    return Layout(prompt, completion, owner, visible, order)


def packed(module, query, key, value, attention_mask, scaling, dropout=0.0, *, layout: Layout, **kwargs):
    """query [1, heads, total, d], key and value [1, kv, total, d] of one packed row -> [1, total, heads, d].

    `index_select` throughout: the gradient of plain indexing is added up by several threads in any order, and a run would
    not end the same twice.
    """
    flat = [states[0].transpose(0, 1) for states in (query, key, value)]  # [total, heads or kv, d]
    take = lambda states, index: states.index_select(0, index.flatten()).view(*index.shape, *states.shape[1:]).transpose(1, 2)  # noqa: E731
    prompts = [take(states, layout.prompts) for states in flat]  # [B, heads or kv, P, d]
    completions = [take(states, layout.completions) for states in flat]  # [N, heads or kv, T, d]
    keys, values = (torch.cat([prompts[i].index_select(0, layout.owner), completions[i]], 2) for i in (1, 2))  # [N, kv, P + T, d]
    of_prompts, _ = sdpa_attention_forward(module, *prompts, None, scaling=scaling, is_causal=True, **kwargs)  # [B, P, heads, d]
    of_completions, _ = sdpa_attention_forward(module, completions[0], keys, values, layout.visible, scaling=scaling, **kwargs)
    return torch.cat([of_prompts.flatten(0, 1), of_completions.flatten(0, 1)]).index_select(0, layout.order)[None], None


@dataclass
class Window:
    """What a step of decoding sees of the completions: `width` tokens, and of them those up to `at` [1], where it writes.

    The width grows by `block` tokens. By one it ends at `at`; by more, the steps of a block differ in nothing but what
    their tensors hold, as a CUDA graph needs, and what is not written yet is masked (`ahead` [width]).
    """

    at: torch.Tensor
    block: int = 1
    width: int = 0
    ahead: torch.Tensor | None = None

    def look(self) -> None:
        """The first thing of a step."""
        if self.block > 1:
            self.ahead = torch.arange(self.width, device=self.at.device) > self.at


class Layer(DynamicLayer):
    """Keys and values of one layer: `prompts` [B, kv, P, d], `completions` [rows, kv, room, d]."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, window: Window):
        super().__init__()
        self.prompts, self.completions, self.window = (keys, values), (), window
        self.is_initialized = True

    def make_room(self, rows: int, room: int) -> None:
        _, heads, _, d = self.prompts[0].shape
        make = torch.Tensor.new_empty if self.window.block == 1 else torch.Tensor.new_zeros  # what is read before it is written must be numbers
        self.completions = tuple(make(kept, (rows, heads, room, d)) for kept in self.prompts)

    def update(self, keys: torch.Tensor, values: torch.Tensor, *args, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
        """One more token a row, [rows, kv, 1, d] -> the completions, [rows, kv, width, d]."""
        for kept, new in zip(self.completions, (keys, values)):
            kept.index_copy_(2, self.window.at, new)
        return tuple(kept[:, :, :self.window.width] for kept in self.completions)

    def get_seq_length(self) -> int:
        return self.prompts[0].shape[2] + self.window.width


class Filled(DynamicLayer):
    """Keys and values of one layer [B, kv, width, d], whose beginning stands there already: new tokens are written behind it, in place."""

    def __init__(self, shape: tuple[int, int, int, int], like: torch.Tensor):
        super().__init__()
        self.keys, self.values = like.new_zeros(shape), like.new_zeros(shape)
        self.is_initialized = True

    def update(self, keys: torch.Tensor, values: torch.Tensor, *args, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
        """New tokens [B, kv, new, d] -> all, [B, kv, width, d]."""
        start = self.keys.shape[2] - keys.shape[2]
        self.keys[:, :, start:], self.values[:, :, start:] = keys, values
        return self.keys, self.values


class PromptCache(Cache):
    """Prompts (padded at either end) and the completions that grow behind them; `owner` says whose a row is, in order."""

    def __init__(self, prompts: Sequence[tuple[torch.Tensor, torch.Tensor]], real: torch.Tensor, owner: torch.Tensor, room: int, block: int = 1):
        """prompts: per layer keys and values [B, kv, P, d]; real [B, P], False for padding; owner [rows], ascending."""
        self.window = Window(torch.zeros(1, dtype=torch.long, device=owner.device), block)
        super().__init__(layers=[Layer(*layer, self.window) for layer in prompts])
        for layer in self.layers:
            layer.make_room(len(owner), room)
        self.padding = None if real.all() else ~real  # [B, P]
        self._place(owner)

    def _place(self, owner: torch.Tensor) -> None:
        self.owner, sizes = owner, owner.bincount(minlength=len(self.layers[0].prompts[0]))
        self.shape = len(sizes), int(sizes.max())  # B, G of the largest group
        nth = torch.arange(len(owner), device=owner.device) - (sizes.cumsum(0) - sizes)[owner]  # of its group
        self.slot = None if self.shape[0] * self.shape[1] == len(owner) else owner * self.shape[1] + nth  # [rows]

    def keep(self, rows: torch.Tensor) -> None:
        """Only these rows, ascending, and the prompts they need."""
        prompts, owner = self.owner[rows].unique_consecutive(return_inverse=True)
        for layer in self.layers:
            if len(prompts) < self.shape[0]:
                layer.prompts = tuple(kept[prompts] for kept in layer.prompts)
            written = [kept[rows, :, :self.window.width] for kept in layer.completions]
            layer.make_room(len(rows), layer.completions[0].shape[2])
            for kept, old in zip(layer.completions, written):
                kept[:, :, :self.window.width] = old
        self.padding = self.padding[prompts] if self.padding is not None else None
        self._place(owner)

    def by_prompt(self, rows: torch.Tensor) -> torch.Tensor:
        """[rows, kv, q, n] -> [B, kv, G * q, n]; groups smaller than the largest are filled with zeros."""
        if self.slot is not None:
            padded = rows.new_zeros(self.shape[0] * self.shape[1], *rows.shape[1:])
            padded[self.slot] = rows
            rows = padded
        _, heads, q, n = rows.shape
        return rows.view(*self.shape, heads, q, n).transpose(1, 2).reshape(self.shape[0], heads, self.shape[1] * q, n)

    def by_row(self, grouped: torch.Tensor) -> torch.Tensor:
        """The way back: [B, kv, G * q, n] -> [rows, kv, q, n]."""
        prompts, heads, queries, n = grouped.shape
        q = queries // self.shape[1]
        rows = grouped.view(prompts, heads, self.shape[1], q, n).transpose(1, 2).reshape(prompts * self.shape[1], heads, q, n)
        return rows if self.slot is None else rows[self.slot]


def decoding(module, query, key, value, attention_mask, scaling, dropout=0.0, *, prompt_cache: PromptCache, **kwargs):
    """One token a row: query [rows, heads, 1, d]; key, value [rows, kv, width, d], its completion -> [rows, 1, heads, d]."""
    keys, values = prompt_cache.layers[module.layer_idx].prompts
    rows, heads, _, d = query.shape
    query = query.reshape(rows, keys.shape[1], -1, d) * scaling  # [rows, kv, q, d]; heads of one key stand together
    of_prompt = prompt_cache.by_prompt(query) @ keys.transpose(-1, -2)  # [B, kv, G * q, P]
    if prompt_cache.padding is not None:
        of_prompt.masked_fill_(prompt_cache.padding[:, None, None], -torch.inf)
    of_completion = query @ key.transpose(-1, -2)  # [rows, kv, q, width]
    if prompt_cache.window.ahead is not None:
        of_completion.masked_fill_(prompt_cache.window.ahead, -torch.inf)
    scores = torch.cat([prompt_cache.by_row(of_prompt), of_completion], -1)
    weights = scores.softmax(-1, dtype=torch.float32).to(value.dtype)  # [rows, kv, q, P + width]
    prompt = keys.shape[2]
    found = prompt_cache.by_row(prompt_cache.by_prompt(weights[..., :prompt]) @ values) + weights[..., prompt:] @ value
    return found.reshape(rows, 1, heads, d), None


AttentionInterface.register(PACKED, packed)
AttentionInterface.register(DECODING, decoding)
