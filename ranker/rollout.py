"""Sampling: each prompt is computed once, its cache is expanded to its group, finished rows leave the batch.

Token ids are kept as sampled and never decoded and encoded again. A completion ends with an end token of the
generation config or with the token that completes `</answer>`; that token belongs to the completion. Nothing of the
model's own generation config but its end tokens is used: plain sampling at one temperature, or the most likely token
at temperature 0.
"""

import time
from collections.abc import Callable, Sequence
from itertools import islice

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from ranker import config as settings
from ranker.answers import parse
from ranker.data import Ask, Completion, Group
from ranker.drive import Model
from ranker.policy import Policy

Sample = tuple[list[int], list[float], bool]  # token ids, their log-probabilities, finished
STOP = "</answer>"
TAIL = 16  # tokens decoded to look for STOP
COMPACT_AT = 0.25  # share of finished rows that is worth copying the cache for


class GrowingLayer(DynamicLayer):
    """A cache layer with room to grow: a new token is written in place instead of copying the whole cache."""

    def __init__(self, room: int):
        super().__init__()
        self.room, self.length = room, 0  # tokens that will follow the prompt, tokens held

    def update(self, keys, values, *args, **kwargs):
        """keys, values [rows, heads, new, d] -> all that is held, [rows, heads, length, d]."""
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
            self.keys, self.values = keys, values
            self.length = keys.shape[-2]
            return keys, values
        end = self.length + keys.shape[-2]
        self.keys[:, :, self.length:end] = keys
        self.values[:, :, self.length:end] = values
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def append_rows(self, other: "GrowingLayer") -> None:
        """Take over the prompts of another layer of the same length."""
        self.keys = other.keys if self.keys is None else torch.cat([self.keys, other.keys])
        self.values = other.values if self.values is None else torch.cat([self.values, other.values])
        self.length, self.is_initialized = other.length, True

    def get_seq_length(self) -> int:
        return self.length

    def expand(self, rows: torch.Tensor) -> None:
        """Take these rows, each as often as it is named, with room behind them."""
        def grown(states):
            _, heads, length, d = states.shape
            buffer = states.new_empty(len(rows), heads, length + self.room, d)
            buffer[:, :, :length] = states[rows]
            return buffer
        self.keys, self.values = grown(self.keys), grown(self.values)


class Sampler:
    """Samples completions of token-id prompts from a policy, as the `rollout` section of a config says."""

    def __init__(self, policy: Policy, rollout: settings.Rollout):
        self.policy, self.settings = policy, rollout
        # Only a token with a `>` in it can complete the stop string: all others need no look at the text.
        self.closing = {i for token, i in policy.tokenizer.get_vocab().items() if ">" in token}
        size = max(policy.head.weight.shape[0], len(policy.tokenizer))
        watched = torch.zeros(size, dtype=torch.bool)
        watched[list(self.closing | policy.stop_ids)] = True
        self.watched = watched.to(policy.device)  # [V]
        config = policy.causal_lm.config
        self.layers = (config.get_text_config() if hasattr(config, "get_text_config") else config).num_hidden_layers

    @torch.no_grad()
    def __call__(self, prompts: Sequence[list[int]], counts: int | Sequence[int], temperature: float, seed: int = 0) -> list[list[Sample]]:
        """`counts` samples for each prompt, or `counts[i]` for prompt i: (token ids, their log-probabilities in fp32, finished).

        Deterministic for the same prompts and seed. Log-probabilities are of the sampled distribution.
        """
        device, max_new_tokens = self.policy.device, self.settings.max_new_tokens
        counts = torch.tensor([counts] * len(prompts) if isinstance(counts, int) else counts, device=device)
        generator = torch.Generator(device).manual_seed(seed)
        width = max(len(p) for p in prompts)
        lengths = torch.tensor([len(p) for p in prompts], device=device)
        ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts], device=device)  # [B, P], padded on the left
        real = torch.arange(width, device=device) >= width - lengths[:, None]  # [B, P]
        causal = torch.ones(width, width, dtype=torch.bool, device=device).tril()
        # A padding row sees itself: a row without any key would be NaN.
        mask = causal & real[:, None, :] | torch.eye(width, dtype=torch.bool, device=device)  # [B, P, P]
        positions = (real.long().cumsum(-1) - 1).clamp(min=0)
        cache = self._new_cache()
        logits = []
        rows_at_once = max(1, self.settings.tokens_per_prefill // width)
        for start in range(0, len(prompts), rows_at_once):
            piece, part = slice(start, start + rows_at_once), self._new_cache()
            logits.append(self._forward(ids[piece], mask[piece, None], positions[piece], part))
            for layer, more in zip(cache.layers, part.layers):
                layer.append_rows(more)
        logits = torch.cat(logits)  # [B, V]

        source = torch.repeat_interleave(counts)  # [rows], the prompt of each
        for layer in cache.layers:
            layer.expand(source)
        rows = torch.arange(len(source), device=device)  # row of the batch -> row of the result
        logits = logits[source]
        position = lengths[source]  # [rows], of the next token
        visible = torch.cat([real, torch.ones(len(prompts), max_new_tokens, dtype=torch.bool, device=device)], 1)
        visible = visible[source]  # [rows, P + new]
        tokens: list[list[int]] = [[] for _ in rows]
        logprobs: list[list[float]] = [[] for _ in rows]
        finished, live = [False] * len(rows), torch.ones(len(rows), dtype=torch.bool, device=device)
        for t in range(max_new_tokens):
            token, logprob = _draw(logits, temperature, generator)  # [rows], [rows]
            look = (self.watched[token] & live).tolist()
            for i, (row, alive, k, value) in enumerate(zip(rows.tolist(), live.tolist(), token.tolist(), logprob.tolist())):
                if not alive:
                    continue
                tokens[row].append(k)
                logprobs[row].append(value)
                if look[i] and self._ends(tokens[row]):
                    finished[row] = True
                    live[i] = False
            if t + 1 == max_new_tokens or not live.any():
                break
            if live.float().mean() <= 1 - COMPACT_AT:
                kept = live.nonzero()[:, 0]
                cache.batch_select_indices(kept)
                rows, token, position, visible = rows[kept], token[kept], position[kept], visible[kept]
                live = live[kept]
            logits = self._forward(token[:, None], visible[:, None, None, :width + t + 1], position[:, None], cache)
            position = position + 1
        results = iter(zip(tokens, logprobs, finished))
        return [list(islice(results, count)) for count in counts.tolist()]

    def _new_cache(self) -> DynamicCache:
        cache = DynamicCache()
        cache.layers = [GrowingLayer(self.settings.max_new_tokens) for _ in range(self.layers)]
        return cache

    def _forward(self, ids, mask, positions, cache) -> torch.Tensor:
        """Logits [rows, V] at the last position, fp32."""
        if self.policy.attention == "flash_attention_2":  # takes lengths, not masks
            mask = mask[:, 0, -1]
        hidden = self.policy.trunk(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache,
                                   use_cache=True).last_hidden_state[:, -1]
        return self.policy.head(hidden).float()

    def _ends(self, tokens: list[int]) -> bool:
        """Whether the last token ends the completion: an end token, or the close of an answer outside the thought."""
        if tokens[-1] in self.policy.stop_ids:
            return True
        decode = self.policy.tokenizer.decode
        if STOP not in decode(tokens[-TAIL:]) or STOP in decode(tokens[-TAIL:-1]):
            return False
        text = self.policy.prompter.prefill + decode(tokens)
        return text.rfind("<think>") <= text.rfind("</think>")


def _draw(logits: torch.Tensor, temperature: float, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """One token a row and its log-probability, without leaving the device (an exponential race)."""
    if temperature == 0:
        logprobs = logits.log_softmax(-1)
        token = logits.argmax(-1)
    else:
        logprobs = (logits / temperature).log_softmax(-1)
        race = torch.empty_like(logprobs).exponential_(generator=generator).clamp_(min=1e-20)
        token = (logprobs - race.log()).argmax(-1)
    return token, logprobs.gather(-1, token[:, None])[:, 0]


def sample_groups(sampler: Sampler, asks: Sequence[Ask], counts: int | Sequence[int], temperature: float, seed: int = 0,
                  progress: Callable[[int], None] = lambda asks: None) -> list[Group]:
    """A group of parsed completions for every ask, in the order of the asks; `counts` says how many, for all or for each.

    Asks of like length are sampled together, as many as `rollout.tokens_per_batch` allows; `progress` hears of each batch.
    """
    counts = [counts] * len(asks) if isinstance(counts, int) else counts
    prompts = [sampler.policy.prompter.encode(ask) for ask in asks]
    order = sorted(range(len(asks)), key=lambda i: len(prompts[i]), reverse=True)
    groups: list[Group | None] = [None] * len(asks)
    start = 0
    while start < len(order):
        row = len(prompts[order[start]]) + sampler.settings.max_new_tokens  # the longest of the batch
        end, rows = start + 1, counts[order[start]]
        while end < len(order) and (rows + counts[order[end]]) * row <= sampler.settings.tokens_per_batch:
            rows += counts[order[end]]
            end += 1
        chosen, started = order[start:end], time.perf_counter()
        samples = sampler([prompts[i] for i in chosen], [counts[i] for i in chosen], temperature, seed + start)
        share = (time.perf_counter() - started) / rows
        for i, results in zip(chosen, samples):
            groups[i] = Group(asks[i], prompts[i], [complete(sampler.policy, asks[i], *r, share) for r in results])
        progress(len(chosen))
        start = end
    return groups


def greedy_model(sampler: Sampler, progress: Callable[[int], None] = lambda asks: None) -> Model:
    """The policy behind the driver: one greedy completion an ask."""
    def model(asks: Sequence[Ask]) -> list[tuple[int, Completion]]:
        groups = sample_groups(sampler, asks, 1, 0.0, progress=progress)
        return [(len(group.prompt), group.completions[0]) for group in groups]
    return model


def complete(policy: Policy, ask: Ask, ids: list[int], logprobs: list[float], finished: bool, seconds: float = 0.0) -> Completion:
    text = policy.prompter.prefill + policy.tokenizer.decode([i for i in ids if i not in policy.stop_ids])
    return Completion(ids, logprobs, text, finished, parse(text, ask, finished), seconds)
