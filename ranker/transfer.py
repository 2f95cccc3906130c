"""What training on one scenario does to the others: `python -m ranker.transfer CONFIG [options]`.

Trains the config once on each scenario of its training file (short runs of `train.steps`), evaluates the untrained base
and all runs on the validation queries, and writes the matrix that `lessons/curriculum.py` orders scenarios by. A number
is MRR as a share of the way from chance to 1. Finished runs and the evaluation are not repeated. Settings of train.py
may follow, such as --train.steps=30 or --data.train=FILE; they hold for all runs.
"""

import itertools
import json
import sys
from pathlib import Path

from ranker import config as settings, sources
from ranker.ablation import run_scripts
from ranker.errors import Parser, UserError, exit_status
from ranker.evaluation.report import BASE, markdown
from ranker.files import write_text
from ranker.lessons.curriculum import MOST, Transfer
from ranker.templates import wording

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = Parser(prog="python -m ranker.transfer", description=__doc__)
    parser.add_argument("config", help="a YAML file, such as configs/omni_thinker.yaml")
    parser.add_argument("--dir", type=Path, default=Path("runs/transfer"), help="where the runs and the matrix go")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--limit", type=int, help="at most this many validation queries per task")
    args, overrides = parser.parse_known_args()
    config = settings.load(args.config, overrides)
    sources.refuse_unmade([config.data.train], args.config)
    if config.data.train == "world":
        raise UserError("the scenarios of the built-in world teach the same; name a file in --data.train")
    tasks: dict[str, list[str]] = {}  # scenario -> its tasks
    for task in dict.fromkeys(query.task for query in sources.held_out(config.data, "train")):
        tasks.setdefault(wording(task)["scenario"], []).append(task)
    names = sorted(tasks)
    for name, value in (("--jobs", args.jobs), ("--limit", args.limit)):
        if value is not None and value < 1:
            raise UserError(f"{name} must be at least 1, got {value}")
    if len(names) < 2:
        raise UserError(f"{config.data.train}: holds one scenario, {names[0]}; transfer needs two")
    runs = {name: args.dir / name for name in names}
    run_scripts("train", [(run.with_suffix(".log"), "train.py", args.config, *overrides, "--data.lessons=[]",
                           f"--data.tasks={json.dumps(tasks[name])}", f"--run.dir={run}")
                          for name, run in runs.items()], args.jobs)
    limit = ("--limit", str(args.limit)) if args.limit else ()
    out = args.dir / "-".join(["eval", str(config.train.steps), *limit[1:]])
    if not (out / "results.json").is_file():
        every = json.dumps([task for name in names for task in tasks[name]])
        run_scripts("evaluate", [(out.with_suffix(".log"), "evaluate.py", f"--data.tasks={every}",
                                  *(word for run in runs.values() for word in ("--ckpt", run / "last")),
                                  "--split", "validation", *limit, "--out", out)], 1)
    found = matrix(json.loads((out / "results.json").read_text(encoding="utf-8"))["rows"], names, runs)
    write_text(args.dir / "transfer.json", json.dumps({"base": found.base, "after": found.after}, indent=1) + "\n")
    print(f"{table(found, names)}\n\nwritten to {args.dir}/transfer.json   next: train.py with"
          f" --data.lessons='[{{name: curriculum, transfer: {args.dir}/transfer.json}}]'")


def matrix(rows: dict[str, dict], names: list[str], runs: dict[str, Path]) -> Transfer:
    """Return the matrix from the rows of results.json, whose labels are the checkpoints' paths."""
    chance = {j: rows["random order"]["repaired"]["scenarios"][j]["MRR"] for j in names}
    if full := [j for j in names if chance[j] >= 1]:
        raise UserError(f"in {full[0]} every order is right, so nothing can be gained or lost there")
    share = lambda row, j: (row["repaired"]["scenarios"][j]["MRR"] - chance[j]) / (1 - chance[j])  # noqa: E731
    row_of = {name: next(row for label, row in rows.items() if Path(label).parent == run) for name, run in runs.items()}
    return Transfer({j: share(rows[BASE], j) for j in names},
                    {i: {j: share(row, j) for j in names} for i, row in row_of.items()})


def table(found: Transfer, names: list[str]) -> str:
    """Return the matrix and what is predicted of every order, as Markdown."""
    lines = [["untrained", *(f"{found.base[j]:.3f}" for j in names)],
             *([i, *(f"{found.after[i][j]:.3f}" for j in names)] for i in names)]
    text = markdown(["trained on", *names], lines)
    if len(names) <= 4:
        exact, greedy = found.exact(names), found.greedy(names)
        orders = sorted(itertools.permutations(names), key=lambda order: -sum(found.predicted(order).values()))
        marks = lambda order: ", ".join(["exact"] * (order == exact) + ["greedy"] * (order == greedy)  # noqa: E731
                                        + ["reversed"] * (order == exact[::-1]))
        text += "\n\n" + markdown(["order", "predicted mean", ""], [
            [" > ".join(order), f"{sum(found.predicted(order).values()) / len(names):.3f}", marks(order)]
            for order in orders])
    elif len(names) <= MOST:
        text += f"\n\nexact: {' > '.join(found.exact(names))}\ngreedy: {' > '.join(found.greedy(names))}"
    return text


if __name__ == "__main__":
    sys.exit(exit_status(main))
