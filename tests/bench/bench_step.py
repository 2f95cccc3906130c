"""One optimizer step, sampling and training, of this trainer against TRL's GRPOTrainer:
`python tests/bench/bench_step.py`.

    pip install -r requirements.txt -r tests/bench/requirements.txt
    # shapes are prompt/completion/group
    python tests/bench/bench_step.py [--shapes 1000/64/8,1500/64/8] [--repeats 3] [--threads 2]

What is measured: seconds from two prompts to the end of the optimizer step, of the second step of a process (the first,
of the same shapes, is a warm-up), and the peak of resident memory over both. Every side and repetition is a process of
its own; they take turns, A B A B, so that what else the machine does meets both. Shown: medians, and the median ratio
of the pairs. Memory is the kernel's high-water mark VmHWM, set back to the present size once model, adapter and
optimizer stand (proc(5), `clear_refs`); the size then is subtracted. It misses no peak, as a sampling thread could, and
starts with the process, unlike ru_maxrss, which a child inherits from its parent. Whatever the shape, what a step
touches for the first time counts: at `--quick`, which says nothing about speed or memory, about 0.06 GB with ours and
0.17 GB with TRL.

Both sides: fp32 on the CPU, a random Qwen2 of 7 million parameters (hidden 256, 6 layers, 4 heads, 2 of keys,
vocabulary 4096), LoRA of rank 16 on all linear layers, two prompts of exactly P random tokens, G completions of exactly
C tokens for each, temperature 1, one optimizer step a rollout, a reward drawn from the completion's ids. The loss is
the same function: advantages are rewards minus their group's mean (`scale_rewards="none"`), ratios are clipped at 0.2,
the KL to the base (adapter off) is 0.04 times k3 times the ratio (ours `kl: k3`, TRL's `use_bias_correction_kl`), and
the sum over tokens is divided by the tokens of the step (`loss_type="dapo"`). AdamW, gradient norm cut at 1. From the
same completions both made the same gradient, to 1e-8 where its largest entry was 1e-2. What the trainers really saw
(prompt ids, lengths, adapter size) is checked after every run.

Ours is the draw `sampled` and train.py's `judge` and `update`, with `rollout.weights=dense` and one group in a forward
pass. TRL gets all completions in one go, in sampling and in training (github.com/huggingface/trl,
trl/trainer/grpo_trainer.py at 1.16.0), which is its fastest way: no gradient checkpointing, no logging, no saving, a KV
cache in `generate`. vLLM, a second engine with weights of its own, is left out; Triton kernels need a GPU. To know of
TRL:

- On a CPU its fused LM head scores the prompt's positions too; on CUDA only those of the completions (`compact` in
  trl/trainer/utils.py). `--trl_compact_head` gives it the CUDA way here as well. That is a patch, not an option of
  TRL's.
- `--trl_options` takes any fields of GRPOConfig as JSON. Less memory, by accumulating gradients:
  '{"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2}'. The one documented way of sampling faster
  without vLLM, '{"use_transformers_continuous_batching": true}' (GRPOConfig's docstring), runs on a CPU and was far
  slower on a tiny shape.

A process that the kernel ends for want of memory is shown as such. TRL's 3000/100/16 holds the activations of 99,200
tokens at once: about 20 to 25 GB, by what small shapes take. Ends with one line of JSON: every run, and the medians.
"""

import argparse
import gc
import importlib.metadata
import importlib.util
import json
import os
import platform
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from tqdm import tqdm  # noqa: E402

from ranker import config as settings  # noqa: E402
from ranker.errors import Parser, UserError, exit_status  # noqa: E402

SIDES = ("ours", "TRL")
LETTERS = "abcdefghijklmno"
STEPS, PROMPTS = 2, 2  # one warm-up; prompts a step
BETA, LR = 0.04, 1e-4
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "trl", "accelerate")


@dataclass(frozen=True)
class Setup:
    """The model, what it runs on, and how each side is told so."""

    script: str  # whose processes measure
    device: str
    base: dict  # of Qwen2Config
    rank: int
    alpha: int
    model: dict  # of settings.Model
    trl: dict  # of GRPOConfig


SMALL = {"vocab_size": 4096, "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6,
         "num_attention_heads": 4, "num_key_value_heads": 2}
CPU = Setup(__file__, "cpu", SMALL, 16, 32, {"quantize": "none", "dtype": "float32"},
            {"model_init_kwargs": {"dtype": "float32"}, "bf16": False, "use_cpu": True,
             "gradient_checkpointing": False})


def main() -> None:
    compare(CPU, Parser(prog="bench_step.py", description=__doc__), "1000/64/8,1500/64/8,3000/100/16")


def compare(setup: Setup, parser: Parser, shapes: str,
            also: Callable[[Setup, tuple, str], None] = lambda *arguments: None) -> None:
    """The table of all `shapes`, or with --side what a process of one run measures. `also` gets the first shape and the
    model's folder."""
    parser.add_argument("--shapes", default=shapes, help="prompt/completion/group, joined by commas")
    parser.add_argument("--quick", action="store_true", help="one tiny shape, once: does it run?")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens_per_batch", type=int, default=0,
                        help="ours; a group is never split, so 0 means one group at a time")
    parser.add_argument("--trl_compact_head", action="store_true",
                        help="patch TRL: no LM head on the prompt's positions")
    parser.add_argument("--trl_options", default="{}", help="GRPOConfig fields, as JSON")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)  # a process of one run
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    shapes = [read_shape(text) for text in ("24/8/4" if args.quick and not args.side else args.shapes).split(",")]
    options = read_options(args.trl_options)
    if min(args.repeats, args.threads) < 1:
        raise UserError("--repeats and --threads must be at least 1")
    if args.side != "ours" and importlib.util.find_spec("trl") is None:
        raise UserError(f"trl is not installed: {sys.executable} -m pip install -r requirements.txt -r "
                        "tests/bench/requirements.txt")
    if not Path("/proc/self/status").exists():
        raise UserError("peak memory is read from /proc, which this system does not have; run it on Linux")
    if args.side:
        print("\n" + json.dumps(one_run(setup, args, shapes[0], options)))  # TRL does not end its last line
        return
    repeats = 1 if args.quick else args.repeats
    with (tempfile.TemporaryDirectory() as folder,
          tqdm(total=len(shapes) * repeats * len(SIDES), unit="run", dynamic_ncols=True) as bar):
        save_base(setup, Path(folder))
        runs = {}  # shape -> side -> its runs, None for one that was killed
        for shape in shapes:
            runs[shape] = {side: [] for side in SIDES}
            for _ in range(repeats):
                for side in SIDES:
                    bar.set_description(f"{side} {'/'.join(map(str, shape))}")
                    runs[shape][side].append(in_process(setup, args, shape, side, folder))
                    bar.update()
        bar.close()
        show(setup, args, options, runs)
        also(setup, shapes[0], folder)


def read_shape(text: str) -> tuple[int, int, int]:
    try:
        prompt, completion, group = map(int, text.split("/"))
    except ValueError:
        raise UserError(f"--shapes: '{text}' is no shape: write prompt/completion/group, such as 1000/64/8") from None
    if min(prompt, completion) < 1 or group < 2 or prompt + completion > 8192:
        raise UserError(f"--shapes: '{text}' needs a group of at least 2 and at most 8192 tokens a row")
    return prompt, completion, group


def read_options(text: str) -> dict:
    try:
        options = json.loads(text)
    except ValueError as error:
        raise UserError(f"--trl_options is not JSON ({error})") from None
    if not isinstance(options, dict):
        raise UserError("--trl_options must be a JSON object of GRPOConfig fields")
    return options


def in_process(setup: Setup, args, shape: tuple[int, int, int], side: str, folder: str) -> dict | None:
    """What a process of its own measures; None where it was killed, as one is that needs more memory than there is."""
    command = [sys.executable, setup.script, "--side", side, "--folder", folder, "--shapes", "/".join(map(str, shape)),
               "--threads", str(args.threads), "--tokens_per_batch", str(args.tokens_per_batch), "--trl_options",
               args.trl_options, *["--trl_compact_head"] * args.trl_compact_head, *["--quick"] * args.quick]
    threads = {"OMP_NUM_THREADS": str(args.threads), "MKL_NUM_THREADS": str(args.threads)}
    first = ({"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]}
             if setup.device == "cuda" else {})
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | threads | first)
    if done.returncode == -signal.SIGKILL:
        return None
    if done.returncode == 2:
        raise UserError(done.stderr.strip().splitlines()[-1].removeprefix("error: "))
    if done.returncode:
        raise RuntimeError(f"{side} at {shape} ended with {done.returncode}:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def save_base(setup: Setup, folder: Path) -> None:
    """A Qwen2 of random weights, and its tokenizer: bytes, and words with a space before them that grow by a letter a
    merge.

    TRL is given text: of words, it finds the ids again. A plainer tokenizer would not do, since Transformers makes that
    of any Qwen2 a byte-level BPE.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
    from transformers.utils import logging

    from ranker.tiny.tokenizer import CHAT_TEMPLATE, SPECIAL

    logging.disable_progress_bar()  # it would break into ours
    tokens = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    merges, longer = [], ["\u0120"]  # a space, in the alphabet of bytes
    while len(tokens) < setup.base["vocab_size"]:
        made = [(word, letter) for word in longer for letter in LETTERS][:setup.base["vocab_size"] - len(tokens)]
        merges += made
        longer = [word + letter for word, letter in made]
        tokens += longer
    words = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    words.pre_tokenizer, words.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token=SPECIAL[0], eos_token=SPECIAL[2],
                            chat_template=CHAT_TEMPLATE, clean_up_tokenization_spaces=False).save_pretrained(folder)
    torch.manual_seed(0)
    with torch.device(setup.device):
        model = Qwen2ForCausalLM(Qwen2Config(**setup.base, max_position_embeddings=8192, tie_word_embeddings=True,
                                             bos_token_id=None, eos_token_id=2, pad_token_id=0))
    model.to(torch.bfloat16 if setup.device == "cuda" else torch.float32).save_pretrained(folder)
    del model
    if setup.device == "cuda":
        torch.cuda.empty_cache()  # else it would stand beside what is measured


def made_prompts(vocabulary: int, length: int) -> list[list[int]]:
    """The prompts of all steps, of words."""
    rng = random.Random(f"prompts of {length}")
    return [[rng.randrange(vocabulary - len(LETTERS) ** 3, vocabulary) for _ in range(length)]
            for _ in range(STEPS * PROMPTS)]


def reward(ids: list[int]) -> float:
    """Random, and the same for the same completion; no two completions of a group get the same."""
    return random.Random(repr(ids)).random()


def memory(field: str) -> int:
    """Bytes in /proc/self/status: VmRSS is the present resident size, VmHWM its peak."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024


def one_run(setup: Setup, args, shape: tuple[int, int, int], options: dict) -> dict:
    """Seconds of the timed step and of its sampling, peak memory (on a CPU over what the loaded model takes),
    parameters trained."""
    import torch

    from ranker.engine.memory import FULL

    Path("/proc/self/oom_score_adj").write_text("1000")  # rather this one than another process of the machine
    torch.set_num_threads(args.threads)
    try:
        steps, trained = ours(setup, args, *shape) if args.side == "ours" else trl(setup, args, options, *shape)
        if setup.device == "cuda":
            seconds, sampling = steps()
            return {"seconds": seconds, "sampling_seconds": sampling, "peak_bytes": torch.cuda.max_memory_reserved(),
                    "trained": trained}
    except RuntimeError as error:
        if not FULL.search(str(error)):
            raise
        os.kill(os.getpid(), signal.SIGKILL)  # as it ends on a CPU
    gc.collect()
    loaded = memory("VmRSS")
    try:
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    except OSError as error:
        raise UserError(f"/proc/self/clear_refs cannot be written ({error.strerror}), "
                        "so peak memory cannot be measured here") from None
    seconds, sampling = steps()
    return {"seconds": seconds, "sampling_seconds": sampling, "peak_bytes": memory("VmHWM") - loaded,
            "loaded_bytes": loaded, "trained": trained}


def ours(setup: Setup, args, length: int, new: int, count: int):
    """(what takes all steps and returns the seconds of the last one and of its sampling, parameters trained)."""
    import torch

    import train
    from ranker import plugins
    from ranker.asking import Sample
    from ranker.data import Ask, Candidate, Query
    from ranker.engine import policy as policies
    from ranker.engine.sampler import Sampler
    from ranker.rewarding import Part
    from ranker.sources import Source
    from ranker.stages import Stage

    config = settings.Config(
        model=settings.Model(name=args.folder, device=setup.device, max_prompt=length, **setup.model),
        lora={"name": "lora", "rank": setup.rank, "alpha": setup.alpha},
        rollout=settings.Rollout(prompts_per_step=PROMPTS, completions_per_prompt=count, max_new_tokens=new,
                                 weights="dense"),
        objective={"name": "grpo", "beta": BETA, "kl": "k3"},
        train=settings.Train(lr=LR, tokens_per_batch=max(args.tokens_per_batch, length + count * new)))
    lora, draw, objective = (plugins.load(kind, getattr(config, kind)) for kind in ("lora", "draw", "objective"))
    torch.manual_seed(0)
    policy = policies.load(config.model, lora, max_new_tokens=new)
    policy.stop_ids = frozenset()  # every completion runs to its limit
    prompts = made_prompts(setup.base["vocab_size"], length)
    queries = [Query(str(i), "rank", "", (Candidate("a", "one"), Candidate("b", "other")), (0.0, 1.0))
               for i in range(len(prompts))]
    policy.prompter.fitted = lambda ask: (prompts[int(ask.query.id)], None)  # instead of their texts
    ranker = SimpleNamespace(sampled_asks=lambda query, rng, size: [Ask(query, query.ids, "eliminate")])
    drawn = SimpleNamespace(TASK=True, reward=lambda groups, options: [[reward(c.ids) for c in group.completions]
                                                                       for group in groups])
    rewards = [Part(plugins.Plugin("reward", "drawn", drawn, None), 1.0)]
    stage = Stage(1, config, rewards, objective, draw, Source("queries", item=queries.__getitem__))
    sample, state = Sample(Sampler(policy, config.rollout), ranker, config.rollout, config.run.seed), {}
    adapter = policy.adapter_parameters().values()
    optimizer = torch.optim.AdamW(adapter, lr=LR, weight_decay=0.0)

    def steps() -> tuple[float, float]:
        for step in range(1, STEPS + 1):  # as in train.py
            started = time.perf_counter()
            groups = stage.draw.draw(stage.source, sample, partial(train.judge, stage, {}), state)
            sampled = time.perf_counter()
            train.update(stage, policy, optimizer, groups, step)
            ended = time.perf_counter()
            first = (step - 1) * PROMPTS
            expect("prompts", [group.prompt for group in groups], prompts[first:first + PROMPTS])
            expect("lengths", [len(c.ids) for group in groups for c in group.completions], [new] * PROMPTS * count)
            expect("completions that teach", sum(c.alive for group in groups for c in group.completions),
                   PROMPTS * count)
        return ended - started, sampled - started

    return steps, sum(p.numel() for p in adapter)


def trl(setup: Setup, args, options: dict, length: int, new: int, count: int):
    """The same for TRL."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer
    from trl.trainer import utils

    if args.trl_compact_head:
        utils._use_triton = lambda device: True  # in this module it says which positions are scored, and no more
    batches, sampling, seconds = [], [], []

    class Watched(GRPOTrainer):
        """Keeps the tensors that go into the loss, to be checked when the clock has stopped."""

        def _generate_single_turn(self, *args, **kwargs):
            started = time.perf_counter()
            result = super()._generate_single_turn(*args, **kwargs)
            sampling.append(time.perf_counter() - started)
            return result

        def _compute_loss(self, model, inputs):
            batches.append(inputs)
            return super()._compute_loss(model, inputs)

    class Clock(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            self.started = time.perf_counter()

        def on_step_end(self, *args, **kwargs):
            seconds.append(time.perf_counter() - self.started)

    prompts = made_prompts(setup.base["vocab_size"], length)
    tokenizer = AutoTokenizer.from_pretrained(args.folder)
    fields = {
        "output_dir": f"{args.folder}/trl", "per_device_train_batch_size": PROMPTS * count,
        "gradient_accumulation_steps": 1, "num_generations": count, "max_completion_length": new,
        "generation_kwargs": {"min_new_tokens": new, "max_new_tokens": new, "use_cache": True}, "beta": BETA,
        "loss_type": "dapo", "scale_rewards": "none", "learning_rate": LR, "lr_scheduler_type": "constant",
        "weight_decay": 0.0, "max_steps": STEPS, "shuffle_dataset": False, "dataloader_pin_memory": False,
        "logging_strategy": "no", "save_strategy": "no", "eval_strategy": "no", "report_to": "none",
        "disable_tqdm": True}
    try:
        config = GRPOConfig(**fields | setup.trl | options)
    except (TypeError, ValueError) as error:
        raise UserError(f"--trl_options: {error}") from None
    trainer = Watched(
        args.folder, lambda completion_ids, **rest: [reward(ids) for ids in completion_ids], config,
        Dataset.from_dict({"prompt": tokenizer.batch_decode(prompts)}), callbacks=[Clock()],
        peft_config=LoraConfig(r=setup.rank, lora_alpha=setup.alpha, lora_dropout=0.0, target_modules="all-linear",
                               task_type="CAUSAL_LM"))

    def steps() -> tuple[float, float]:
        trainer.train()
        each = len(batches) // STEPS
        for step in range(STEPS):
            rows = {name: [row for batch in batches[step * each:(step + 1) * each] for row in batch[name].tolist()]
                    for name in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")}
            first = step * PROMPTS
            # it shuffles them
            expect("prompts", sorted(rows["prompt_ids"]), sorted(prompts[first:first + PROMPTS] * count))
            expect("prompt lengths", [sum(row) for row in rows["prompt_mask"]], [length] * PROMPTS * count)
            expect("lengths", [(len(row), sum(row)) for row in rows["completion_mask"]], [(new, new)] * PROMPTS * count)
        return seconds[-1], sampling[-1]

    return steps, sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)


def expect(what: str, found, wanted) -> None:
    """A comparison of unlike things is worth nothing. Not an `assert`, which -O would leave out."""
    if found != wanted:
        raise RuntimeError(f"{what}: {str(found)[:500]} where {str(wanted)[:500]} was meant")


def show(setup: Setup, args, options: dict, runs: dict) -> None:
    from ranker.evaluation import report
    from ranker.provenance import git_commit

    trained = {run["trained"] for sides in runs.values() for found in sides.values() for run in found if run}
    expect("adapters of one size", len(trained) <= 1, True)
    lines, results = [], []
    for shape, sides in runs.items():
        median = {side: {name: middle(run[name] for run in found if run)
                         for name in ("seconds", "sampling_seconds", "peak_bytes")} for side, found in sides.items()}
        pairs = [pair for pair in zip(*(sides[side] for side in SIDES)) if all(pair)]
        faster = middle(b["seconds"] / a["seconds"] for a, b in pairs)
        share = middle(a["peak_bytes"] / b["peak_bytes"] for a, b in pairs)
        lines.append([*map(str, shape), *(number(median[side]["seconds"], "{:.2f}") for side in SIDES),
                      number(faster, "{:.2f}", ""),
                      *(number(median[side]["peak_bytes"], "{:.2f}", unit=1e9) for side in SIDES),
                      number(share, "{:.0%}", "")])
        results.append({**dict(zip(("prompt", "completion", "group"), shape)), "median": median, "times_faster": faster,
                        "memory_share": share, "runs": sides})
    print(report.markdown(["prompt", "completion", "G", "ours s", "TRL s", "times faster", "ours GB", "TRL GB",
                           "memory share"], lines))
    machine = {"device": device(setup), "threads": args.threads, "python": platform.python_version(),
               "commit": git_commit(), **{name: importlib.metadata.version(name) for name in PACKAGES}}
    print("\n" + ", ".join(f"{name} {value}" for name, value in machine.items()))
    print(json.dumps({"machine": machine, "tokens_per_batch": args.tokens_per_batch,
                      "trl_compact_head": args.trl_compact_head,
                      "trl_options": options, "trained": max(trained, default=None), "shapes": results}))


def middle(values) -> float | None:
    values = list(values)
    return statistics.median(values) if values else None


def number(value: float | None, form: str, missing: str = "out of memory", unit: float = 1) -> str:
    return missing if value is None else form.format(value / unit)


def device(setup: Setup) -> str:
    import torch

    return cpu() if setup.device == "cpu" else torch.cuda.get_device_name()


def cpu() -> str:
    names = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
             if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    sys.exit(exit_status(main))
