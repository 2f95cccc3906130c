"""Measure what SmolLM2-135M costs on this CPU: `python tests/bench/bench_smollm2.py`.

    pip install -r requirements.txt -r tests/bench/requirements.txt
    make smollm2

First loading from the cache and a likelihood step: 16 lists of 10 titles behind histories of 10 (MovieLens prepared as
docs/real.md says, `--data FILE`; without it random words of like length), from the prompts to the end of the optimizer
step, with an adapter on all layers and on the last ten; median of `--repeats`. Then a GRPO step of its shape with
random weights against TRL's in the same run, as bench_step.py does it: 4 prompts of 600 tokens, 8 completions of 16.
Both sides compute in bf16 where the CPU multiplies it natively, else in fp32. Ends with one line of JSON for each part.
"""

import itertools
import json
import random
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/bench")]

import bench_step  # noqa: E402

from ranker.errors import Parser, exit_status  # noqa: E402

SHAPE = {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
         "num_attention_heads": 9, "num_key_value_heads": 3}
LISTS, POOL = 16, 10
bench_step.PROMPTS = 4


def main() -> None:
    from ranker.engine.pretrained import native_bf16
    dtype = "bfloat16" if native_bf16() else "float32"
    setup = bench_step.Setup(__file__, "cpu", SHAPE, 16, 32, {"quantize": "none", "dtype": dtype}, {
        "model_init_kwargs": {"dtype": dtype}, "bf16": dtype == "bfloat16", "use_cpu": True,
        "gradient_checkpointing": False})
    parser = Parser(prog="bench_smollm2.py", description=__doc__)
    parser.add_argument("--data", type=Path, help="MovieLens as JSON lines; without it random words")
    parser.add_argument("--only", choices=("likelihood", "grpo"), help="one part")
    args, _ = parser.parse_known_args()
    if "--side" not in sys.argv and args.only != "grpo":
        quick = "--quick" in sys.argv
        print(json.dumps({"dtype": dtype} | likelihood(args.data, 1 if quick else 3, 2 if quick else LISTS)))
    if args.only != "likelihood":
        bench_step.compare(setup, parser, "600/16/8")


def likelihood(data: Path | None, repeats: int, lists: int) -> dict:
    """Return the median seconds of loading and of a step, for adapters on all layers and on the last ten."""
    import torch

    import train
    from ranker import config as settings, plugins, stages
    from ranker.asking import Sample
    from ranker.data import Candidate, Query, iter_queries
    from ranker.drive import load_ranker
    from ranker.engine import policy as policies
    from ranker.engine.sampler import Sampler
    from ranker.sources import Source

    rng = random.Random(0)
    title = lambda: f"{' '.join(rng.choices(WORDS, k=3))} ({rng.randint(1950, 2018)})"  # noqa: E731
    made = (Query(str(i), "rec-movie", tuple(title() for _ in range(10)),
                  tuple(Candidate(str(k), title()) for k in range(20)), (1.0, *[0.0] * 19)) for i in itertools.count())
    queries = list(itertools.islice(iter_queries(data) if data else made, 100))
    config, found = settings.load(ROOT / "configs/smollm2_likelihood.yaml", [f"--rollout.prompts_per_step={lists}"]), {}
    ranker = load_ranker(config.ranker)
    for layers in (0, 10):
        started = time.perf_counter()
        policy = policies.load(config.model, plugins.load("lora", config.lora | {"layers": layers}), None, 48)
        loaded = time.perf_counter() - started
        sample, seconds = Sample(Sampler(policy, config.rollout), ranker, config.rollout, 0), []
        [stage] = stages.load(config, ranker, Source("queries", items=queries, seed="0"), "bench")
        optimizer = stages.new_optimizer(config.train, policy, [stage])
        for step in range(repeats + 1):  # one warm-up
            started = time.perf_counter()
            groups = stage.draw.draw(stage.source, sample, lambda drawn: train.judge(stage, {}, drawn), {})
            train.update(stage, policy, optimizer, groups, step + 1)
            seconds.append(time.perf_counter() - started)
        name = f"last {layers} layers" if layers else "all layers"
        found[name] = {"loading": round(loaded, 2), "step": round(statistics.median(seconds[1:]), 2),
                       "tokens": sum(len(g.prompt) + sum(len(c.ids) for c in g.completions) for g in groups),
                       "threads": torch.get_num_threads()}
        print(f"{name}: loading {found[name]['loading']} s, a step {found[name]['step']} s", file=sys.stderr)
    return found


WORDS = "dark night star house king love last road blue man woman city river fire golden lost return secret".split()

if __name__ == "__main__":
    sys.exit(exit_status(main))
