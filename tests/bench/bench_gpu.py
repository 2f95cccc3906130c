"""Measure all that only a GPU can tell, in one command of at most ten minutes.

    python tests/bench/bench_gpu.py [--out FILE] [--seconds 590] [--only trl,survival]

What each part answers, in order; after each, all results so far are written to FILE (default: runs/bench_gpu.json):

1. versions: which card, driver and packages; how fast the memory is, by copying a tensor.
2. steps: two training steps of the built-in policy with captured decoding write what steps without it write.
3. graphs: captured decoding against plain launches, fp32 and bf16, nf4 and dense, groups of unlike sizes: tokens and
   log-probabilities.
4. margins: how far sampling and scoring are from the model's own code at the shape of Qwen2.5-3B
   (`ranker/engine/exact.py`), and the limit.
5. decoding: tokens a second at that shape, nf4 and dense, captured and not, and the share of what the memory allows: a
   step of decoding reads every weight, the prompts and the completions so far.
6. update: one update of two prompts of 1400 tokens with 8 completions of 256 each: seconds and peak by precision of
   fp32 products (TF32 or not) and gradient checkpointing, beside the planned peak; then the same step of TRL, sampling
   included, where trl is installed (bench_step.py says how the sides are made alike; TRL makes its adapter bf16 when
   the base is quantised, ours stays fp32).
7. twice: whether the same update from the same state ends with the same bits.
8. survival: a run killed in its second step and resumed against one that was not; what a run says that is out of
   memory.

Weights are random, in NF4, with LoRA of rank 32. Parts run in processes of their own, so that an error of CUDA spoils
no other part; a part that fails is reported and the next begins. `--quick` runs the whole flow on a small shape, on a
CPU too: does it run? Skips without CUDA otherwise. Ends with one line of JSON.
"""

import importlib.util
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import bench_step  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from ranker import config as settings, plugins  # noqa: E402
from ranker.engine import exact, memory, policy as policies  # noqa: E402
from ranker.engine.sampler import Sampler  # noqa: E402
from ranker.engine.scoring import pack, score_all  # noqa: E402
from ranker.errors import Parser, exit_status  # noqa: E402
from ranker.evaluation import report  # noqa: E402
from ranker.files import write_text  # noqa: E402

SHAPE = {"vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36,
         "num_attention_heads": 16, "num_key_value_heads": 2}
NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4",
       "bnb_4bit_use_double_quant": True}
GPU = bench_step.Setup(
    str(ROOT / "tests/bench/bench_gpu.py"), "cuda", SHAPE, 32, 32, {"quantize": "nf4", "gradient_checkpointing": True},
    {"model_init_kwargs": {"dtype": "bfloat16", "quantization_config": NF4 | {"bnb_4bit_compute_dtype": "bfloat16"}},
     "bf16": True, "gradient_checkpointing": True})
QUICK = replace(GPU, base=bench_step.SMALL)
QUICK_CPU = replace(QUICK, device="cpu", trl=bench_step.CPU.trl | {
    "model_init_kwargs": {"dtype": "float32", "quantization_config": NF4 | {"bnb_4bit_compute_dtype": "float32"}},
    "gradient_checkpointing": True})
# seconds of each
PROCESSES = {"versions": 60, "steps": 120, "graphs": 90, "paper_scale": 240, "trl": 240, "survival": 170}
SHORT = ["--train.steps=2", "--train.warmup=0", "--rollout.prompts_per_step=2", "--rollout.completions_per_prompt=4",
         "--rollout.max_new_tokens=48", "--data.tasks=passage-5", "--eval.every=2", "--eval.queries=1",
         "--run.save_every=1"]


def main() -> None:
    parser = Parser(prog="bench_gpu.py", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/bench_gpu.json"), help="where the results are written")
    parser.add_argument("--seconds", type=int, default=590, help="for all parts; with --quick there is no limit")
    parser.add_argument("--only", type=lambda names: names.split(","), default=list(PROCESSES),
                        help=f"some of {', '.join(PROCESSES)}")
    parser.add_argument("--quick", action="store_true", help="a small shape, on a CPU too: does it run?")
    parser.add_argument("--process", choices=PROCESSES, help="a process of its own")
    parser.add_argument("--folder", help="of the model")
    if "--side" in sys.argv:  # a process of bench_step.py's
        sys.exit(bench_step.compare(setup_of("--quick" in sys.argv), Parser(prog="bench_gpu.py"), "1400/256/8"))
    args = parser.parse_args()
    if not (args.quick or torch.cuda.is_available()):
        print("skipped: no CUDA device is usable here (--quick runs a small shape on the CPU)")
        return
    setup, shape = setup_of(args.quick), (24, 8, 4) if args.quick else (1400, 256, 8)
    if args.process:
        for name, found in globals()[args.process](setup, shape, args.folder):
            print(json.dumps({"part": name, **found}), flush=True)
        return
    args.out.parent.mkdir(parents=True, exist_ok=True)
    results, started = {}, time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        bench_step.save_base(setup, Path(folder))
        for process, limit in PROCESSES.items():
            if process not in args.only:
                continue
            left = 3600 if args.quick else min(limit, args.seconds - int(time.perf_counter() - started))
            skipped = [{"part": f"{process}, failed", "error": "no time was left"}]
            for found in lines_of(args, process, left, folder) if left > 0 else skipped:
                found["at_second"] = round(time.perf_counter() - started, 1)
                results[found.pop("part")] = found
                write_text(args.out, json.dumps(results, indent=1) + "\n")
                print(json.dumps({"part": list(results)[-1], **found}), flush=True)
    print("\n" + tables(results) + f"\nwritten to {args.out}")
    print(json.dumps(results))


def setup_of(quick: bool) -> bench_step.Setup:
    return GPU if not quick else QUICK if torch.cuda.is_available() else QUICK_CPU


def lines_of(args, process: str, limit: int, folder: str) -> Iterator[dict]:
    """Yield what a process of its own measured, part by part; at last what went wrong."""
    command = [sys.executable, __file__, "--process", process, "--folder", folder, *["--quick"] * args.quick]
    with (tempfile.TemporaryFile("w+") as errors,
          subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True,
                           start_new_session=True) as running):
        timer = time.monotonic() + limit
        signal.signal(signal.SIGALRM, lambda *_: os.killpg(running.pid, signal.SIGKILL))
        signal.alarm(limit)
        for line in running.stdout:
            if line.startswith("{"):
                yield json.loads(line)
        running.wait()
        signal.alarm(0)
        if running.returncode:
            errors.seek(0)
            why = "took longer than its limit" if time.monotonic() >= timer else errors.read().strip()[-600:]
            yield {"part": f"{process}, failed", "error": why}


def took(call, device: torch.device) -> float:
    """Return the seconds of a call."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    started = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - started


def memory_speed(device: torch.device) -> float:
    """Return the bytes a second, read and written, of a copy."""
    source = torch.zeros(2**28 if device.type == "cuda" else 2**24, device=device)
    target = torch.empty_like(source)
    return max(2 * source.nbytes / took(lambda: target.copy_(source), device) for _ in range(5))


def versions(setup, shape, folder):
    card = torch.cuda.get_device_properties(0) if setup.device == "cuda" else None
    yield "versions", {
        "device": card.name if card else bench_step.cpu(),
        "gb": round(card.total_memory / 1e9, 1) if card else None, "cuda": torch.version.cuda,
        "python": platform.python_version(), "gb_per_second": round(memory_speed(torch.device(setup.device)) / 1e9),
        **{name: version(name) for name in ("bitsandbytes", "torch", "transformers", "peft")}}


def training(folder: Path, *options: str) -> list:
    """Return the command of a short run."""
    return [sys.executable, ROOT / "train.py", ROOT / "configs/iranker.yaml", *SHORT, f"--run.dir={folder}", *options]


def trained(folder: Path, *options: str) -> subprocess.CompletedProcess:
    return subprocess.run(training(folder, *options), capture_output=True, text=True, cwd=ROOT)


def records(folder: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def steps(setup, shape, folder):
    runs = {graph: Path(folder) / f"run-{graph}" for graph in ("false", "true")}
    for graph, run in runs.items():
        done = trained(run, f"--rollout.graph={graph}", f"--model.device={setup.device}")
        if done.returncode:
            raise RuntimeError(done.stderr[-600:])
    texts = [[record["text"] for record in records(run, "completions.jsonl")] for run in runs.values()]
    logged = [records(run, "metrics.jsonl") for run in runs.values()]
    gaps = [max(step["sampler_gap_max"] for step in log if "sampler_gap_max" in step) for log in logged]
    equal = sum(a == b for a, b in zip(*texts))
    yield "steps", {"completions": len(texts[0]), "equal": equal, "sampler_gap_max": max(gaps)}


def loaded(setup, folder: str, length: int, new: int, **model):
    policy = policies.load(settings.Model(name=folder, device=setup.device, max_prompt=length, **setup.model | model),
                           plugins.load("lora", {"name": "lora", "rank": setup.rank, "alpha": setup.alpha}),
                           max_new_tokens=new)
    policy.stop_ids = frozenset()
    with torch.no_grad():
        for name, parameter in policy.adapter_parameters().items():
            if "lora_B" in name:
                parameter.normal_(std=0.01)
    return policy


def graphs(setup, shape, folder):
    """Compare captured decoding with plain launches, on a small shape: they differ in how kernels are launched."""
    prompts, counts = bench_step.made_prompts(bench_step.SMALL["vocab_size"], 60)[:3], [4, 1, 3]
    prompts[1] = prompts[1][:41]
    bench_step.save_base(replace(setup, base=bench_step.SMALL), Path(folder) / "small")
    for dtype in ("float32", "bfloat16") if setup.device == "cuda" else ("float32",):
        policy = loaded(setup, str(Path(folder) / "small"), 60, 40, dtype=dtype)
        for weights in ("nf4", "dense"):
            rollouts = [settings.Rollout(max_new_tokens=40, weights=weights, graph=graph) for graph in (False, True)]
            drawn = [Sampler(policy, rollout)(prompts, counts, 1.0, range(3)) for rollout in rollouts]
            plain, captured = ([sample for group in groups for sample in group] for groups in drawn)
            rows = pack(prompts, [[ids for ids, _, _ in group] for group in drawn[1]], 10**6)
            scored, _ = score_all(policy, rows, 1.0, 10**6)
            gaps = torch.cat([(scored[k].cpu() - torch.tensor(values)).abs()
                              for k, (_, values, _) in enumerate(captured)])
            yield f"graphs, {dtype}, {weights}", {
                "rows": len(plain), "equal": sum(a[0] == b[0] for a, b in zip(plain, captured)),
                "gap_to_scoring": gaps.mean().item(), "gap_to_scoring_max": gaps.max().item()}


def paper_scale(setup, shape, folder):
    """Measure margins, decoding, updates and their repetition at the paper's shape: one model for all."""
    length, new, count = shape
    policy = loaded(setup, folder, length, new)
    dtype = policy.head.weight.dtype
    yield "margins", exact.differences(policy) | {
        "rounding": exact.rounding_noise(policy), "limit": exact.LIMIT[dtype], "dtype": str(dtype)}
    yield from decoding(setup, shape, policy)
    yield from updates(setup, shape, policy)


def decoding(setup, shape, policy):
    length, new, count = shape
    prompts = bench_step.made_prompts(setup.base["vocab_size"], length)[:bench_step.PROMPTS]
    rows = bench_step.PROMPTS * count
    size = lambda tensors: sum(t.numel() * t.element_size() for t in tensors)  # noqa: E731
    config, unit = policy.causal_lm.config, policy.head.weight.element_size()
    width = config.num_key_value_heads * (config.hidden_size // config.num_attention_heads)
    cache = 2 * config.num_hidden_layers * width * unit
    linear = [m for name, m in policy.causal_lm.named_modules()
              if isinstance(m, torch.nn.Linear) and ".lora_" not in name]
    states = [m.weight.quant_state for m in linear if hasattr(m.weight, "quant_state")]
    scales = [scale for state in states for scale in (state.absmax, state.state2.absmax)]
    dense = sum(m.in_features * m.out_features for m in linear) * unit
    read = {"nf4": size(policy.model.parameters()) + size(scales),
            "dense": dense + (size(policy.adapter_parameters().values()) if unit == 2 else 0)}  # in fp32 it is added
    bandwidth = memory_speed(policy.device)
    for weights, weight_bytes in read.items():
        for graph in (False, True) if setup.device == "cuda" else (False,):
            sampler = Sampler(policy, settings.Rollout(max_new_tokens=new, weights=weights, graph=graph))
            write = lambda: sampler(prompts, [count] * len(prompts), 1.0, range(len(prompts)))  # noqa: E731, B023
            prefill = lambda: sampler.next_logits(prompts)  # noqa: E731, B023
            write()
            seconds = statistics.median(took(write, policy.device) - took(prefill, policy.device) for _ in range(2))
            step = weight_bytes + cache * (len(prompts) * length + rows * new // 2)  # bytes
            limit = rows * bandwidth / step
            speed = rows * (new - 1) / max(seconds, 1e-9)
            yield f"decoding, {weights}{', captured' if graph else ''}", {
                "tokens_per_second": round(speed), "memory_allows": round(limit), "share": round(speed / limit, 3)}


def updates(setup, shape, policy):
    import train
    from ranker import credit
    from ranker.data import Answer, Ask, Candidate, Completion, Group, Query
    from ranker.stages import Stage

    length, new, count = shape
    config = settings.Config(
        model=settings.Model(device=setup.device, max_prompt=length, **setup.model),
        rollout=settings.Rollout(prompts_per_step=bench_step.PROMPTS, completions_per_prompt=count, max_new_tokens=new),
        objective={"name": "grpo", "beta": bench_step.BETA, "kl": "k3"},
        train=settings.Train(lr=bench_step.LR, tokens_per_batch=length + count * new))
    sampler = Sampler(policy, config.rollout)
    query = Query("q", "rank", "", (Candidate("a", "one"), Candidate("b", "other")), (0.0, 1.0))
    prompts = bench_step.made_prompts(setup.base["vocab_size"], length)[:bench_step.PROMPTS]
    drawn = sampler(prompts, [count] * len(prompts), 1.0, range(len(prompts)))
    read = Answer("ok", ("a",))
    groups = [Group(Ask(query, query.ids, "eliminate"), prompt,
                    [Completion(ids, values, "", True, read) for ids, values, _ in group])
              for prompt, group in zip(prompts, drawn)]
    completions = credit.completions(groups)  # of one cohort, so that their advantages are these returns
    for c, value in zip(completions, torch.linspace(-1, 1, len(completions)).tolist()):
        c.returns, c.alive = {"task": value, "total": value}, True
    stage = Stage(1, config, [], *(plugins.load(kind, getattr(config, kind)) for kind in ("objective", "draw")), None)
    adapter = policy.adapter_parameters()
    before = {name: p.detach().clone() for name, p in adapter.items()}

    def update() -> tuple[dict, float]:
        """Learn from the same adapter and a fresh optimizer."""
        for name, p in adapter.items():
            p.data.copy_(before[name])
        for c in completions:
            c.signals = {}
        optimizer = torch.optim.AdamW(adapter.values(), lr=bench_step.LR, weight_decay=0.0)
        learned = {}

        def step():
            learned.update(train.update(stage, policy, optimizer, groups, 1))

        seconds = took(step, policy.device)
        return learned, seconds

    costs = memory.measure(policy, sampler, torch.optim.AdamW(adapter.values()), length)
    plan = memory.Plan(costs, config, policy.device, length, 1, 1, 1)
    for checkpointing in (True, False):
        policy.checkpointing = checkpointing
        config.model.gradient_checkpointing = checkpointing
        for precision in ("high", "highest"):
            torch.set_float32_matmul_precision(precision)
            update()
            memory.forget_peak(policy.device)
            learned, seconds = update()
            products, state = "TF32" if precision == "high" else "fp32", "on" if checkpointing else "off"
            yield f"update, {products} products, checkpointing {state}", {
                "seconds": round(seconds, 3), "peak_gb": round(memory.peak(policy.device) / 1e9, 2),
                "planned_gb": round(plan.peaks(config)["learning"] / 1e9, 2) if checkpointing else None,
                "sampler_gap": learned["sampler_gap"]}
    torch.set_float32_matmul_precision("high")
    policy.checkpointing, ends = True, []
    for _ in range(2):
        update()
        ends.append({name: p.detach().clone() for name, p in adapter.items()})
    moved = {name: (ends[0][name] - before[name]).norm().clamp(min=1e-12) for name in before}
    off = max(((ends[0][name] - ends[1][name]).norm() / moved[name]).item() for name in before)
    yield "twice", {"same_bits": off == 0.0, "relative_difference_of_the_step": off}


def trl(setup, shape, folder):
    """Time the same step of both sides, sampling included, each in a process of its own."""
    if importlib.util.find_spec("trl") is None:
        yield "against TRL", {"skipped": "trl is not installed: tests/bench/requirements.txt"}
        return
    args = SimpleNamespace(threads=2, tokens_per_batch=0, trl_options="{}", trl_compact_head=False,
                           quick=setup.base == bench_step.SMALL)
    seconds = {}
    for side in bench_step.SIDES:
        run = bench_step.in_process(setup, args, shape, side, folder)
        if run is None:
            yield f"a step of {side}", {"error": "needs more memory than there is"}
            continue
        seconds[side] = run["seconds"]
        yield f"a step of {side}", {"seconds": round(run["seconds"], 3), "gb": round(run["peak_bytes"] / 1e9, 3),
                                    "sampling_seconds": round(run["sampling_seconds"], 3)}
    if len(seconds) == 2:
        yield "against TRL", {"times_faster": round(seconds["TRL"] / seconds["ours"], 2)}


def survival(setup, shape, folder):
    device = f"--model.device={setup.device}"
    whole, killed = Path(folder) / "whole", Path(folder) / "killed"
    trained(whole, device)
    running = subprocess.Popen(training(killed, device), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while running.poll() is None and not (killed / "last").exists():
        time.sleep(0.05)
    running.kill()
    running.wait()
    resumed = trained(killed, device)
    a, b = (load_file(run / "last/adapter_model.safetensors") for run in (whole, killed))
    off = max(((a[key] - b[key]).norm() / a[key].norm().clamp(min=1e-12)).item() for key in a)
    yield "kill and resume", {
        "resumed_after": "resuming" in resumed.stdout, "same_bits": off == 0.0, "relative_difference": off}
    if setup.device == "cuda":  # a CPU's limit is the machine's
        code = ("import sys, torch; torch.cuda.set_per_process_memory_fraction(0.004); sys.argv[0] = 'train.py'\n"
                "import train\nfrom ranker.errors import exit_status\nsys.exit(exit_status(train.main))")
        command = [sys.executable, "-c", code, str(ROOT / "configs/iranker.yaml"), f"--run.dir={folder}/full", device]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True,
                              env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])})
        said = done.stderr.strip()
        yield "out of memory", {"status": done.returncode, "says": said.splitlines()[-1][:300] if said else ""}


def tables(results: dict[str, dict]) -> str:
    """Write a table with one line a part."""
    shown = lambda value: f"{value:.3g}" if isinstance(value, float) else f"{value}"  # noqa: E731
    rows = [[name, "; ".join(f"{key} {shown(value)}" for key, value in found.items())]
            for name, found in results.items()]
    return report.markdown(["part", "result"], rows)


if __name__ == "__main__":
    sys.exit(exit_status(main))
