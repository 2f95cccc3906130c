"""Show a run or an evaluation as one HTML file: why each query was ranked as it was, and how training went.

    python -m ranker.show runs/iranker                        curves, completions, and all its evaluations
    python -m ranker.show runs/iranker/eval/test              one evaluation
    python -m ranker.show runs/A/eval/test runs/B/eval/test   two evaluations, a tab for each

The rows of an evaluation (the base, several checkpoints) stand side by side. The file holds everything and asks for
nothing over a network. It shows, for each query, the context, the candidates with
their relevance and places, and round by round who was named and why; where the best candidate was lost is marked. Texts
come from the data that was evaluated; where that is gone, ids stand in their place.
"""

import base64
import csv
import gzip
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from ranker import log, sources, trec_files, world
from ranker.data import Query
from ranker.errors import Parser, UserError, exit_status
from ranker.files import write_text

LARGEST = 10_000_000  # bytes of the file, before training completions are thinned out
CURVES = ("reward", "reward/task", "parse_rate", "truncated", "dead", "length", "entropy", "kl", "grad_norm")


def main() -> None:
    parser = Parser(prog="python -m ranker.show", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, help="a run folder, or folders of evaluations")
    parser.add_argument("--out", type=Path, help="the file to write (default: show.html in the first folder)")
    args = parser.parse_args()
    runs, evaluations = [], []
    for folder in args.folders:
        if (folder / "metrics.jsonl").is_file():
            runs.append(folder)
            evaluations += sorted(path.parent for path in folder.glob("eval/*/results.json"))
        elif (folder / "results.json").is_file():
            evaluations.append(folder)
        else:
            raise UserError(f"{folder} is neither a run folder (metrics.jsonl) nor an evaluation (results.json)")
    data = {"evaluations": [evaluation(folder) for folder in tqdm(evaluations, desc="evaluations", unit="folder")],
            "runs": [run(folder) for folder in runs]}
    out = args.out or args.folders[0] / "show.html"
    text = page(data)
    for every in (2, 4, 8, 16, 32):
        if len(text) <= LARGEST:
            break
        for one in data["runs"]:
            one["completions"], one["every"] = one["completions"][::2], every
        text = page(data)
    write_text(out, text)
    queries = sum(len(one["queries"]) for one in data["evaluations"])
    completions = sum(len(one["completions"]) for one in data["runs"])
    print(f"{out}: {queries} queries of {len(evaluations)} evaluations, {completions} completions of {len(runs)} runs,"
          f" {len(text) / 1e6:.1f} MB; open it in a browser")


def evaluation(folder: Path) -> dict:
    """Return what is shown of an evaluation."""
    try:
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        rows = list(results["rows"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}/results.json is damaged: {error}") from None
    records = [r for r in log.read(folder / "traces.jsonl") if r.get("order", 0) == 0]
    orders = {row: trec_files.read_run(path, "input") for row in rows
              if (path := folder / f"run.{row.replace(' ', '_').replace('/', '_')}.txt").is_file()}
    ids = list(dict.fromkeys([*(r["query"] for r in records), *(q for run in orders.values() for q in run)]))
    seed = results.get("config", {}).get("data", {}).get("seed", 0)
    known = texts(results.get("data", {}), set(ids), folder, seed)
    measured = measures(folder / "per_query.csv")
    asked: dict[tuple[str, str], list[dict]] = {}
    for record in records:
        asked.setdefault((record["query"], record["row"]), []).append(record)
    queries = []
    for name in ids:
        query = known.get(name)
        pool = list(query.ids) if query else list(dict.fromkeys(
            c for run in orders.values() for c in run.get(name, ())))
        place = {c: i for i, c in enumerate(pool)}
        queries.append({
            "id": name, "task": query.task if query else "",
            "context": (query.context if isinstance(query.context, str) else list(query.context)) if query else "",
            "candidates": [[c, query.texts[c] if query else "", query.rel[c] if query else None] for c in pool],
            "rows": {row: {"order": [place[c] for c in orders.get(row, {}).get(name, ()) if c in place],
                           "measures": measured.get((row, name), {}),
                           "asks": [ask(r, place) for r in asked.get((name, row), ())]}
                     for row in rows if row in orders or (name, row) in asked}})
    places = {name: row.get("by_place") for name, row in results["rows"].items()}
    several = any(row.get("spread_over_orders") for row in results["rows"].values())
    shown = [row for row in rows if any(row in query["rows"] for query in queries)]
    return {"name": str(folder), "head": results.get("head", ""), "places": places if several else {}, "rows": shown,
            "queries": queries}


def ask(record: dict, place: dict[str, int]) -> dict:
    """Return what is shown of an ask; candidates are numbers in the query's list."""
    out = set(record.get("out") or ())
    left = [place[c] for c in record["pool"] if c not in out and c in place]
    named = all(isinstance(v, str) and v in place for v in record["answer"])  # else numbers, such as a score
    found = {"decision": record["decision"], "left": left, "status": record["status"], "text": record["text"],
             "answer": [place[v] for v in record["answer"]] if named else record["answer"], "named": named}
    return found | {key: record[key] for key in ("role", "scores", "cut") if record.get(key)}


def texts(data: dict, wanted: set[str], folder: Path, seed: int) -> dict[str, Query]:
    """Return query id -> query, from the data that was evaluated, as far as it is still there."""
    found = {}
    for name in data:
        if name == "world":
            for identity in wanted:
                task, split, index = (identity.rsplit(".", 2) + ["", ""])[:3]
                if task in world.TASKS and split in world.SPLITS and index.isdigit():
                    found[identity] = world.query(task, split, int(index), seed)
        elif sources.MISSING in (data[name], now := sources.checksum(name)):
            logging.warning(f"{folder}: texts are not shown: {name} is not here (it was a pipe, or it was moved)")
        elif now != data[name]:
            logging.warning(f"{folder}: texts are not shown: {name} is another file than the one that was evaluated")
        else:
            try:
                found |= {q.id: q for q in sources.read_files([name]) if q.id in wanted}
            except UserError as error:
                logging.warning(f"{folder}: texts are not shown: {error}")
    return found


def measures(path: Path) -> dict[tuple[str, str], dict[str, float]]:
    """Return (row, query) -> measure -> value."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    if path.is_file():
        with path.open(encoding="utf-8", newline="") as file:
            for line in csv.DictReader(file):
                found.setdefault((line["name"], line["qid"]), {})[line["measure"]] = float(line["value"])
    return found


def run(folder: Path) -> dict:
    """Return what is shown of a training run: its curves and its completions."""
    curves: dict[str, list] = {name: [] for name in CURVES}
    validations = []
    for record in log.read(folder / "metrics.jsonl"):
        for name, points in curves.items():
            if record.get(name) is not None:
                points.append([record["step"], record[name]])
        if "validation" in record:
            validations.append([record["step"], record["validation"]])
    completions = [{key: record.get(key) for key in ("step", "query", "decision", "pool", "text", "status", "answer",
                                                     "reward", "advantage")}
                   for record in log.read(folder / "completions.jsonl")]
    return {"name": str(folder), "curves": {name: points for name, points in curves.items() if points},
            "validations": validations, "completions": completions, "every": 1}


def page(data: dict) -> str:
    """Return the HTML, the data packed inside."""
    packed = base64.b64encode(gzip.compress(json.dumps(log.finite(data), ensure_ascii=False).encode(), 9, mtime=0))
    template = (Path(__file__).parent / "show.html").read_text(encoding="utf-8")
    return template.replace("{{DATA}}", packed.decode())


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    sys.exit(exit_status(main))
