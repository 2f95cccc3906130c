"""The memory of a run: planned before its first step, measured after it, and which settings to lower if it is too much.

A step has three phases: validation and sampling hold a cache, learning holds activations. Their bytes cannot be read
off a config (adapters, 4-bit layers, checkpointing and attention kernels all keep tensors of their own), so they are
measured: short probes run through the loaded policy while the tensors that operations make are counted. The bytes are a
polynomial of the shape of a batch: as many probes as it has terms give its coefficients, and the coefficients give the
peak of a whole batch.

The plan is for the longest prompt known and the worst lengths of completions; nothing in a run depends on it. It counts
tensors, as the measured peaks on a CUDA device do. On a CPU the measured peaks are resident memory, which a plan of a
small run cannot foresee: the C library keeps freed blocks between the tensors of a backward pass (`HEAP`), and pages of
the cache that completions never reach are never resident. Limits of a container are not seen.
"""

import copy
import ctypes
import random
import re
import resource
import sys
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from transformers import DynamicCache

from ranker import config as settings, plugins
from ranker.engine import distributed
from ranker.evaluation import report
from ranker.engine.attention import layout
from ranker.data import Ask
from ranker.errors import UserError
from ranker.engine.policy import Policy
from ranker.engine.pretrained import memory_bytes
from ranker.engine.sampler import Sampler
from ranker.engine.scoring import chunk_of, head_logprobs

ITEMS = ("weights", "adapter", "optimizer", "other", "dense copy", "gradients", "cache", "activations", "logits",
         "heap")
# The settings to lower, in this order: first those that say how much is computed at once, which a run may change when
# it goes on; then those that make it another run.
SETTINGS = ("rollout.tokens_per_batch", "rollout.tokens_per_prefill", "rollout.tokens_kept", "train.tokens_per_batch",
            "model.gradient_checkpointing", "rollout.weights", "rollout.max_new_tokens", "model.max_prompt")
OFFERED = 0.9  # of the memory there is; no allocator can use all of it
# Bytes of freed blocks between the tensors of learning on a CPU, at most; the built-in policy had 0.05 to 0.4 GB.
HEAP = 0.25e9
FULL = re.compile("out of memory|can't allocate memory|ALLOC_FAILED")  # the words of CUDA, a CPU and cuBLAS


class Meter(TorchDispatchMode):
    """A counter of the bytes of tensors that operations make inside: of those alive `now`, and the `peak` of that."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        made = operation(*args, **(kwargs or {}))
        given = _storages((args, kwargs))
        for key, storage in _storages(made).items():
            if key not in given:  # else the tensor is a view
                self._count(storage.nbytes())
                weakref.finalize(storage, self._count, -storage.nbytes())
        return made

    def _count(self, size: int) -> None:
        self.now += size
        self.peak = max(self.peak, self.now)


def _storages(tree) -> dict[int, torch.UntypedStorage]:
    storages = [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
    return {storage._cdata: storage for storage in storages}


@dataclass
class Costs:
    """Hold the bytes that a policy takes. Lists are coefficients of the terms below."""

    held: dict[str, int]  # item -> its bytes, in all phases
    dense: int  # the copy of the weights to sample with
    cache: int  # the keys and values of a token
    layers: int  # the number of layers, no bytes
    prefill: list[float]  # coefficients of prompt_terms; the cache included
    decode: list[float]  # coefficients of row_terms; the cache not included
    saved: list[float]  # coefficients of batch_terms: tensors kept for the backward pass
    step: list[float]  # coefficients of batch_terms: the peak of the backward pass
    head: float  # the log-probability of a token, forward and backward
    chunk: int  # the number of tokens whose log-probabilities are computed at once, no bytes
    kept: int  # the inputs of the layers for a token, which gradient checkpointing keeps
    checkpointing: bool  # whether `saved` and `step` were measured with gradient checkpointing


def prompt_terms(prompts: int, length: int) -> list[int]:
    """Return the terms of computing prompts: dequantised weights, states, masks."""
    return [1, prompts * length, prompts * length**2]


def row_terms(rows: int) -> list[int]:
    """Return the terms of decoding: dequantised weights, logits."""
    return [1, rows]


def batch_terms(prompts: int, prompt: int, completions: int, new: int) -> list[int]:
    """Return the terms of learning from packed rows.

    They are: dequantised weights, tokens of prompts, tokens of completions, prompts as completions read them, masks.
    """
    return [1, prompts * prompt, completions * new, completions * prompt, completions * new * (prompt + new)]


def total(coefficients: Sequence[float], terms: Sequence[int]) -> float:
    return sum(c * t for c, t in zip(coefficients, terms, strict=True))


def solve(terms: Sequence[Sequence[int]], peaks: Sequence[float]) -> list[float]:
    """Return the coefficients with which the terms of each probe give its peak."""
    return torch.linalg.solve(torch.tensor(terms, dtype=torch.float64),
                              torch.tensor(peaks, dtype=torch.float64)).tolist()


def measure(policy: Policy, sampler: Sampler, optimizer: torch.optim.Optimizer, longest: int) -> Costs:
    """Measure the costs of a policy by probes with prompts of about `longest` tokens at most.

    No weight changes, and no shared random generator is drawn from.
    """
    head, device = policy.head.weight, policy.device
    size = lambda tensors: sum(t.nbytes for t in tensors)  # noqa: E731
    adapter = size(policy.adapter_parameters().values())
    trained = [p for group in optimizer.param_groups for p in group["params"]]  # adapter and critic
    moments = size(t for state in optimizer.state.values() for t in state.values())  # a resumed run has them already
    weights = size([*policy.model.parameters(), *policy.model.buffers()]) - adapter
    held = {"weights": weights, "adapter": size(trained), "optimizer": 2 * size(trained)}  # AdamW's two moments
    held["other"] = max(resident(device) - weights - size(trained) - moments, 0)
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)  # made before, so that no probe counts it
    policy.measured = True
    try:
        found = of_all_layers(policy, lambda: probe(policy, sampler, longest))
    finally:
        policy.measured = False
    with Meter() as meter:
        states = head.new_zeros(64, head.shape[1], requires_grad=True)
        targets = torch.zeros(64, dtype=torch.long, device=device)
        head_logprobs(policy.head, states, targets, 1.0, policy.behind_head).sum().backward()
    for parameter in trained:
        parameter.grad = None
    return Costs(held, **found, head=meter.peak / len(targets), chunk=chunk_of(policy.head),
                 kept=found["layers"] * head.shape[1] * head.element_size(), checkpointing=policy.checkpointing)


def of_all_layers(policy: Policy, probe: Callable[[], dict]) -> dict:
    """Return the costs that `probe` finds; where all layers are alike, from probes of the first two and three alone.

    Bytes are linear in the number of layers: every layer keeps the same, and one layer at a time computes. The first
    layer takes less, since nothing before it is trained, so one and two layers would not tell. On a CPU a probe of all
    layers can take minutes.
    """
    count = policy.causal_lm.config.get_text_config().num_hidden_layers
    layers = next((m for m in policy.trunk.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == count), ())
    if count > 5 and len(set(map(made, layers))) == 1:
        whole, found = list(layers), []
        with suppress(Exception):  # a family that needs all its layers is measured whole, slowly
            for few in 3, 2:
                del layers[few:]
                found.append(probe())
        layers.extend(whole[len(layers):])
        if len(found) == 2:
            return tree_map(lambda three, two: three + (count - 3) * (three - two), *found)
    return probe()


def made(layer: torch.nn.Module) -> tuple:
    """Return the facts by which layers are compared: modules, shapes and settings, not weights or their place."""
    settings = [(name, value) for module in layer.modules() for name, value in vars(module).items()
                if isinstance(value, (int, float, str)) and name != "layer_idx"]
    return repr(layer), *((p.shape, p.dtype) for p in layer.parameters()), *settings


def probe(policy: Policy, sampler: Sampler, longest: int) -> dict[str, int | list[float]]:
    """Return the costs that depend on the layers, by their names in `Costs`."""
    device = policy.device
    with torch.no_grad():
        layers = policy.trunk(input_ids=torch.zeros(1, 1, dtype=torch.long, device=device), use_cache=True,
                              past_key_values=DynamicCache()).past_key_values.layers
    cache = sum(states.nbytes for layer in layers for states in (layer.keys, layer.values))  # of the one token
    with Meter() as meter, policy.sampling_weights(sampler.settings.weights):
        dense = meter.now

    def prefill(length: int) -> int:
        with Meter() as meter:
            sampler.next_logits([[0] * length])
        return meter.peak - dense

    def decode(rows: int, length: int = 4, new: int = 2) -> int:  # the first token comes from the prompt, not decoding
        with Meter() as meter:
            Sampler(policy, replace(sampler.settings, max_new_tokens=new))([[0] * length], [rows], 1.0, [0])
        return meter.peak - dense - (length + rows * new) * cache

    def learn(prompt: int, count: int, new: int) -> tuple[int, int]:
        row = torch.zeros(1, prompt + count * new, dtype=torch.long, device=device)
        with policy.training_graph(), Meter() as meter:
            place = layout([(0, prompt)], [(prompt + i * new, new) for i in range(count)], [0] * count, device)
            states = policy.trunk(input_ids=row, position_ids=row, use_cache=False, layout=place).last_hidden_state
            saved = meter.now
            states.sum().backward()
        return saved, meter.peak

    lengths, rows = (longest // 4 + 1, longest // 2 + 1, longest + 1), (32, 64)
    shapes = (256, 4, 32), (256, 1, 32), (128, 2, 128), (32, 4, 64), (32, 1, 32)  # far apart, so that errors stay small
    learned = zip(*(learn(*shape) for shape in shapes))
    saved, step = (solve([batch_terms(1, *shape) for shape in shapes], peaks) for peaks in learned)
    return {"dense": dense, "cache": cache, "layers": len(layers), "saved": saved, "step": step,
            "prefill": solve([prompt_terms(1, n) for n in lengths], [prefill(n) for n in lengths]),
            "decode": solve([row_terms(n) for n in rows], [decode(n) for n in rows])}


@dataclass
class Plan:
    """Hold the memory that each phase of a run is predicted to take, and the memory it took."""

    costs: Costs
    config: settings.Config
    device: torch.device
    longest: int  # tokens of the longest prompt
    queries: int  # of a validation, in this process
    asks: int  # about a query of a validation
    drawn: int  # asks about a query of a training step
    listed: int = 0  # completions of an ask that are its candidates; 0: it has `rollout.completions_per_prompt`
    apart: bool = False  # whether each of those has a prompt of its own, in one row
    measured: dict[str, int] = field(default_factory=dict)  # phase -> its peak so far, bytes
    seconds: dict[str, float] = field(default_factory=dict)  # phase -> its seconds so far

    def items(self, config: settings.Config) -> dict[str, dict[str, float]]:
        """Return phase -> item -> bytes at the peak of the phase, for `config`."""
        costs, rollout, budget, group = (self.costs, config.rollout, config.train.tokens_per_batch,
                                         self.listed or config.rollout.completions_per_prompt)
        prompt, new, queries = (min(self.longest, config.model.max_prompt), rollout.max_new_tokens,
                                len(distributed.share(rollout.prompts_per_step)) * self.drawn)
        within = lambda count, most: max(1, min(count, most))  # noqa: E731
        highest = lambda moments: max(moments, key=lambda items: sum(items.values()))  # noqa: E731

        def sampling(asks: int, count: int, shelf: int = 0) -> dict[str, float]:
            """Return the items of sampling `count` completions per ask.

            Prompts on the `shelf` are kept for the next round, which lays them out anew.
            """
            batch = within(rollout.tokens_per_batch // (count * (prompt + new)), asks)  # prompts sampled from together
            piece = within(rollout.tokens_per_prefill // prompt, batch)  # prompts computed together
            rows, cache = batch * count, costs.cache * prompt
            return (highest([
                {"cache": (piece + (batch if batch > piece else 0)) * cache,
                 "activations": total(costs.prefill, prompt_terms(piece, prompt)) - piece * cache},
                # When rows leave, the cache is copied layer by layer.
                {"cache": (shelf + batch) * cache + rows * new * costs.cache * (1 + 1 / costs.layers),
                 "logits": total(costs.decode, row_terms(rows))}])
                    | {"dense copy": costs.dense if rollout.weights == "dense" else 0})

        def learning(length: int, prompt: int) -> list[dict[str, float]]:
            """Return the items of learning from full batches of prompts and completions of these lengths: before and
            in backward."""
            split = group if whole else within((budget - prompt) // length, group)  # completions in a row
            rows = within(budget // (prompt + split * length),
                          queries * (self.asks if episodes else 1) * -(-group // split))
            terms = batch_terms(rows, prompt, rows * split, length)
            saved, step = total(costs.saved, terms), total(costs.step, terms)
            # Measured without checkpointing, planned with it: the inputs of all layers, and one layer at a time.
            if config.model.gradient_checkpointing and not costs.checkpointing:
                kept = costs.kept * (terms[1] + terms[2])
                saved, step = kept, kept + saved / costs.layers + step - saved
            heap = {"heap": min(saved, HEAP) if self.device.type == "cpu" else 0, "gradients": costs.held["adapter"]}
            return [{"activations": saved, "logits": costs.head * min(costs.chunk, rows * split * length)} | heap,
                    {"activations": step} | heap]

        whole = plugins.load("objective", config.objective).WHOLE_GROUPS  # in one row, however long
        episodes = plugins.load("draw", config.draw).EPISODES  # every completion of an episode has a prompt of its own
        lengths, prompts = range(new, 0, -(new // 100 + 1)), {-(-prompt // part) for part in range(1, 5)}
        filled = [(p + n, 1) if self.apart else (n, p) for n in lengths for p in prompts]
        phases = {"validation": sampling(self.queries, 1,
                                         min(self.queries, rollout.tokens_kept // prompt) if self.asks > 1 else 0),
                  "sampling": sampling(queries * group, 1) if episodes else sampling(queries, group),
                  # Several rows of shorter prompts may fill a batch further than one of the longest.
                  "learning": highest(moment for length, prompt in filled for moment in learning(length, prompt))}
        return {name: costs.held | items for name, items in phases.items()}

    def peaks(self, config: settings.Config) -> dict[str, float]:
        """Return phase -> bytes at its peak, for `config`."""
        return {name: sum(items.values()) for name, items in self.items(config).items()}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure the peak of a phase, inside of which running out of memory raises UserError with what to lower."""
        if name not in self.measured:
            give_back()
        forget_peak(self.device)
        started = time.perf_counter()
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not (isinstance(error, MemoryError) or FULL.search(str(error))):
                raise
            raise UserError(f"out of memory in {name}: {self.advice(name)}") from None
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
        self.measured[name] = max(self.measured.get(name, 0), peak(self.device))

    def advice(self, phase: str) -> str:
        """Return a text with the first three settings that matter to a phase, to lower one after the other.

        Each has a value that fits, if any does, and the peak with this value and the settings before it.
        """
        def need(config: settings.Config) -> float:
            return self.peaks(config)[phase]

        def floor(config: settings.Config) -> float:
            """Return the peak with the fewest tokens at once: a setting that lowers this peak matters too."""
            return need(replace(config, rollout=replace(config.rollout, tokens_per_batch=16),
                                train=replace(config.train, tokens_per_batch=16)))

        has, planned, config, named = available(self.device), need(self.config), self.config, []
        aim = OFFERED * min(has, planned)  # if the plan fits although memory ran out, the plan was too low
        for name in SETTINGS:
            trials = list(lowered(config, name))
            if len(named) < 3 and any(lower(trial) < 0.999 * lower(config) for _, trial in trials
                                      for lower in (need, floor)):
                least = min(need(trial) for _, trial in trials)
                value, config = next(trial for trial in trials if need(trial[1]) <= max(aim, least))
                named.append(f"--{name}={value} ({gb(need(config))} GB)")
        return f"{gb(planned)} GB planned, {gb(has)} GB there; lower, in this order: {', '.join(named)}"

    def table(self) -> str:
        """Return a table of planned bytes by item and phase; once a step was measured, of planned, measured peaks."""
        planned, peaks, seen = self.items(self.config), self.peaks(self.config), self.measured
        lines = [["planned peak", *map(gb, peaks.values())]]
        if seen:
            lines += [["measured peak", *(gb(seen[p]) if p in seen else "" for p in peaks)],
                      ["measured / planned", *(f"{seen[p] / peaks[p]:.0%}" if p in seen else "" for p in peaks)]]
        else:
            lines = [[item, *(gb(items.get(item, 0)) for items in planned.values())] for item in ITEMS] + lines
        return report.markdown(["memory in GB", *peaks], lines)

    def outlook(self) -> str:
        """Return the table, and whether that much memory is there."""
        peaks, has = self.peaks(self.config), available(self.device)
        worst = max(peaks, key=peaks.get)
        fits = f"{gb(has)} GB there are" if peaks[worst] <= has else f"{worst} will hardly fit: {self.advice(worst)}"
        return f"{self.table()}\n{fits}"


def plan(config: settings.Config, policy: Policy, sampler: Sampler, optimizer: torch.optim.Optimizer, longest: Ask,
         queries: int, ranker: plugins.Plugin) -> Plan:
    """Return the plan of a loaded policy, given its longest ask, the queries of a validation and their ranker."""
    tokens, candidates = len(policy.prompter.encode(longest)), len(longest.query.ids)
    costs = measure(policy, sampler, optimizer, tokens)
    drawn = ranker.sampled_asks(longest.query, random.Random(0), None)  # asks about a query of a training step
    listed = plugins.load("draw", config.draw).GIVES == "candidates"  # then all asks about a query make one group
    return Plan(costs, config, policy.device, tokens, -(-queries // distributed.size()), ranker.calls(candidates),
                1 if listed else len(drawn), listed * sum(len(ask.pool) for ask in drawn), listed and len(drawn) > 1)


def lowered(config: settings.Config, name: str) -> Iterator[tuple[object, settings.Config]]:
    """Yield values below that of a setting, the highest first, each with the config that has it."""
    section, key = name.split(".")
    now = getattr(getattr(config, section), key)
    if isinstance(now, bool):
        values = [] if now else ["true"]
    elif isinstance(now, str):
        values = ["nf4"] if now == "dense" else []
    else:
        values = [now >> k for k in range(1, now.bit_length() - 5)]  # at least 32 tokens
    for value in values:
        lower = copy.deepcopy(config)
        settings.override(lower, f"{name}={value}")
        yield value, lower


def gb(size: float) -> str:
    return f"{size / 1e9:.3f}"


def resident(device: torch.device) -> int:
    """Return the bytes in use: of tensors on a CUDA device, else of resident memory of this process."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else _process("VmRSS")


def peak(device: torch.device) -> int:
    """Return the most bytes in use since `forget_peak`, or ever, where a system cannot forget."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _process("VmHWM")


def forget_peak(device: torch.device) -> None:
    """Begin to measure `peak` anew, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def give_back() -> None:
    """Let the C library (glibc alone) return freed memory, so that a phase is not charged with another's."""
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def available(device: torch.device) -> int:
    """Return the bytes that this process has or can still get."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    held, limit = _process("VmRSS"), resource.getrlimit(resource.RLIMIT_AS)[0]
    if not sys.platform.startswith("linux"):
        return memory_bytes()
    free = int(re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())[1]) * 1024
    return held + (free if limit == resource.RLIM_INFINITY else min(free, limit - _process("VmSize")))


def _process(name: str) -> int:
    """Return bytes of this process: resident (VmRSS), the peak of that (VmHWM), or its address space (VmSize).

    Without /proc the peak of resident memory stands for all three.
    """
    if not sys.platform.startswith("linux"):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS
    return int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024
