"""Compare two evaluations query by query: `python -m ranker.compare RESULTS RESULTS [--row NAME ...] [--metric NAME]`.

RESULTS is the folder that evaluate.py wrote, or the results.json in it. The last row of each (the last checkpoint) is
taken unless `--row` names another, once for both or once for each. Evaluations that differ in their queries, data,
candidate orders or relevance level are refused: their difference would say nothing about the rankers.
"""

import csv
import json
import sys
from pathlib import Path

from ranker import metrics
from ranker.evaluation import report, stats
from ranker.errors import Parser, UserError, exit_status, nearest


def main() -> None:
    parser = Parser(prog="python -m ranker.compare", description=__doc__)
    parser.add_argument("results", type=Path, nargs=2)
    parser.add_argument("--row", action="append", default=[], help="the row to take (default: the last)")
    parser.add_argument("--metric", help="default: the first of the evaluation")
    args = parser.parse_args()
    if len(args.row) > 2:
        raise UserError("--row names one row for both evaluations, or one for each")
    folders = [path.parent if path.is_file() else path for path in args.results]
    one, two = (load(folder) for folder in folders)
    for what, known in {"data": data_of, "queries": lambda r: r.get("queries"),
                        "candidate orders": lambda r: (r.get("orders"), r["config"]["run"]["seed"]),
                        "relevance level": lambda r: r["config"]["eval"]["relevance_level"]}.items():
        if known(one) != known(two):
            raise UserError(f"{folders[0]} and {folders[1]} differ in their {what} ({shown(known(one))} and "
                            f"{shown(known(two))}); evaluate both alike")
    metric = metrics.canonical(args.metric) if args.metric else one["metrics"][0]
    names = [args.row[i % len(args.row)] if args.row else list(r["rows"])[-1] for i, r in enumerate((one, two))]
    values = [per_query(folder, results, name, metric) for folder, results, name in zip(folders, (one, two), names)]
    if values[0].keys() != values[1].keys():
        raise UserError(f"{folders[0]} and {folders[1]} ranked different queries, "
                        f"such as '{min(values[0].keys() ^ values[1].keys())}'")
    found = stats.compare([values[1][q] - values[0][q] for q in values[0]])
    means = [sum(v.values()) / len(v) for v in values]
    print(f"{metric}, {found['queries']} queries\n")
    print(report.markdown(["", metric],
                          [[f"{folder}: {name}", f"{mean:.4f}"] for folder, name, mean in zip(folders, names, means)]))
    print(f"\ngain {found['gain']:+.4f}, 95% interval {found['low']:+.4f} to {found['high']:+.4f}, "
          f"p = {found['p']:.4f} (paired randomization); "
          f"better {found['wins']}, same {found['ties']}, worse {found['losses']}")


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
