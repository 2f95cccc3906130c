"""The paper's ablation table (arXiv 2506.21638, section 5) from one command: `python -m ranker.ablation [options]`.

Trains every config with every seed (a run that is finished is not repeated), evaluates each by the two scripts, and
prints MRR per scenario as mean and standard deviation over the seeds. The first two rows are the untrained base, asked
for a whole list and asked to eliminate.
"""

import json
import statistics
import subprocess
import sys
from pathlib import Path

from ranker.errors import Parser, UserError, exit_status
from ranker.files import write_text
from ranker.report import BASE, markdown

ROOT = Path(__file__).resolve().parent.parent
UNTRAINED = {"base, direct": "dranker", "base, iterative": "iranker"}  # row -> the config whose untrained base it is
TRAINED = {"DRanker (GRPO)": "dranker", "IRanker (GRPO)": "iranker", "IRanker (PPO)": "iranker_ppo", "IRanker on-policy": "iranker_on_policy"}


def main() -> None:
    parser = Parser(prog="python -m ranker.ablation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, ... of every config")
    parser.add_argument("--dir", type=Path, default=Path("runs/ablation"), help="where the runs and the table go")
    parser.add_argument("--limit", type=int, help="at most this many test queries per task")
    args, settings = parser.parse_known_args()  # settings of train.py, for all runs
    if args.seeds < 1 or (args.limit is not None and args.limit < 1):
        raise UserError("--seeds and --limit must be at least 1")
    results = {}  # config -> one results.json per seed
    for config in dict.fromkeys([*UNTRAINED.values(), *TRAINED.values()]):
        results[config] = []
        for seed in range(args.seeds):
            run = args.dir / f"{config}-{seed}"
            out = run / "eval" / (f"limit-{args.limit}" if args.limit else "test")
            call("train.py", ROOT / "configs" / f"{config}.yaml", f"--run.seed={seed}", f"--run.dir={run}", *settings)
            if not (out / "results.json").is_file():
                call("evaluate.py", "--ckpt", run / "best", "--out", out, *(["--limit", args.limit] if args.limit else []))
            results[config].append(json.loads((out / "results.json").read_text(encoding="utf-8")))
    table = ablation_table(results)
    write_text(args.dir / "table.md", table + "\n")
    print(f"\nMRR on the test queries, mean ± standard deviation over {args.seeds} seed(s):\n\n{table}\n\nwritten to {args.dir}/table.md")


def call(script: str, *arguments) -> None:
    """Run one of the two scripts; its mistake is ours."""
    status = subprocess.run([sys.executable, ROOT / script, *map(str, arguments)]).returncode
    if status:
        raise UserError(f"{script} {' '.join(map(str, arguments))} ended with status {status}")


def ablation_table(results: dict[str, list[dict]]) -> str:
    """Markdown: a row per method, a column per scenario. `results`: config -> what evaluate.py wrote, one per seed."""
    rows = {name: [r["rows"][BASE] for r in results[config]] for name, config in UNTRAINED.items()}
    rows |= {name: [row for r in results[config] for label, row in r["rows"].items() if row["strict"] and label != BASE]
             for name, config in TRAINED.items()}
    scenarios = list(next(iter(rows.values()))[0]["repaired"]["scenarios"])
    lines = []
    for name, found in rows.items():
        columns = [[row["repaired"]["scenarios"][s]["MRR"] for row in found] for s in scenarios]
        columns.append([row["repaired"]["mean"]["MRR"] for row in found])
        lines.append([name, *map(mean_and_deviation, columns)])
    return markdown(["MRR", *scenarios, "mean"], lines)


def mean_and_deviation(values: list[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{deviation}"


if __name__ == "__main__":
    sys.exit(exit_status(main))
