"""Sampling: each prompt is computed once, its cache is expanded to its group, finished rows leave the batch.

Token ids are kept as sampled and never decoded and encoded again. A completion ends with an end token of the
generation config or with the token that completes `</answer>`; that token belongs to the completion. Nothing of the
model's own generation config but its end tokens is used: plain sampling at one temperature, or the most likely token
at temperature 0.
"""

from collections.abc import Callable, Sequence

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from ranker.answers import parse
from ranker.data import Ask, Completion, Group
from ranker.drive import Model
from ranker.policy import Policy

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

    def get_seq_length(self) -> int:
        return self.length

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row and make room behind it."""
        def grown(states):
            rows, heads, length, d = states.shape
            buffer = states.new_empty(rows * repeats, heads, length + self.room, d)
            buffer.view(rows, repeats, heads, length + self.room, d)[:, :, :, :length] = states[:, None]
            return buffer
        self.keys, self.values = grown(self.keys), grown(self.values)


class Sampler:
    """Samples completions of token-id prompts from a policy."""

    def __init__(self, policy: Policy):
        self.policy = policy
        # Only a token with a `>` in it can complete the stop string: all others need no look at the text.
        self.closing = {i for token, i in policy.tokenizer.get_vocab().items() if ">" in token}
        size = max(policy.head.weight.shape[0], len(policy.tokenizer))
        watched = torch.zeros(size, dtype=torch.bool)
        watched[list(self.closing | policy.stop_ids)] = True
        self.watched = watched.to(policy.device)  # [V]
        config = policy.causal_lm.config
        self.layers = (config.get_text_config() if hasattr(config, "get_text_config") else config).num_hidden_layers

    @torch.no_grad()
    def __call__(self, prompts: Sequence[list[int]], group: int, temperature: float, max_new_tokens: int,
                 seed: int = 0) -> list[list[tuple[list[int], list[float], bool]]]:
        """`group` completions for each prompt, as (token ids, their log-probabilities, finished).

        Deterministic for the same prompts and seed. Log-probabilities are of the sampled distribution, fp32.
        """
        device = self.policy.device
        generator = torch.Generator(device).manual_seed(seed)
        width = max(len(p) for p in prompts)
        lengths = torch.tensor([len(p) for p in prompts], device=device)
        ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts], device=device)  # [B, P], padded on the left
        real = torch.arange(width, device=device) >= width - lengths[:, None]  # [B, P]
        causal = torch.ones(width, width, dtype=torch.bool, device=device).tril()
        # A padding row sees itself: a row without any key would be NaN.
        mask = causal & real[:, None, :] | torch.eye(width, dtype=torch.bool, device=device)  # [B, P, P]
        positions = (real.long().cumsum(-1) - 1).clamp(min=0)
        cache = DynamicCache()
        cache.layers = [GrowingLayer(max_new_tokens) for _ in range(self.layers)]
        logits = self._forward(ids, mask[:, None], positions, cache)  # [B, V]

        cache.batch_repeat_interleave(group)
        rows = torch.arange(len(prompts) * group, device=device)  # row of the batch -> row of the result
        logits = logits.repeat_interleave(group, 0)
        position = lengths.repeat_interleave(group)  # [rows], of the next token
        visible = torch.cat([real, torch.ones(len(prompts), max_new_tokens, dtype=torch.bool, device=device)], 1)
        visible = visible.repeat_interleave(group, 0)  # [rows, P + new]
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
        results = list(zip(tokens, logprobs, finished))
        return [results[i:i + group] for i in range(0, len(results), group)]

    def _forward(self, ids, mask, positions, cache) -> torch.Tensor:
        """Logits [rows, V] at the last position, fp32."""
        if self.policy.attention == "flash_attention_2":  # takes lengths, not masks
            mask = mask[:, 0, -1]
        hidden = self.policy.trunk(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache,
                                   use_cache=True).last_hidden_state[:, -1]
        return self.policy.head(hidden).float()

    def _ends(self, tokens: list[int]) -> bool:
        return tokens[-1] in self.policy.stop_ids or STOP in self.policy.tokenizer.decode(tokens[-TAIL:])


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


def sample_groups(sampler: Sampler, asks: Sequence[Ask], group: int, temperature: float, max_new_tokens: int,
                  seed: int = 0, batch: int = 512, progress: Callable[[int], None] = lambda asks: None) -> list[Group]:
    """A group of parsed completions for every ask, in the order of the asks.

    Asks of like length are sampled together, at most `batch` rows at once; `progress` hears of every finished batch.
    """
    prompts = [sampler.policy.prompter.encode(ask) for ask in asks]
    order = sorted(range(len(asks)), key=lambda i: len(prompts[i]))
    groups: list[Group | None] = [None] * len(asks)
    size = max(1, batch // group)
    for start in range(0, len(order), size):
        chosen = order[start:start + size]
        sampled = sampler([prompts[i] for i in chosen], group, temperature, max_new_tokens, seed + start)
        for i, results in zip(chosen, sampled):
            groups[i] = Group(asks[i], prompts[i], [complete(sampler.policy, asks[i], *r) for r in results])
        progress(len(chosen))
    return groups


def greedy_model(sampler: Sampler, max_new_tokens: int, batch: int, progress: Callable[[int], None] = lambda asks: None) -> Model:
    """The policy behind the driver: one greedy completion an ask."""
    def model(asks: Sequence[Ask]) -> list[tuple[int, Completion]]:
        groups = sample_groups(sampler, asks, 1, 0.0, max_new_tokens, batch=batch, progress=progress)
        return [(len(group.prompt), group.completions[0]) for group in groups]
    return model


def complete(policy: Policy, ask: Ask, ids: list[int], logprobs: list[float], finished: bool) -> Completion:
    text = policy.tokenizer.decode([i for i in ids if i not in policy.stop_ids])
    return Completion(ids, logprobs, text, finished, parse(text, ask, finished))
