"""Attention for groups that share a prompt: for computing prompts, for scoring whole completions, and for decoding.

All three compute the same as separate rows would, sliding windows and soft-capping included. `packed` takes a long row
of prompts, each followed by its completions, without any padding: a prompt attends to itself, a completion to its
prompt and itself. A block mask over the whole row would do the same with several times the work, since completions
never see each other.

`decoding` holds and reads the keys and values of a prompt once for its group. In a step the queries of a group are
multiplied with the keys of their prompt as one matrix, and each query with the keys of its own completion; one softmax
runs over both. With a copy of the prompt for every row, reading the copies would bound the speed of decoding. Groups
may differ in size, and finished rows leave. Scores are fp32: with large key biases, as Qwen2.5 has, bf16 scores move a
log-probability by 0.05 to 0.09.

A model passes further wishes (a window, a soft-cap) by name. A wish that is not known here (sinks, a bias) is an error,
so that such a model is refused when it is loaded and never computed without its wish.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from transformers import AttentionInterface, Cache
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward

PREFILLING, PACKED, DECODING = "prompts", "packed_groups", "shared_prompt"  # names of the three in transformers
IGNORED = {"dropout", "position_ids", "use_cache", "cache_position", "is_causal", "output_attentions",
           "past_key_values", "token_type_ids"}
PASSES_NOTHING = "its layers pass nothing on to their attention"


def refuse_unknown(arguments: dict) -> None:
    """Raise ValueError for an argument of a model's attention that changes scores and is not computed here."""
    for name, value in arguments.items():
        if name not in IGNORED and value is not None and value is not False:
            raise ValueError(f"its attention wants '{name}', which is not computed here")


def within(mask: torch.Tensor, at: torch.Tensor, keys: torch.Tensor, window: int) -> torch.Tensor:
    """Return `mask` without the keys behind a window, which holds `window` tokens up to the query's own at `at`."""
    return mask & (keys > at - window)


def attention(module, query, key, value, mask, scaling, softcap: float | None) -> torch.Tensor:
    """Attend with a mask [B or 1, 1, Q, K]: query [B, heads, Q, d], key, value [B, kv, K, d] -> [B, Q, heads, d].

    Without a mask a query sees the keys up to its own. With `softcap` the scores are computed step by step, since no
    fused kernel caps scores.
    """
    if softcap is None:
        return sdpa_attention_forward(module, query, key, value, mask, scaling=scaling, is_causal=mask is None)[0]
    batch, heads, width, d = query.shape
    if mask is None:
        mask = torch.ones(1, 1, width, width, dtype=torch.bool, device=query.device).tril()
    query = query.reshape(batch, key.shape[1], -1, width, d)  # [B, kv, heads of a key, Q, d]
    scores = softcap * (query @ key[:, :, None].transpose(-1, -2) * (scaling / softcap)).tanh()
    weights = scores.masked_fill(~mask[:, :, None], -torch.inf).softmax(-1, dtype=torch.float32).to(value.dtype)
    return (weights @ value[:, :, None]).reshape(batch, heads, width, d).transpose(1, 2)


@dataclass
class Prefill:
    """Hold which columns the new tokens of prompts see, `visible` [B, 1, new, width]; None where rows are causal."""

    visible: torch.Tensor | None
    at: torch.Tensor  # [new, 1], columns of the new tokens
    columns: torch.Tensor  # [width]
    masks: dict[int, torch.Tensor] = field(default_factory=dict)  # window -> the columns visible in it

    def mask(self, window: int | None) -> torch.Tensor | None:
        """Return the mask of a layer with this window (None: no window); None for a causal row."""
        if window is None or window >= len(self.columns):
            return self.visible
        if window not in self.masks:
            visible = (self.columns <= self.at)[None, None] if self.visible is None else self.visible
            self.masks[window] = within(visible, self.at, self.columns, window)
        return self.masks[window]


def prefilling(module, query, key, value, attention_mask, scaling, *, prefill: Prefill | None = None,
               sliding_window=None, softcap=None, **others):
    """Attend from prompts' new tokens: query [B, heads, new, d], key, value [B, kv, width, d] -> [B, new, heads, d]."""
    refuse_unknown(others)
    if prefill is None:
        raise ValueError(PASSES_NOTHING)
    return attention(module, query, key, value, prefill.mask(sliding_window), scaling, softcap), None


@dataclass
class Layout:
    """Hold where prompts and completions stand in a packed row of `total` tokens.

    Tables have the width of the longest prompt or completion; shorter ones repeat their last token. Completions that
    continue another one stand in its line, behind it, and do not see each other.
    """

    prompts: torch.Tensor  # [B, P], index of each token in the row
    completions: torch.Tensor  # [N, T], a line each, with those that continue it
    owner: torch.Tensor  # [N], the prompt of each line
    group: int  # completions per prompt, on CUDA where all prompts have the same number; else 0
    visible: torch.Tensor  # [N, 1, T, P + T]: the tokens that a completion's token sees, of its prompt and itself
    keys: torch.Tensor  # [N, 1, 1, P + T], positions of these keys
    order: torch.Tensor  # [total], place of each token of the row in the tables: prompts first, then completions
    masks: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)  # window -> masks within it
    windows: list[int | None] = field(default_factory=list)  # the window that each layer asked for

    def visible_in(self, window: int | None) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Return the masks of prompts (None: causal) and of completions for a layer with this window."""
        width = self.prompts.shape[1]
        self.windows.append(window)
        if window is None or window >= self.keys.shape[-1]:
            return None, self.visible
        if window not in self.masks:
            column = self.keys[:1, ..., :width]  # of prompts, [1, 1, 1, P]
            at = self.keys[..., width:].transpose(-1, -2)  # [N, 1, T, 1]
            causal = column <= column.transpose(-1, -2)
            self.masks[window] = (within(causal, column.transpose(-1, -2), column, window),
                                  within(self.visible, at, self.keys, window))
        return self.masks[window]


def layout(prompts: Sequence[tuple[int, int]], completions: Sequence[tuple[int, int]], owner: Sequence[int],
           device: torch.device, behind: Sequence[int] = ()) -> Layout:
    """Return the Layout of prompts and completions, each (start, length) in the row; `owner`: their prompts.

    `behind`: the number of the completion that each continues, -1 for none; empty: none does.
    """
    def table(spans):
        starts, lengths = torch.tensor(spans, device=device).T  # [spans] each
        steps = torch.arange(int(lengths.max()), device=device)
        return starts[:, None] + steps.minimum(lengths[:, None] - 1), steps < lengths[:, None]  # [spans, longest] each

    prompt, seen = table(prompts)
    if any(parent >= 0 for parent in behind):
        completion, real, place, inner, owner = lines_of(completions, behind, owner, device)
    else:
        completion, real = table(completions)
        place = torch.arange(completion.shape[1], device=device)
        inner = torch.ones(len(place), len(place), dtype=torch.bool, device=device).tril()
    group, owner = equal_groups(owner, len(prompts), device.type), torch.tensor(owner, device=device)
    width, steps = prompt.shape[1], completion.shape[1]
    visible = torch.cat([seen[owner][:, None].expand(-1, steps, -1), inner.expand(len(owner), -1, -1)], -1)[:, None]
    begins = seen[owner].sum(-1)[:, None]  # [N, 1], position of a line's first token
    of_prompt = torch.arange(width, device=device).expand(len(owner), -1)
    keys = torch.cat([of_prompt, (begins + place).expand(len(owner), -1)], -1)
    kept = torch.cat([seen.flatten(), real.flatten()])
    index = torch.cat([prompt.flatten(), completion.flatten()])
    order = torch.empty(int(kept.sum()), dtype=torch.long, device=device)
    order[index[kept]] = kept.nonzero()[:, 0]
    return Layout(prompt, completion, owner, group, visible, keys[:, None, None], order)


def lines_of(completions: Sequence[tuple[int, int]], behind: Sequence[int], owner: Sequence[int],
             device: torch.device) -> tuple:
    """Return the lines of completions with those that continue them: index, real, place [N, T], visible [N, T, T] and
    the lines' prompts. A place is counted from the end of the prompt; a token sees what its own continues, and itself.
    """
    lines, number = [], {}
    for i, parent in enumerate(behind):
        number[i] = len(lines) if parent < 0 else number[parent]
        lines += [[]] * (parent < 0)
        lines[number[i]] = lines[number[i]] + [i]
    index, place, part = [], [], []  # part: 0 for what is continued, k for the k-th continuation
    for line in lines:
        spans = [completions[i] for i in line]
        index.append([t for start, length in spans for t in range(start, start + length)])
        place.append([t + (spans[0][1] if k else 0) for k, (_, length) in enumerate(spans) for t in range(length)])
        part.append([k for k, (_, length) in enumerate(spans) for _ in range(length)])
    width = max(map(len, index))
    fill = lambda rows: torch.tensor([row + (row[-1:] or [0]) * (width - len(row)) for row in rows],  # noqa: E731
                                     device=device)
    real = torch.arange(width, device=device) < torch.tensor(list(map(len, index)), device=device)[:, None]
    parts = fill(part)
    same = (parts[:, None] == 0) | (parts[:, None] == parts[..., None])  # [N, T of queries, T of keys]
    visible = same & torch.ones(width, width, dtype=torch.bool, device=device).tril()
    return fill(index), real, fill(place), visible, [owner[line[0]] for line in lines]


def equal_groups(owner: Sequence[int], prompts: int, device: str) -> int:
    """Return the number of completions per prompt, on CUDA and where it is the same for all prompts, in order; else 0.

    On a CPU `index_select` adds gradients in a fixed order anyway, and 0 keeps recorded runs as they were.
    """
    group = len(owner) // prompts
    return group if device == "cuda" and list(owner) == [i // group for i in range(group * prompts)] else 0


def packed(module, query, key, value, attention_mask, scaling, *, layout: Layout | None = None, sliding_window=None,
           softcap=None, **others):
    """Attend in a packed row: query [1, heads, total, d], key, value [1, kv, total, d] -> [1, total, heads, d].

    Tokens are taken by `index_select`: on a CPU the gradient of plain indexing is added up by several threads in any
    order, so that a run would not end the same twice. On CUDA the gradient of `index_select` is added up in any order
    too, by atomics, wherever an index repeats; so equal groups `expand` their prompt. Two indices still repeat there:
    the last token of a shorter prompt or completion, as padding, whose gradient is zero, and prompts of unequal groups.
    """
    refuse_unknown(others)
    if layout is None:
        raise ValueError(PASSES_NOTHING)
    flat = [states[0].transpose(0, 1) for states in (query, key, value)]  # [total, heads or kv, d]
    take = lambda states, index: (states.index_select(0, index.flatten())  # noqa: E731
                                  .view(*index.shape, *states.shape[1:]).transpose(1, 2))
    prompts = [take(states, layout.prompts) for states in flat]  # [B, heads or kv, P, d]
    completions = [take(states, layout.completions) for states in flat]  # [N, heads or kv, T, d]
    each = ((lambda states: states[:, None].expand(-1, layout.group, -1, -1, -1).flatten(0, 1)) if layout.group
            else lambda states: states.index_select(0, layout.owner))  # [B, ...] -> [N, ...]
    keys, values = (torch.cat([each(prompts[i]), completions[i]], 2) for i in (1, 2))  # [N, kv, P + T, d]
    of_prompts, of_completions = layout.visible_in(sliding_window)
    found = [attention(module, *prompts, of_prompts, scaling, softcap),  # [B, P, heads, d]
             attention(module, completions[0], keys, values, of_completions, scaling, softcap)]  # [N, T, heads, d]
    return torch.cat([part.flatten(0, 1) for part in found]).index_select(0, layout.order)[None], None


@dataclass
class Window:
    """The tokens of completions that a step of decoding sees: of `width` tokens those up to `at` [1], where it writes.

    The width grows by `block` tokens. With a block of one token the width ends at `at`. With a longer block the steps
    of a block differ only in the contents of their tensors, as a CUDA graph needs; tokens not yet written are masked.
    """

    at: torch.Tensor
    block: int = 1
    width: int = 0
    hidden: dict = field(default_factory=dict)  # sliding window -> masks of this step, see PromptCache.hidden

    def look(self) -> None:
        """Forget the masks of the step before; called first in every step."""
        self.hidden.clear()


class Layer(DynamicLayer):
    """The keys and values of a layer while decoding: `prompts` [B, kv, P, d], `completions` [rows, kv, room, d]."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, window: Window):
        super().__init__()
        self.prompts, self.completions, self.window = (keys, values), (), window
        self.is_initialized = True

    def make_room(self, rows: int, room: int) -> None:
        """Allocate the completions of so many rows, `room` tokens each."""
        # In a block of several tokens unwritten keys are read (and masked), so that they must be numbers.
        make = torch.Tensor.new_empty if self.window.block == 1 else torch.Tensor.new_zeros
        self.completions = tuple(make(kept, (rows, kept.shape[1], room, kept.shape[3])) for kept in self.prompts)

    def update(self, keys: torch.Tensor, values: torch.Tensor, *args, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
        """Add a token to each row, [rows, kv, 1, d], and return the completions' keys, values [rows, kv, width, d]."""
        for kept, new in zip(self.completions, (keys, values)):
            kept.index_copy_(2, self.window.at, new)
        return tuple(kept[:, :, :self.window.width] for kept in self.completions)

    def get_seq_length(self) -> int:
        return self.prompts[0].shape[2] + self.window.width


class Filled(DynamicLayer):
    """The keys and values of a layer [B, kv, width, d] whose beginning is known: new tokens are written behind it."""

    def __init__(self, shape: tuple[int, int, int, int], like: torch.Tensor):
        super().__init__()
        self.keys, self.values = like.new_zeros(shape), like.new_zeros(shape)
        self.is_initialized = True

    def update(self, keys: torch.Tensor, values: torch.Tensor, *args, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
        """Write new tokens [B, kv, new, d] in place and return all keys and values, [B, kv, width, d]."""
        start = self.keys.shape[2] - keys.shape[2]
        self.keys[:, :, start:], self.values[:, :, start:] = keys, values
        return self.keys, self.values


class PromptCache(Cache):
    """The keys and values of B prompts, padded at either end, and of the completions that grow behind them."""

    def __init__(self, prompts: Sequence[tuple[torch.Tensor, torch.Tensor]], real: torch.Tensor, owner: torch.Tensor,
                 room: int, block: int = 1):
        """Take the prompts, per layer keys and values [B, kv, P, d], and make room for `room` tokens per completion.

        `real` [B, P] is False for padding; `owner` [rows], ascending, is the prompt of each row.
        """
        self.window = Window(torch.zeros(1, dtype=torch.long, device=owner.device), block)
        super().__init__(layers=[Layer(*layer, self.window) for layer in prompts])
        for layer in self.layers:
            layer.make_room(len(owner), room)
        self.padding = None if real.all() else ~real  # [B, P]
        self.ends = real.shape[1] - 1 - real.flip(-1).long().argmax(-1)  # [B], column of each prompt's last token
        self._place(owner)

    def _place(self, owner: torch.Tensor) -> None:
        """Find the place of each row in a table of B prompts by G rows; groups smaller than G leave places free."""
        self.owner, sizes = owner, owner.bincount(minlength=len(self.layers[0].prompts[0]))
        self.shape = len(sizes), int(sizes.max())  # B, G of the largest group
        nth = torch.arange(len(owner), device=owner.device) - (sizes.cumsum(0) - sizes)[owner]  # in its group
        self.slot = None if self.shape[0] * self.shape[1] == len(owner) else owner * self.shape[1] + nth  # [rows]
        self.window.hidden.clear()

    def keep(self, rows: torch.Tensor) -> None:
        """Keep only these rows, ascending, and the prompts of these rows."""
        prompts, owner = self.owner[rows].unique_consecutive(return_inverse=True)
        for layer in self.layers:
            if len(prompts) < self.shape[0]:
                layer.prompts = tuple(kept[prompts] for kept in layer.prompts)
            written = [kept[rows, :, :self.window.width] for kept in layer.completions]
            layer.make_room(len(rows), layer.completions[0].shape[2])
            for kept, old in zip(layer.completions, written):
                kept[:, :, :self.window.width] = old
        self.padding = self.padding[prompts] if self.padding is not None else None
        self.ends = self.ends[prompts]
        self._place(owner)

    def hidden(self, window: int | None) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Return masks of the tokens that a step does not see: of prompts [B, 1, 1, P], of completions [width].

        None means that it sees all. Masks are computed from tensors, so that a replayed step makes its own masks.
        """
        if window in self.window.hidden:
            return self.window.hidden[window]
        at, length = self.window.at, self.layers[0].prompts[0].shape[2]
        column, step = torch.arange(length, device=at.device), torch.arange(self.window.width, device=at.device)
        prompt, completion = self.padding, step > at if self.window.block > 1 else None
        if window is not None and window < length + self.window.width:
            left = column <= self.ends[:, None] + 1 + at - window  # [B, P], tokens behind the window
            prompt = left if prompt is None else left | prompt
            completion = step <= at - window if completion is None else (step <= at - window) | completion
        self.window.hidden[window] = None if prompt is None else prompt[:, None, None], completion
        return self.window.hidden[window]

    def by_prompt(self, rows: torch.Tensor) -> torch.Tensor:
        """Group rows by prompt: [rows, kv, q, n] -> [B, kv, G * q, n]; smaller groups are filled up with zeros."""
        if self.slot is not None:
            padded = rows.new_zeros(self.shape[0] * self.shape[1], *rows.shape[1:])
            padded[self.slot] = rows
            rows = padded
        _, heads, q, n = rows.shape
        return rows.view(*self.shape, heads, q, n).transpose(1, 2).reshape(self.shape[0], heads, self.shape[1] * q, n)

    def by_row(self, grouped: torch.Tensor) -> torch.Tensor:
        """Undo `by_prompt`: [B, kv, G * q, n] -> [rows, kv, q, n]."""
        prompts, heads, queries, n = grouped.shape
        q = queries // self.shape[1]
        rows = (grouped.view(prompts, heads, self.shape[1], q, n)
                .transpose(1, 2).reshape(prompts * self.shape[1], heads, q, n))
        return rows if self.slot is None else rows[self.slot]


def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Multiply a [..., m, d] by b [..., d, n] in fp32, whatever their types."""
    if a.dtype == torch.float32 or a.device.type == "cpu":
        return a.float() @ b.float()
    return torch.bmm(a.flatten(0, -3), b.flatten(0, -3), out_dtype=torch.float32).view(*a.shape[:-1], b.shape[-1])


def decoding(module, query, key, value, attention_mask, scaling, *, prompt_cache: PromptCache, sliding_window=None,
             softcap=None, **others):
    """Attend from one token per row: query [rows, heads, 1, d], key, value [rows, kv, width, d] -> [rows, 1, heads, d].

    `key` and `value` are those of the row's completion; those of its prompt are in `prompt_cache`.
    """
    refuse_unknown(others)
    keys, values = prompt_cache.layers[module.layer_idx].prompts
    rows, heads, _, d = query.shape
    query = query.reshape(rows, keys.shape[1], -1, d)  # [rows, kv, q, d]; heads of one key stand together
    if query.dtype == torch.float32:  # scale the query, which is smaller than the scores; in bf16 it would be rounded
        query, scaling = query * scaling, 1.0

    def capped(scores: torch.Tensor) -> torch.Tensor:
        scores = scores if scaling == 1.0 else scores * scaling
        return scores if softcap is None else softcap * (scores / softcap).tanh()

    of_prompt = capped(product(prompt_cache.by_prompt(query), keys.transpose(-1, -2)))  # [B, kv, G * q, P]
    of_completion = capped(product(query, key.transpose(-1, -2)))  # [rows, kv, q, width]
    for scores, hidden in zip((of_prompt, of_completion), prompt_cache.hidden(sliding_window)):
        if hidden is not None:
            scores.masked_fill_(hidden, -torch.inf)
    weights = torch.cat([prompt_cache.by_row(of_prompt), of_completion], -1).softmax(-1)  # [rows, kv, q, P + width]
    weights = weights.to(value.dtype)
    prompt = keys.shape[2]
    found = prompt_cache.by_row(prompt_cache.by_prompt(weights[..., :prompt]) @ values) + weights[..., prompt:] @ value
    return found.reshape(rows, 1, heads, values.shape[-1]), None


AttentionInterface.register(PREFILLING, prefilling)
AttentionInterface.register(PACKED, packed)
AttentionInterface.register(DECODING, decoding)
