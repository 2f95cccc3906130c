"""The paper's ablation table (arXiv 2506.21638, section 5) from one command: `python -m ranker.ablation [options]`.

Trains every config with every seed, evaluates each config's runs by the two scripts, and prints MRR per scenario as
mean and standard deviation over the seeds. The first two rows are the untrained base, asked for a whole list and asked
to eliminate. With `--configs A,B,...` these configs are compared instead: the cost of each and the gain of training,
and beside it what each is, as its header says, and which plug-ins it is made of; `--configs papers` are the sixteen
papers of docs/papers.md. Finished runs and evaluations are not repeated. Settings of train.py may follow; they hold for
all runs.
"""

import hashlib
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from tqdm import tqdm

from ranker import config as settings, plugins
from ranker.errors import Parser, UserError, exit_status, nearest
from ranker.files import write_text, writing
from ranker.evaluation.report import BASE, markdown

ROOT = Path(__file__).resolve().parent.parent
UNTRAINED = {"base, direct": "dranker", "base, iterative": "iranker"}  # row -> the config whose untrained base it shows
TRAINED = {"DRanker (GRPO)": "dranker", "IRanker (GRPO)": "iranker", "IRanker (PPO)": "iranker_ppo",
           "IRanker on-policy": "iranker_on_policy"}  # row -> the config whose trained runs it shows
PAPERS = ("iranker", "dranker", "rank_r1", "reasonrank", "erank", "gr2", "rankgpt", "first", "coranking", "latro",
          "selm", "aor", "rarl", "omni_thinker", "orderchain", "prilora", "zooter")
PROMPTED = {"rankgpt", "aor"}  # configs of which nothing is trained


def main() -> None:
    parser = Parser(prog="python -m ranker.ablation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, ... of every config")
    parser.add_argument("--dir", type=Path, default=Path("runs/ablation"), help="where the runs and the table go")
    parser.add_argument("--jobs", type=int, default=1,
                        help="scripts at a time, which share the CPU cores; 1 for a single GPU")
    parser.add_argument("--limit", type=int, help="at most this many test queries per task")
    parser.add_argument("--configs", help="names of configs/, joined by commas, to compare instead, or `papers`")
    args, overrides = parser.parse_known_args()
    if min(args.seeds, args.jobs, args.limit or 1) < 1:
        raise UserError("--seeds, --jobs and --limit must be at least 1")
    configs = (list(PAPERS) if args.configs == "papers" else args.configs.split(",") if args.configs else
               list(dict.fromkeys([*UNTRAINED.values(), *TRAINED.values()])))
    known = [path.stem for path in (ROOT / "configs").glob("*.yaml")]
    for config in configs:
        if config not in known:
            raise UserError(f"--configs: there is no configs/{config}.yaml{nearest(config, known)}")
    runs = {config: [args.dir / f"{config}-{seed}" for seed in range(args.seeds if config not in PROMPTED else 0)]
            for config in configs}
    training = [(run.with_suffix(".log"), "train.py", ROOT / "configs" / f"{config}.yaml", f"--run.seed={seed}",
                 f"--run.dir={run}", *overrides) for config in configs for seed, run in enumerate(runs[config])]
    run_scripts("train", training, args.jobs)
    outs = {config: args.dir / f"eval-{config}-{args.limit or 'all'}-{digest(found)}" for config, found in runs.items()}
    evaluations = [(out.with_suffix(".log"), "evaluate.py",
                    *([word for run in runs[config] for word in ("--ckpt", run / "best")]
                      or ["--config", ROOT / "configs" / f"{config}.yaml"]), "--out", out,
                    *(["--limit", args.limit] if args.limit else [])) for config, out in outs.items()
                   if not (out / "results.json").is_file()]
    run_scripts("evaluate", evaluations, args.jobs)
    results = {config: json.loads((out / "results.json").read_text(encoding="utf-8")) for config, out in outs.items()}
    table = f"{methods_table(results)}\n\n{ideas(configs)}" if args.configs else ablation_table(results)
    write_text(args.dir / "table.md", table + "\n")
    print(f"On the test queries, mean ± standard deviation over {args.seeds} seed(s):\n\n{table}\n\n"
          f"written to {args.dir}/table.md")


def digest(runs: Sequence[Path]) -> str:
    """Return a digest of the best adapters of runs, so that no evaluation of other ones is taken for theirs."""
    found = hashlib.sha256()
    for run in runs:
        for path in sorted((run / "best").glob("adapter_model*")):
            found.update(path.read_bytes())
    return found.hexdigest()[:8]


def run_scripts(name: str, calls: list[tuple], jobs: int) -> None:
    """Run calls (log file, script, arguments ...), `jobs` at a time, with a progress bar called `name`.

    Raise UserError with the last line of a script that fails; calls that run then end first, and no other begins.
    """
    if not (ROOT / "train.py").is_file():
        raise UserError("this command runs train.py and evaluate.py, which the installed package lacks; run it in the"
                        " repository")
    threads = str(max((os.cpu_count() or 1) // jobs, 1))  # more threads than cores would slow each other down
    with tqdm(total=len(calls), desc=name, unit="run", dynamic_ncols=True) as bar, ThreadPoolExecutor(jobs) as pool:
        def run(call: tuple) -> None:
            log, script, *arguments = call
            bar.set_postfix_str(f"see {log}")
            with writing(log):
                log.parent.mkdir(parents=True, exist_ok=True)
                file = log.open("w", encoding="utf-8")
            with file:
                status = subprocess.run([sys.executable, ROOT / script, *map(str, arguments)], stdout=file,
                                        stderr=subprocess.STDOUT,
                                        env=os.environ | {"OMP_NUM_THREADS": threads}).returncode
            if status:
                last = (log.read_text(encoding="utf-8").split("\n")[-2:] or [""])[0]
                raise UserError(f"{script} ended with status {status}, see {log}: {last}")
            bar.update()
        try:
            for outcome in as_completed([pool.submit(run, call) for call in calls]):
                outcome.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # calls that run may end, no other begins
            raise


def ablation_table(results: dict[str, dict]) -> str:
    """Return a Markdown table of MRR: a row per method, a column per scenario.

    `results`: config -> the results.json that evaluate.py wrote about the runs of its seeds.
    """
    rows = {name: [results[config]["rows"][BASE]] for name, config in UNTRAINED.items()}
    rows |= {name: trained_rows(results[config]) for name, config in TRAINED.items()}
    scenarios = list(next(iter(rows.values()))[0]["repaired"]["scenarios"])
    lines = []
    for name, found in rows.items():
        columns = [[row["repaired"]["scenarios"][s]["MRR"] for row in found] for s in scenarios]
        columns.append([row["repaired"]["mean"]["MRR"] for row in found])
        lines.append([name, *map(mean_and_deviation, columns)])
    return markdown(["MRR", *scenarios, "mean"], lines)


def methods_table(results: dict[str, dict]) -> str:
    """Return a Markdown table with a row per config: its cost, and its quality before and after training.

    Cost is that of a trained run on the first scenario (in the built-in world: 20 candidates); quality is the mean over
    the tasks. `results` is as for `ablation_table`.
    """
    lines = []
    for config, result in results.items():
        base = result["rows"][BASE]
        trained = trained_rows(result) or [base]  # nothing is trained
        cost = [next(iter(row["cost"].values())) for row in trained]
        numbers = [f"{statistics.mean(c[name] for c in cost):.{digits}f}"
                   for name, digits in (("calls", 1), ("prompt_tokens", 0), ("completion_tokens", 0))]
        for metric in ("MRR", "nDCG@10"):
            numbers += [f"{base['repaired']['mean'][metric]:.3f}",
                        mean_and_deviation([row["repaired"]["mean"][metric] for row in trained])]
        lines.append([config, *numbers, mean_and_deviation([row["strict"]["mean"]["MRR"] for row in trained])])
    return markdown(["config", "calls", "tokens in", "tokens out", "MRR before", "after", "nDCG@10 before", "after",
                     "MRR after, strict"], lines)


def ideas(configs: Sequence[str]) -> str:
    """Return a Markdown list of what configs are, by the comment that begins each: its first sentence, the plug-ins
    that are not the usual ones, and the sentence behind "Ours:"."""
    lines = []
    for name in configs:
        path = ROOT / "configs" / f"{name}.yaml"
        comment = itertools.takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
        text = " ".join(line.lstrip("# ") for line in comment)
        idea, ours = re.match(r".*?\.(?= |$)", text), re.search(r"Ours: .*?\.(?= |$)", text)
        files = ", ".join(f"`{plugin}`" for plugin in made_of(settings.load(path, []), name in PROMPTED))
        lines.append(textwrap.fill(f"- `{name}`: {idea[0]} Of {files}. {ours[0] if ours else ''}", 120,
                                   subsequent_indent="  ", break_long_words=False, break_on_hyphens=False))
    return "\n".join(lines)


def made_of(config: settings.Config, prompted: bool) -> list[str]:
    """Return the plug-ins of a config but the default draw and adapter; of one that is not trained, its ranker."""
    if prompted:
        return [config.ranker["name"]]
    found = [config.ranker["name"], *(lesson["name"] for lesson in config.data.lessons), config.lora["name"]]
    for _, stage in settings.stages(config):
        rewards = stage.reward if plugins.load("objective", stage.objective).REWARDS else ()
        found += [stage.draw["name"], *rewards, stage.objective["name"]]
    usual = {plugins.default(kind) for kind in ("draw", "lora")}
    return [name for name in dict.fromkeys(found) if name not in usual]


def trained_rows(result: dict) -> list[dict]:
    """Return the rows of the checkpoints: the rows of models, which have strict metrics, without the base."""
    return [row for label, row in result["rows"].items() if row["strict"] and label != BASE]


def mean_and_deviation(values: list[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{deviation}"


if __name__ == "__main__":
    sys.exit(exit_status(main))
