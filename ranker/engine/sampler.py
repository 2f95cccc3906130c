"""Sampling of tokens: each prompt is computed, held and read once for its group; finished rows leave the batch.

The sampler knows only token ids, which are kept as sampled, never decoded and encoded again. A completion ends with the
token at which the policy says so (`Policy.ends`); this token belongs to the completion. Of the model's own generation
config only the end tokens are used: sampling is plain, at one temperature, or takes the most likely token at
temperature 0.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import torch
from transformers import Cache, DynamicCache

from ranker import config as settings
from ranker.engine.attention import DECODING, PREFILLING, Filled, Prefill, PromptCache
from ranker.engine.policy import Policy

Sample = tuple[list[int], list[float], bool]  # token ids, their log-probabilities, finished
LOOK_EVERY = 4  # steps after which the host looks at the new tokens, for which it must wait for the device
COMPACT_AT = 0.25  # share of finished rows from which on it is worth copying the cache without them
BLOCK = 128  # steps that replay the same captured step; a multiple of LOOK_EVERY


class Known:
    """The keys and values of the prompt that was asked last about a query.

    All prompts on a `shelf` (query id -> Known) together hold at most `room` tokens.
    """

    def __init__(self, shelf: dict[str, "Known"], room: int):
        self.shelf, self.room = shelf, room
        self.ids: list[int] = []
        self.layers: list[tuple[torch.Tensor, torch.Tensor]] = []  # keys and values, [kv, tokens, d]

    def shared(self, prompt: list[int]) -> int:
        """Return how many first tokens of `prompt` are known, never all: the last is computed anew for its logits."""
        same = next((k for k, (a, b) in enumerate(zip(self.ids, prompt)) if a != b), min(len(self.ids), len(prompt)))
        return min(same, len(prompt) - 1)

    @staticmethod
    def hold(known: Sequence["Known"], prompts: Sequence[list[int]], caches: list[tuple[torch.Tensor, torch.Tensor]],
             begins: list[int]) -> None:
        """Hold the keys and values [B, kv, P, d] of a batch, one of `known` per prompt, as far as there is room.

        Where there is room for all prompts, views are held, else copies of those of the first prompts, so that the rest
        can be freed. `begins` are the columns at which prompts begin.
        """
        for one in known:
            one.ids, one.layers = [], []
        free = known[0].room - sum(len(one.ids) for one in known[0].shelf.values())
        whole = sum(map(len, prompts)) <= free
        for i, (one, prompt) in enumerate(zip(known, prompts)):
            free -= len(prompt)
            if free >= 0:
                mine = [tuple(states[i, :, begins[i]:begins[i] + len(prompt)] for states in layer) for layer in caches]
                one.ids, one.layers = (prompt, mine if whole else
                                       [tuple(states.clone() for states in layer) for layer in mine])


class Sampler:
    """A sampler of completions of token-id prompts from a policy, by the `rollout` section of a config."""

    def __init__(self, policy: Policy, rollout: settings.Rollout):
        self.policy, self.settings = policy, rollout
        self.block = BLOCK if rollout.graph and policy.device.type == "cuda" else 1  # steps of a captured step
        self.capturing = True  # becomes False when a capture fails
        size = max(policy.head.weight.shape[0], len(policy.tokenizer))
        watched = torch.zeros(size, dtype=torch.bool)
        watched[list(policy.closing | policy.stop_ids)] = True
        self.watched = watched.to(policy.device)  # [V]

    @torch.no_grad()
    def __call__(self, prompts: Sequence[list[int]], counts: Sequence[int], temperature: float, seeds: Sequence[int],
                 known: Sequence[Known] = ()) -> list[list[Sample]]:
        """Sample `counts[i]` completions of prompt i: (token ids, their log-probabilities in fp32, finished).

        The samples of a prompt depend on its seed alone, not on the other prompts of the batch or on rows that left.
        Log-probabilities are those of the sampled distribution. `known[i]` holds keys and values of a prompt that may
        begin as prompt i does; afterwards it holds those of prompt i.
        """
        with self.policy.sampling_weights(self.settings.weights):
            caches, real, logits = self._prefill(prompts, known)
            return self._decode(caches, real, logits, counts, temperature, seeds)

    @torch.no_grad()
    def next_logits(self, prompts: Sequence[list[int]], known: Sequence[Known] = ()) -> torch.Tensor:
        """Return the logits of the token after each prompt, [B, V], fp32."""
        with self.policy.sampling_weights(self.settings.weights):
            return self._prefill(prompts, known)[2]

    def _prefill(self, prompts: Sequence[list[int]], known: Sequence[Known]
                 ) -> tuple[list[tuple[torch.Tensor, torch.Tensor]], torch.Tensor, torch.Tensor]:
        """Compute prompts: return keys and values per layer [B, kv, P, d], a mask [B, P], and last logits [B, V].

        The mask is False for padding. Of each prompt the last `fresh` tokens, which are not known, are computed, in
        pieces of prompts with similar counts of them. Where nothing of a piece is known, prompts stand at the start of
        their row, so that attention is causal and needs no mask; else they stand at its end, new behind known tokens.
        """
        device, width = self.policy.device, max(map(len, prompts))
        lengths = torch.tensor([len(p) for p in prompts], device=device)
        fresh = [len(p) - (known[i].shared(p) if known else 0) for i, p in enumerate(prompts)]
        begins, caches, logits = torch.zeros_like(lengths), [], None  # begins: where each prompt stands in its row
        kept = next((k.layers for k in known if k.layers), None)
        for piece in map(sorted, batches_of(fresh, [1] * len(fresh), self.settings.tokens_per_prefill, alike=0.5)):
            new, wide, cache = max(fresh[i] for i in piece), max(len(prompts[i]) for i in piece), DynamicCache()
            start, column = torch.zeros_like(lengths[piece, None]), torch.arange(wide, device=device)  # [b, 1], [wide]
            if wide > new:
                start = wide - lengths[piece, None]
                cache = Cache(layers=[Filled((len(piece), layer[0].shape[0], wide, layer[0].shape[2]), layer[0])
                                      for layer in kept])
                for row, i in enumerate(piece):
                    n = len(prompts[i])
                    for layer, states in zip(cache.layers, known[i].layers if n > new else ()):
                        (layer.keys[row, :, wide - n:wide - new],
                         layer.values[row, :, wide - n:wide - new]) = (s[:, :n - new] for s in states)
            at = torch.arange(wide - new, wide, device=device)[:, None]  # [new, 1]
            rows = [[0] * int(s) + prompts[i] + [0] * (wide - int(s) - len(prompts[i])) for s, i in zip(start, piece)]
            if self.policy.attention == PREFILLING:
                # A padding token sees itself: a row of scores without any key would be NaN.
                visible = None  # [b, 1, new, wide]
                if wide > new:
                    visible = ((column <= at) & (column >= start[:, :, None]) | (column == at))[:, None]
                seen = {"prefill": Prefill(visible, at, column)}
            else:  # flash attention takes lengths, not masks
                seen = {"attention_mask": (column >= start) & (column < start + lengths[piece, None])}
            with self.policy.attend(self.policy.attention):
                last = self._forward(torch.tensor(rows, device=device)[:, wide - new:],
                                     place=start[:, 0] + lengths[piece] - 1 - (wide - new),
                                     position_ids=(at.T - start).clamp(min=0), past_key_values=cache, **seen)
            begins[piece] = start[:, 0]
            if len(piece) == len(prompts):  # a single piece needs no putting together
                caches, logits = [(layer.keys, layer.values) for layer in cache.layers], last
                break
            if logits is None:
                logits = last.new_empty(len(prompts), last.shape[-1])
                caches = [tuple(s.new_zeros(len(prompts), s.shape[1], width, s.shape[3])
                                for s in (layer.keys, layer.values)) for layer in cache.layers]
            logits[piece] = last
            for whole, layer in zip(caches, cache.layers):
                whole[0][piece, :, :wide], whole[1][piece, :, :wide] = layer.keys, layer.values
        if known:
            Known.hold(known, prompts, caches, begins.tolist())
        column = torch.arange(width, device=device)
        return caches, (column >= begins[:, None]) & (column < (begins + lengths)[:, None]), logits

    def _decode(self, caches, real: torch.Tensor, logits: torch.Tensor, counts: Sequence[int], temperature: float,
                seeds: Sequence[int]) -> list[list[Sample]]:
        """Sample token by token for all rows; the host looks at the new tokens every LOOK_EVERY steps.

        On a CUDA device (`rollout.graph`) a step is captured once per BLOCK steps and then replayed. Tensors must keep
        their shapes within a block, so rows leave only between blocks.
        """
        device, room, block = self.policy.device, self.settings.max_new_tokens, self.block
        # [rows], the prompt of each row
        source = torch.arange(len(counts), device=device).repeat_interleave(torch.tensor(counts, device=device))
        chance = torch.cat([torch.rand(count, room, dtype=torch.float64, device=device,
                                       generator=torch.Generator(device).manual_seed(seed))
                            for count, seed in zip(counts, seeds)])  # [rows, room]
        cache = PromptCache(caches, real, source, room, block)
        window = cache.window
        caches.clear()  # else prompts that leave the cache would still be held here
        position = real.sum(-1)[source]  # [rows], of the next token
        tokens = torch.zeros(len(source), room, dtype=torch.long, device=device)
        logprobs = torch.zeros(len(source), room, device=device)
        rows, looked = list(range(len(source))), 0  # row of the batch -> row of the result; tokens the host has seen
        samples: list[Sample] = [([], [], False) for _ in rows]
        tokens[:, 0], logprobs[:, 0] = _draw(logits[source], temperature, chance[:, 0])

        def step() -> None:
            window.look()
            logits = self._forward(tokens.index_select(1, window.at), position_ids=position[:, None],
                                   past_key_values=cache, prompt_cache=cache)
            position.add_(1), window.at.add_(1)
            drawn = _draw(logits, temperature, chance.index_select(1, window.at)[:, 0])
            for kept, new in zip((tokens, logprobs), drawn):
                kept.index_copy_(1, window.at, new[:, None])

        with self.policy.attend(DECODING):
            for t in range(room):  # here the tokens up to t are drawn
                last = t + 1 == room
                if last or (t + 1) % LOOK_EVERY == 0:
                    self._look(rows, samples, tokens[:, looked:t + 1], logprobs[:, looked:t + 1])
                    looked = t + 1
                    live = [i for i, row in enumerate(rows) if not samples[row][2]]
                    if last or not live:
                        break
                    if (t + 1) % block == 0 and len(live) <= (1 - COMPACT_AT) * len(rows):
                        rows = [rows[i] for i in live]
                        kept = torch.tensor(live, device=device)
                        replay = None  # the graph's memory must be freed before the cache is copied
                        cache.keep(kept)
                        tokens, logprobs, chance, position = tokens[kept], logprobs[kept], chance[kept], position[kept]
                if t % block == 0:
                    window.width, replay = min(t + block, room), None
                (replay or step)()
                if replay is None and self.capturing and t + 2 < window.width:  # more steps of the block follow
                    replay = captured(step)
                    self.capturing = replay is not None
        results = iter(samples)
        return [list(islice(results, count)) for count in counts]

    def _look(self, rows: list[int], samples: list[Sample], tokens: torch.Tensor, logprobs: torch.Tensor) -> None:
        """Add new tokens [rows, new] to the samples that are not finished, each up to the token that ends it."""
        for row, new, values, hits in zip(rows, tokens.tolist(), logprobs.tolist(), self.watched[tokens].tolist()):
            ids, kept, finished = samples[row]
            if finished:
                continue
            for token, value, watched in zip(new, values, hits):
                ids.append(token)
                kept.append(value)
                if watched and self.policy.ends(ids):
                    samples[row] = (ids, kept, True)
                    break

    def _forward(self, ids: torch.Tensor, place: torch.Tensor | None = None, **arguments) -> torch.Tensor:
        """Compute the logits [rows, V] in fp32 at a place of each row [rows], by default at the last token."""
        hidden = self.policy.trunk(input_ids=ids, use_cache=True, **arguments).last_hidden_state  # [rows, tokens, H]
        if place is None:
            return self.policy.logits(hidden[:, -1])
        return self.policy.logits(hidden[torch.arange(len(ids), device=ids.device), place])


def captured(step: Callable[[], None]) -> Callable[[], None] | None:
    """Return a function that launches all kernels of `step` at once, on the tensors that the step works on now.

    Return None where the capture fails, which is logged. The step must have run before, so that no kernel is launched
    for the first time. At most one graph may be alive: when a graph is freed, so is the workspace of the stream that
    all graphs are captured on. Other threads (of a process group) may call CUDA meanwhile.
    """
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            step()
    except RuntimeError as error:
        torch.cuda.set_stream(stream)  # a failed capture does not return to the stream by itself
        first = error.__context__ or error  # the end of a failed capture raises a second error
        if "out of memory" in str(first):
            raise first from None
        logging.warning(f"decoding cannot be captured as a CUDA graph ({str(first).splitlines()[0][:120]}); "
                        "it goes on kernel by kernel, which is slower. --rollout.graph=false spares the attempt")
        return None
    return graph.replay


def _draw(logits: torch.Tensor, temperature: float, chance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw a token per row, [rows], and its log-probability, without leaving the device.

    `chance` [rows] is uniform in [0, 1).
    """
    if temperature == 0:
        logprobs = logits.log_softmax(-1)
        token = logits.argmax(-1)
    else:
        logprobs = (logits / temperature).log_softmax(-1)
        cumulated = logprobs.exp().cumsum(-1, dtype=torch.float64)  # fp32 would lose rare tokens
        token = torch.searchsorted(cumulated, (chance * cumulated[:, -1])[:, None], right=True)[:, 0]
        token = token.clamp(max=logits.shape[-1] - 1)  # logits that are NaN give a place beyond the end
    return token, logprobs.gather(-1, token[:, None])[:, 0]


def batches_of(lengths: Sequence[int], counts: Sequence[int], budget: int, alike: float = 0.0) -> Iterator[list[int]]:
    """Yield batches of prompts (their indices) to compute together, the longest first.

    Prompt i has `counts[i]` rows. The rows of a batch, all as long as its longest prompt, have at most `budget` tokens,
    unless the batch is a single prompt. No prompt is shorter than `alike` times the longest of its batch.
    """
    batch, rows = [], 0
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i], reverse=True):
        if batch and ((rows + counts[i]) * lengths[batch[0]] > budget or lengths[i] < alike * lengths[batch[0]]):
            yield batch
            batch, rows = [], 0
        batch.append(i)
        rows += counts[i]
    if batch:
        yield batch
