"""Sampling: each prompt is computed, held and read once for its group; finished rows leave the batch.

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

from ranker import config as settings
from ranker.answers import parse
from ranker.attention import DECODING, PromptCache
from ranker.data import Ask, Completion, Group
from ranker.drive import Model
from ranker.policy import Policy

Sample = tuple[list[int], list[float], bool]  # token ids, their log-probabilities, finished
STOP = "</answer>"
TAIL = 16  # tokens decoded to look for STOP
LOOK_EVERY = 4  # tokens between two looks of the host, which wait for the device
COMPACT_AT = 0.25  # share of finished rows that is worth copying the cache for


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

    @torch.no_grad()
    def __call__(self, prompts: Sequence[list[int]], counts: Sequence[int], temperature: float, seeds: Sequence[int]) -> list[list[Sample]]:
        """`counts[i]` samples of prompt i: (token ids, their log-probabilities in fp32, finished).

        What is drawn for a prompt depends on its seed alone, not on the other prompts of the batch or on who has left it.
        Log-probabilities are of the sampled distribution.
        """
        with self.policy.sampling_weights(self.settings.weights):
            caches, real, logits = self._prefill(prompts)
            return self._decode(caches, real, logits, counts, temperature, seeds)

    def _prefill(self, prompts: Sequence[list[int]]) -> tuple[list[tuple[torch.Tensor, torch.Tensor]], torch.Tensor, torch.Tensor]:
        """Every prompt once: keys and values per layer [B, kv, P, d], which are no padding [B, P], last logits [B, V]."""
        device, width = self.policy.device, max(map(len, prompts))
        lengths = torch.tensor([len(p) for p in prompts], device=device)
        ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts], device=device)  # [B, P], padded on the left
        real = torch.arange(width, device=device) >= width - lengths[:, None]  # [B, P]
        causal = torch.ones(width, width, dtype=torch.bool, device=device).tril()
        # A padding row sees itself: a row without any key would be NaN.
        mask = causal & real[:, None, :] | torch.eye(width, dtype=torch.bool, device=device)  # [B, P, P]
        positions = (real.long().cumsum(-1) - 1).clamp(min=0)
        pieces, logits = [], []
        rows_at_once = max(1, self.settings.tokens_per_prefill // width)
        for start in range(0, len(prompts), rows_at_once):
            piece, cache = slice(start, start + rows_at_once), DynamicCache()
            # flash attention takes lengths, not masks
            seen = real[piece] if self.policy.attention == "flash_attention_2" else mask[piece, None]
            logits.append(self._forward(ids[piece], attention_mask=seen, position_ids=positions[piece], past_key_values=cache))
            pieces.append([(layer.keys, layer.values) for layer in cache.layers])
        caches = [tuple(map(torch.cat, zip(*layer))) for layer in zip(*pieces)]
        return caches, real, torch.cat(logits)

    def _decode(self, caches, real: torch.Tensor, logits: torch.Tensor, counts: Sequence[int], temperature: float,
                seeds: Sequence[int]) -> list[list[Sample]]:
        """Token by token for all rows; the host looks at the tokens every LOOK_EVERY steps."""
        device, room = self.policy.device, self.settings.max_new_tokens
        source = torch.arange(len(counts), device=device).repeat_interleave(torch.tensor(counts, device=device))  # [rows], the prompt of each
        chance = torch.cat([torch.rand(count, room, dtype=torch.float64, device=device, generator=torch.Generator(device).manual_seed(seed))
                            for count, seed in zip(counts, seeds)])  # [rows, room]
        cache = PromptCache(caches, real, source, room)
        logits, position = logits[source], real.sum(-1)[source]  # of the next token
        tokens = torch.zeros(len(source), room, dtype=torch.long, device=device)
        logprobs = torch.zeros(len(source), room, device=device)
        rows, looked = list(range(len(source))), 0  # row of the batch -> row of the result; tokens the host has seen
        samples: list[Sample] = [([], [], False) for _ in rows]
        with self.policy.attend(DECODING):
            for t in range(room):
                tokens[:, t], logprobs[:, t] = _draw(logits, temperature, chance[:, t])
                last = t + 1 == room
                if last or (t + 1) % LOOK_EVERY == 0:
                    self._look(rows, samples, tokens[:, looked:t + 1], logprobs[:, looked:t + 1])
                    looked = t + 1
                    live = [i for i, row in enumerate(rows) if not samples[row][2]]
                    if last or not live:
                        break
                    if len(live) <= (1 - COMPACT_AT) * len(rows):
                        rows = [rows[i] for i in live]
                        kept = torch.tensor(live, device=device)
                        cache.keep(kept)
                        tokens, logprobs, chance, position = tokens[kept], logprobs[kept], chance[kept], position[kept]
                logits = self._forward(tokens[:, t:t + 1], position_ids=position[:, None], past_key_values=cache, prompt_cache=cache)
                position = position + 1
        results = iter(samples)
        return [list(islice(results, count)) for count in counts]

    def _look(self, rows: list[int], samples: list[Sample], tokens: torch.Tensor, logprobs: torch.Tensor) -> None:
        """Take new tokens [rows, new] over into the samples that are not finished, up to the one that ends each."""
        for row, new, values, hits in zip(rows, tokens.tolist(), logprobs.tolist(), self.watched[tokens].tolist()):
            ids, kept, finished = samples[row]
            if finished:
                continue
            for token, value, watched in zip(new, values, hits):
                ids.append(token)
                kept.append(value)
                if watched and self._ends(ids):
                    samples[row] = (ids, kept, True)
                    break

    def _forward(self, ids: torch.Tensor, **arguments) -> torch.Tensor:
        """Logits [rows, V] at the last position, fp32."""
        hidden = self.policy.trunk(input_ids=ids, use_cache=True, **arguments).last_hidden_state[:, -1]
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


def _draw(logits: torch.Tensor, temperature: float, chance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One token a row and its log-probability, without leaving the device; `chance` [rows] is uniform in [0, 1)."""
    if temperature == 0:
        logprobs = logits.log_softmax(-1)
        token = logits.argmax(-1)
    else:
        logprobs = (logits / temperature).log_softmax(-1)
        cumulated = logprobs.exp().cumsum(-1, dtype=torch.float64)  # in fp32 rare tokens would be lost
        token = torch.searchsorted(cumulated, (chance * cumulated[:, -1])[:, None], right=True)[:, 0]
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
        samples = sampler([prompts[i] for i in chosen], [counts[i] for i in chosen], temperature, [seed + i for i in chosen])
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
