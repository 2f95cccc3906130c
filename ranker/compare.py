"""Compare evaluations query by query: `python -m ranker.compare RESULTS RESULTS [RESULTS ...] [--row NAME ...]`.

RESULTS is the folder that evaluate.py wrote, or the results.json in it. The first is compared with the second, or with
the mean of all others, query by query, such as the seeds of one config. The last row of each (the last checkpoint) is
taken unless `--row` names another, once for all or once for each; the same folder may stand there several times.
Evaluations that differ in their queries, data, candidate orders or relevance level are refused: their difference would
say nothing about the rankers.
"""

import csv
import json
import sys
from pathlib import Path
from statistics import fmean, stdev

from ranker import metrics
from ranker.evaluation import report, stats
from ranker.errors import Parser, UserError, exit_status, nearest


def main() -> None:
    parser = Parser(prog="python -m ranker.compare", description=__doc__)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--row", action="append", default=[], help="the row to take (default: the last)")
    parser.add_argument("--metric", help="default: the first of the evaluation")
    args = parser.parse_args()
    folders = [path.parent if path.is_file() else path for path in args.results]
    if len(folders) < 2:
        raise UserError("name two evaluations, or more: the first is compared with the mean of all others")
    if len(args.row) not in (0, 1, len(folders)):
        raise UserError(f"--row names one row for all {len(folders)} evaluations, or one for each; {len(args.row)} are"
                        " named")
    found = [load(folder) for folder in folders]
    for folder, results in zip(folders[1:], found[1:]):
        refuse_unlike(folders[0], found[0], folder, results)
    metric = metrics.canonical(args.metric) if args.metric else found[0]["metrics"][0]
    names = [args.row[i % len(args.row)] if args.row else list(results["rows"])[-1] for i, results in enumerate(found)]
    values = [per_query(*row, metric) for row in zip(folders, found, names)]
    for folder, other in zip(folders, values):
        if other.keys() != values[0].keys():
            raise UserError(f"{folders[0]} and {folder} ranked different queries, "
                            f"such as '{min(other.keys() ^ values[0].keys())}'")
    first, *others = values
    means = [fmean(v.values()) for v in values]
    rows = [[f"{folder}: {name}", f"{mean:.4f}"] for folder, name, mean in zip(folders, names, means)]
    if len(others) > 1:
        rows.append([f"mean of the last {len(others)} (deviation {stdev(means[1:]):.4f})", f"{fmean(means[1:]):.4f}"])
    gains = stats.compare([fmean(other[q] for other in others) - first[q] for q in first])
    print(f"{metric}, {gains['queries']} queries\n\n{report.markdown(['', metric], rows)}\n\n"
          f"gain {gains['gain']:+.4f}, 95% interval {gains['low']:+.4f} to {gains['high']:+.4f}, "
          f"p = {gains['p']:.4f} (paired randomization); "
          f"better {gains['wins']}, same {gains['ties']}, worse {gains['losses']}")


def refuse_unlike(folder: Path, results: dict, other: Path, others: dict) -> None:
    """Raise UserError where two evaluations differ in what their difference would come from."""
    for what, known in {"data": data_of, "queries": lambda r: r.get("queries"),
                        "candidate orders": lambda r: (r.get("orders"), r["config"]["run"]["seed"]),
                        "relevance level": lambda r: r["config"]["eval"]["relevance_level"]}.items():
        if known(results) != known(others):
            raise UserError(f"{folder} and {other} differ in their {what} ({shown(known(results))} and "
                            f"{shown(known(others))}); evaluate both alike")


def load(folder: Path) -> dict:
    """Return the results.json of an evaluation. Raise UserError where it cannot be read or is of an older layout."""
    try:
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        results["rows"], results["metrics"], results["data"], results["config"]["eval"]["relevance_level"]
    except OSError as error:
        raise UserError(f"{folder}/results.json: {error.strerror}; evaluate.py writes it") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{folder}/results.json is not what evaluate.py writes now; evaluate again") from None
    return results


def data_of(results: dict) -> list[str]:
    """Return the checksums of an evaluation's data, which stay the same when a file is moved."""
    return sorted(results["data"].values())


def shown(value: object) -> str:
    """Return a value as an error line shows it, cut to 60 characters."""
    text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return text if len(text) < 60 else text[:57] + "..."


def per_query(folder: Path, results: dict, name: str, metric: str) -> dict[str, float]:
    """Return query id -> the value of a metric in a row. Raise UserError for a row or a metric that is not there."""
    if name not in results["rows"]:
        raise UserError(f"{folder} has no row '{name}'{nearest(name, results['rows'])}")
    if metric not in results["metrics"]:
        raise UserError(f"{folder} has no metric '{metric}'{nearest(metric, results['metrics'])}")
    try:
        with (folder / "per_query.csv").open(encoding="utf-8", newline="") as file:
            return {row["qid"]: float(row["value"]) for row in csv.DictReader(file)
                    if row["name"] == name and row["measure"] == metric}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}/per_query.csv cannot be read ({error})") from None


if __name__ == "__main__":
    sys.exit(exit_status(main))
