"""Plan the memory of models at the paper's scale: what fits cards of 8 to 80 GB, for docs/machines.md.

    python tests/bench/bench_machines.py [--models 0.5B,3B]

A model of three layers, of the real width and random weights in NF4, is loaded on the CPU and measured as a run
measures itself (`ranker/engine/memory.py`: bytes are linear in the number of layers, so probes of three and two layers
give those of the real depth). CPUs multiply bfloat16 too slowly, so it computes in fp32, and cache, activations and
copies are halved, since on a card they are bfloat16. To it come `CONTEXT` bytes of CUDA's own; a tenth of a card stays
free. One line holds the plan against a peak that was measured on an H200 (docs/speed.md).
"""

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

import bench_step  # noqa: E402
import torch  # noqa: E402
from torch.utils._pytree import tree_map  # noqa: E402

from ranker import config as settings, plugins  # noqa: E402
from ranker.engine import memory, policy as policies  # noqa: E402
from ranker.engine.sampler import Sampler  # noqa: E402
from ranker.evaluation import report  # noqa: E402

CONTEXT = 0.8e9  # bytes that CUDA, cuBLAS and the allocator's rounding take
CARDS = (8, 12, 16, 24, 48, 80)  # GB
RUNS = ((512, 128), (700, 512), (1400, 1024), (2800, 1024), (4000, 2048))  # tokens of prompts and completions
BUDGETS = (16384, 8192, 4096)  # train.tokens_per_batch
SHAPES = {  # width, inner width, layers, heads, heads of keys, vocabulary, whether the head is the embedding
    "0.5B": (896, 4864, 24, 14, 2, 151936, True), "1.5B": (1536, 8960, 28, 12, 2, 151936, True),
    "3B": (2048, 11008, 36, 16, 2, 151936, True), "7B": (3584, 18944, 28, 28, 4, 152064, False)}  # Qwen2.5
NAMES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
         "vocab_size")
CONFIG = settings.Config(rollout=settings.Rollout(prompts_per_step=16, completions_per_prompt=8))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=lambda text: text.split(","), default=list(SHAPES))
    args = parser.parse_args()
    lines = []
    for name in args.models:
        costs = costs_of(name)
        lines.append([name, *(fits(costs, card) for card in CARDS)])
        print(f"{name}: {costs.held['weights'] / 1e9:.2f} GB of weights", flush=True)
        if name == "3B":
            config = with_lengths(1400, 256, 16384)
            config.rollout.prompts_per_step = 2
            config.rollout.tokens_per_prefill = 16384
            peaks = plan(costs, config).peaks(config)
            print(f"3B, 2 prompts of 1400, 8 completions of 256: {(peaks['learning'] - CONTEXT) / 1e9:.2f} GB planned"
                  " for learning, 4.53 GB measured on an H200, both without CUDA's own", flush=True)
    print("\n" + report.markdown(["prompt + completion", *(f"{card} GB" for card in CARDS)], lines))


def costs_of(name: str) -> memory.Costs:
    """Return the costs of a model of real depth, measured on three of its layers."""
    *numbers, vocabulary, tied = SHAPES[name]
    shape = dict(zip(NAMES, (*numbers, vocabulary)))
    depth = shape["num_hidden_layers"]
    with tempfile.TemporaryDirectory() as folder:
        bench_step.save_base(replace(bench_step.CPU, base=shape | {"num_hidden_layers": 3}), Path(folder))
        model = settings.Model(name=folder, quantize="nf4", device="cpu", dtype="float32", max_prompt=4000,
                               gradient_checkpointing=True)
        policy = policies.load(model, plugins.load("lora", {"name": "lora", "rank": 32, "alpha": 32}), None, 16)
    layers = policy.trunk.layers
    adapter = {id(p) for p in policy.adapter_parameters().values()}
    sizes = [[p.nbytes for p in layers[0].parameters() if (id(p) in adapter) == own] for own in (False, True)]

    def of_all_layers(policy, probe):
        whole, found = list(layers), []
        for few in 3, 2:
            del layers[few:]
            found.append(probe())
        layers.extend(whole[len(layers):])
        return tree_map(lambda three, two: three + (depth - 3) * (three - two), *found)

    memory.of_all_layers = of_all_layers
    optimizer = torch.optim.AdamW(policy.adapter_parameters().values())
    costs = memory.measure(policy, Sampler(policy, CONFIG.rollout), optimizer, 256)
    costs.held["weights"] += (depth - 3) * sum(sizes[0])
    # Embeddings, a head of its own and norms are in 16 bits on a card.
    whole = vocabulary * shape["hidden_size"]
    costs.held["weights"] -= 2 * whole - (0 if tied else 2 * whole)
    for item, times in (("adapter", 1), ("optimizer", 2)):
        costs.held[item] += times * (depth - 3) * sum(sizes[1])
    costs.held["other"] = CONTEXT
    halved = {name: [c / 2 for c in getattr(costs, name)] for name in ("prefill", "saved", "step")}
    return replace(costs, dense=costs.dense / 2, cache=costs.cache / 2, kept=costs.kept / 2, **halved)


def with_lengths(prompt: int, new: int, budget: int) -> settings.Config:
    """Return the config of a run with prompts and completions of these lengths."""
    return replace(CONFIG, model=settings.Model(max_prompt=prompt, gradient_checkpointing=True),
                   rollout=replace(CONFIG.rollout, max_new_tokens=new, tokens_per_prefill=8192),
                   train=settings.Train(tokens_per_batch=budget))


def plan(costs: memory.Costs, config: settings.Config) -> memory.Plan:
    return memory.Plan(costs, config, torch.device("cuda"), config.model.max_prompt, queries=90, asks=19, drawn=1)


def fits(costs: memory.Costs, card: int) -> str:
    """Return the longest run that fits a card, and the settings it needs."""
    for prompt, new in reversed(RUNS):
        for budget in BUDGETS:
            for sampled in (131072, 65536, 32768):
                config = with_lengths(prompt, new, budget)
                config.rollout.tokens_per_batch = sampled
                config.rollout.tokens_kept = min(config.rollout.tokens_kept, sampled // 2)
                if max(plan(costs, config).peaks(config).values()) <= 0.9 * card * 1e9:
                    return f"{prompt} + {new} ({budget // 1024}k, {sampled // 1024}k)"
    return "–"


if __name__ == "__main__":
    main()
