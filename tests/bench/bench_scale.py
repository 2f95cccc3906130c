"""How a step grows with the group and with the prompt, and a ranking with its candidates:
`python tests/bench/bench_scale.py`.

Seconds and peak memory of one optimizer step (sampling and training, two prompts) for groups of 2 to 32 completions and
prompts of 250 to 4000 tokens, each measured in a process of its own as in bench_step.py, whose model it is; and seconds
to rank a query of 5 to 100 candidates by elimination, as in bench_rank.py, its list rewritten or appended to. Beside
each step stand its tokens, P + G x C a prompt: a step that computes nothing twice grows no faster than they do, up to
the attention of a prompt to itself. Writes a picture (--out) and ends with a line of JSON.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent)]

import bench_rank  # noqa: E402
import bench_step  # noqa: E402
import torch  # noqa: E402
from matplotlib import pyplot as plt  # noqa: E402
from tqdm import tqdm  # noqa: E402

from ranker import config as settings  # noqa: E402
from ranker.asking import local_model  # noqa: E402
from ranker.drive import load_ranker, run  # noqa: E402
from ranker.engine.sampler import Sampler  # noqa: E402
from ranker.errors import Parser, UserError, exit_status  # noqa: E402
from ranker.evaluation import report  # noqa: E402

GROUPS = [(1000, 64, g) for g in (2, 4, 8, 16, 32)]
PROMPTS = [(p, 64, 8) for p in (250, 500, 1000, 2000, 4000)]
CANDIDATES = (5, 10, 20, 50, 100)
NEW = 24  # tokens of an answer in a ranking


def main() -> None:
    parser = Parser(prog="bench_scale.py", description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/bench_scale.png"), help="the picture")
    parser.add_argument("--quick", action="store_true", help="small shapes, once: does it run?")
    args = parser.parse_args()
    if min(args.repeats, args.threads) < 1:
        raise UserError("--repeats and --threads must be at least 1")
    groups, prompts, candidates = (([(24, 8, g) for g in (2, 4)], [(p, 8, 2) for p in (24, 48)], (3, 5)) if args.quick
                                   else (GROUPS, PROMPTS, CANDIDATES))
    repeats = 1 if args.quick else args.repeats
    steps, rankings = (measured_steps(args, dict.fromkeys(groups + prompts), repeats),
                       measured_rankings(args, candidates, repeats))
    for title, shapes in (("completions a prompt", groups), ("tokens of the prompt", prompts)):
        lines = [[f"{p} + {g} x {c}", f"{p + g * c}", f"{steps[p, c, g][0]:.2f}",
                  f"{1000 * steps[p, c, g][0] / (2 * (p + g * c)):.2f}", f"{steps[p, c, g][1] / 1e9:.2f}"]
                 for p, c, g in shapes]
        print(f"\nby {title}\n\n"
              + report.markdown(["P + G x C", "tokens a prompt", "seconds a step", "ms a token", "GB"], lines))
    print("\nby candidates\n\n"
          + report.markdown(["candidates", *(f"{pool}, seconds a query" for pool in rankings)],
                            [[str(n), *(f"{found[n]:.2f}" for found in rankings.values())] for n in candidates]))
    draw(args.out, steps, groups, prompts, rankings)
    print(f"\npicture: {args.out}")
    print(json.dumps({"steps": [{"prompt": p, "completion": c, "group": g, "seconds": s, "peak_bytes": b}
                                for (p, c, g), (s, b) in steps.items()], "rankings": rankings, "threads": args.threads,
                      "cpu": bench_step.cpu(), "torch": torch.__version__}))


def measured_steps(args, shapes, repeats: int) -> dict[tuple, tuple[float, float]]:
    """(prompt, completion, group) -> median seconds and peak bytes of a step."""
    args.tokens_per_batch, args.trl_compact_head, args.trl_options = settings.Train.tokens_per_batch, False, "{}"
    found = {shape: [] for shape in shapes}
    with (tempfile.TemporaryDirectory() as folder,
          tqdm(total=repeats * len(found), desc="steps", unit="run", dynamic_ncols=True) as bar):
        bench_step.save_base(bench_step.CPU, Path(folder))
        for _ in range(repeats):
            for shape, runs in found.items():
                if (measured := bench_step.in_process(bench_step.CPU, args, shape, "ours", folder)) is None:
                    raise UserError(f"{'/'.join(map(str, shape))}: out of memory")
                runs.append((measured["seconds"], measured["peak_bytes"]))
                bar.update()
    return {shape: tuple(map(statistics.median, zip(*runs))) for shape, runs in found.items()}


def measured_rankings(args, candidates, repeats: int) -> dict[str, dict[int, float]]:
    """How the list is shown -> candidates -> median seconds a query."""
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        policy = bench_rank.make_policy(folder, 8000)
    sampler = Sampler(policy, settings.Rollout(max_new_tokens=NEW, weights="dense"))
    found: dict[str, dict[int, float]] = {"append": {}, "rewrite": {}}
    with tqdm(total=repeats * 2 * len(candidates), desc="rankings", unit="run", dynamic_ncols=True) as bar:
        for n in candidates:
            queries, times = bench_rank.make_queries(policy, 2, n, 30), {pool: [] for pool in found}
            for _ in range(repeats):
                for pool in found:
                    started = time.perf_counter()
                    run(load_ranker({"name": "elimination", "pool": pool}), queries, local_model(sampler))
                    times[pool].append((time.perf_counter() - started) / len(queries))
                    bar.update()
            for pool, seconds in times.items():
                found[pool][n] = statistics.median(seconds)
    return found


def draw(path: Path, steps: dict, groups: list, prompts: list, rankings: dict) -> None:
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    for axis, shapes, place, label in ((axes[0], groups, 2, "completions a prompt"),
                                       (axes[1], prompts, 0, "tokens of the prompt")):
        axis.plot([s[place] for s in shapes], [steps[s][0] for s in shapes], marker="o", label="seconds a step")
        memory = axis.twinx()
        memory.plot([s[place] for s in shapes], [steps[s][1] / 1e9 for s in shapes], marker="s", color="tab:orange",
                    label="peak GB")
        axis.set(xlabel=label, ylabel="seconds a step", xlim=0, ylim=0)
        memory.set(ylabel="peak GB", ylim=0)
        axis.legend(loc="upper left", fontsize=8)
        memory.legend(loc="lower right", fontsize=8)
    for pool, found in rankings.items():
        axes[2].plot(list(found), list(found.values()), marker="o", label=pool)
    axes[2].set(xlabel="candidates", ylabel="seconds a query", xlim=0, ylim=0)
    axes[2].legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    sys.exit(exit_status(main))
