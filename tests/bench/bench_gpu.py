"""One optimizer step at the shape of Qwen2.5-3B on one GPU, against TRL, and decoding against the speed of the memory.

    python tests/bench/bench_gpu.py [--shapes 1400/256/8] [--repeats 3]       # prompt/completion/group; needs CUDA, says so without

Random weights of Qwen2.5-3B's shape in NF4, LoRA of rank 32, bf16, gradient checkpointing on both sides; all else as in
bench_step.py, whose processes these are, but that TRL makes its adapter bf16 when the base is quantised; ours stays fp32. Here the
peak is all that torch reserves on the GPU, weights included (the CUDA context, half a GB or more, is not): at most 22 GB is meant,
so that a card of 24 GB serves.

Then decoding alone, for both `rollout.weights`, with and without captured steps: tokens a second, and the share of what the
memory allows. A step of decoding reads every weight, the prompts and the completions so far; how fast memory is read is
measured by copying a tensor. `--quick` runs everything once on a small shape, on a CPU too: does it run? Ends with a line of JSON.
"""

import json
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent)]

import bench_step  # noqa: E402
import torch  # noqa: E402

from ranker import config as settings, policy as policies, report  # noqa: E402
from ranker.errors import Parser, exit_status  # noqa: E402
from ranker.rollout import Sampler  # noqa: E402

SHAPE = {"vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16,
         "num_key_value_heads": 2}
NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
GPU = bench_step.Setup(__file__, "cuda", SHAPE, 32, 32, {"quantize": "nf4", "gradient_checkpointing": True}, {
    "model_init_kwargs": {"dtype": "bfloat16", "quantization_config": NF4 | {"bnb_4bit_compute_dtype": "bfloat16"}}, "bf16": True,
    "gradient_checkpointing": True})
QUICK = replace(GPU, base=bench_step.SMALL)
QUICK_CPU = replace(QUICK, device="cpu", trl=bench_step.CPU.trl | {
    "model_init_kwargs": {"dtype": "float32", "quantization_config": NF4 | {"bnb_4bit_compute_dtype": "float32"}}, "gradient_checkpointing": True})


def main() -> None:
    quick = "--quick" in sys.argv  # in a process of one run too
    if not (quick or torch.cuda.is_available()):
        print("skipped: no CUDA device is usable here (--quick runs a small shape on the CPU)")
        return
    setup = (QUICK if quick else GPU) if torch.cuda.is_available() else QUICK_CPU
    bench_step.compare(setup, Parser(prog="bench_gpu.py", description=__doc__), "1400/256/8", decoding)


def decoding(setup: bench_step.Setup, shape: tuple[int, int, int], folder: str) -> None:
    """The table of decoding alone."""
    length, new, count = shape
    policy = policies.load(settings.Model(name=folder, device=setup.device, max_prompt=length, **setup.model),
                           settings.Lora(rank=setup.rank, alpha=setup.alpha), max_new_tokens=new)
    policy.stop_ids = frozenset()
    prompts, rows = bench_step.made_prompts(setup.base["vocab_size"], length)[:bench_step.PROMPTS], bench_step.PROMPTS * count
    speed, config = memory_speed(policy.device), policy.causal_lm.config
    cache = 2 * config.num_hidden_layers * config.num_key_value_heads * (config.hidden_size // config.num_attention_heads) * policy.head.weight.element_size()
    size = lambda tensors: sum(t.numel() * t.element_size() for t in tensors)  # noqa: E731
    linear = [m for name, m in policy.causal_lm.named_modules() if isinstance(m, torch.nn.Linear) and ".lora_" not in name]
    scales = [scale for m in linear if hasattr(m.weight, "quant_state") for scale in (m.weight.quant_state.absmax, m.weight.quant_state.state2.absmax)]
    dense = sum(m.in_features * m.out_features for m in linear) * policy.head.weight.element_size()
    read = {"nf4": size(policy.model.parameters()) + size(scales),
            "dense": dense + (size(policy.adapter_parameters().values()) if policy.head.weight.dtype == torch.bfloat16 else 0)}  # in fp32 it is added
    found = []
    for weights in read:
        for graph in (False, True) if setup.device == "cuda" else (False,):
            sampler = Sampler(policy, settings.Rollout(max_new_tokens=new, weights=weights, graph=graph))
            write, prefill = lambda: sampler(prompts, [count] * len(prompts), 1.0, range(len(prompts))), lambda: sampler.next_logits(prompts)  # noqa: E731, B023
            write()
            seconds = statistics.median(took(write, policy.device) - took(prefill, policy.device) for _ in range(3))
            step = read[weights] + cache * (len(prompts) * length + rows * new // 2)  # bytes
            found.append({"weights": weights, "graph": graph, "tokens_per_second": rows * (new - 1) / seconds, "limit": rows * speed / step})
    print("\n" + report.markdown([f"decoding, {rows} rows", "captured steps", "tokens/s", "memory allows", "share"], [
        [f["weights"], "yes" if f["graph"] else "no", f"{f['tokens_per_second']:.0f}", f"{f['limit']:.0f}", f"{f['tokens_per_second'] / f['limit']:.0%}"]
        for f in found]))
    print(json.dumps({"decoding": found, "gb_per_second": speed / 1e9}))


def took(call, device: torch.device) -> float:
    """Seconds."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    started = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - started


def memory_speed(device: torch.device) -> float:
    """Bytes a second, read and written, of a copy."""
    source = torch.zeros(2**28 if device.type == "cuda" else 2**24, device=device)
    target = torch.empty_like(source)
    return max(2 * source.nbytes / took(lambda: target.copy_(source), device) for _ in range(5))


if __name__ == "__main__":
    sys.exit(exit_status(main))
