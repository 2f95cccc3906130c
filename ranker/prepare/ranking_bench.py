"""Ranking-bench, the data of R1-Ranker's authors -> a query per row, its prompt taken apart into its pieces.

The format is read off the scripts in github.com/ulab-uiuc/R1-Ranker (commit 583c9e6: examples/data_preprocess and
eval); the data set itself was not looked at. It has two subsets, `direct` (full pools, on which the authors evaluate)
and `iterative` (pools of every size, drawn from the same queries), each with the splits train and test. A row has

    task_name    Rec-Movie, Rec-Music, Rec-Game, Router-Performance, Router-Balance, Router-Cost, Passage-5, -7 or -9
    problem      the prompt. Rec: "... in order: ['0. A', '1. B'] Now there are ..."; Router: lines "# NAME:
                 DESCRIPTION", then "Here is a query: Q and LLM condidates: ..." (sic); Passage: "Here is a query: Q
                 and candidate passages:", lines "passage 0: TEXT", then "Please think step by step ..."
    candidates   a list of titles, of LLM names, or of passage texts
    gt           the positive: a title, an LLM name, or the id of a passage as the problem spells it ("passage 3")

The published rows are assumed to follow these scripts; since the scripts disagree on names, passages may be listed by
id too. A row that does not fit ends the run with its number; nothing is guessed. Rows whose label is none of their
candidates, or with a candidate without a text, are dropped and counted.

Decisions a reader could doubt:
- Candidates are c1, c2, ... in the order listed. Where several have the positive's title, all are positive.
- An LLM's text is its name with its description in the problem, since a name alone does not tell the price.
- `direct` is the default: the authors split their iterative routing rows after drawing them, so that the queries of the
  test split have rows in train. Their routing labels keep only the first of tied LLMs, which can't be undone here.
"""

import argparse
import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from ranker.data import Candidate, Query
from ranker.errors import UserError, nearest
from ranker.reading import clean_title, json_lines

NAME = "ulab-ai/Ranking-bench"
FIELDS = {"task_name": str, "problem": str, "candidates": list, "gt": str}
TASKS = ("rec-movie", "rec-music", "rec-game", "router-performance", "router-balance", "router-cost",
         "passage-5", "passage-7", "passage-9")
Parts = tuple[str | tuple[str, ...], list[str], list[str]]  # the context, the names that `gt` may have, the texts


class Unusable(ValueError):
    """A row of the right form that gives no query, and the reason to count it by."""

    def __init__(self, message: str, reason: str):
        super().__init__(message)
        self.reason = reason


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", default=NAME,
                        help="a name on the hub, a folder, or a .jsonl[.gz] or .parquet file")
    parser.add_argument("--subset", default="direct", help="direct or iterative (not for a file)")
    parser.add_argument("--split", default="train", help="train or test (not for a file)")


def prepare(args: argparse.Namespace, dropped: Counter) -> Iterator[Query]:
    """Yield a query per row with a usable label and texts. Raise UserError for the first row that does not fit."""
    for where, name, row in rows(args):
        try:
            found = query(row, f"ranking-bench.{name}")
        except Unusable as error:
            dropped[error.reason] += 1
            continue
        except ValueError as error:
            raise UserError(f"{where}: {error}; the row has {', '.join(map(str, row))}, "
                            f"expected are {', '.join(FIELDS)}") from None
        yield found


def rows(args: argparse.Namespace) -> Iterator[tuple[str, str, dict]]:
    """Yield (where the row stands, a name for it, the row). Raise UserError where the data cannot be loaded.

    JSON lines need no further package; the hub, a folder and parquet need `datasets`.
    """
    path = Path(args.name)
    stem = "-".join(path.name.split(".")[0].split())
    a_file = path.exists() and not path.is_dir()
    if path.suffix in (".jsonl", ".json", ".gz") or a_file and path.suffix != ".parquet":
        yield from ((f"{path}:{line}", f"{stem}.{line}", row) for line, row in json_lines(path))
        return
    if path.suffix == ".parquet" and not path.is_file():
        raise UserError(f"there is no file {path}")
    try:
        from datasets import load_dataset
    except ImportError:
        raise UserError(f"{args.name} is read with a package that is not installed: pip install datasets") from None
    part, source = f"{args.subset}.{args.split}", {"path": args.name, "name": args.subset, "split": args.split}
    if path.suffix == ".parquet":
        part, source = stem, {"path": "parquet", "data_files": str(path), "split": "train"}
    try:
        for number, row in enumerate(load_dataset(**source, streaming=True), 1):
            yield f"{args.name} ({part}) row {number}", f"{part}.{number}", row
    except Exception as error:  # a fault of the package, the network or the file, and none of this program
        raise UserError(f"{args.name} ({part}) could not be loaded: {type(error).__name__}: {error}") from error


def query(row: dict, name: str) -> Query:
    """Return a row as a query. Raise ValueError for a row that does not fit."""
    for field, kind in FIELDS.items():
        if not isinstance(row.get(field), kind):
            raise ValueError(f"no {'text' if kind is str else 'list'} in '{field}'")
    problem, candidates, gold, task = row["problem"], row["candidates"], row["gt"].strip(), row["task_name"].lower()
    if task not in TASKS:
        raise ValueError(f"unknown task_name '{row['task_name']}'{nearest(task, TASKS)}")
    if len(candidates) < 2 or not all(isinstance(c, str) for c in candidates):
        raise ValueError("'candidates' must be at least two texts")
    "".join([problem, *candidates]).encode()  # raises ValueError for half a surrogate pair, which can't be written
    context, names, texts = KINDS[task.split("-")[0]](problem, [c.strip() for c in candidates])
    if gold not in names:
        raise Unusable(f"gt '{gold}' is none of the candidates", "rows whose gt is none of their candidates")
    if not all(texts):
        raise Unusable("a candidate has no text", "rows with a candidate without a text")
    return Query(name, task, context, tuple(Candidate(f"c{i}", text) for i, text in enumerate(texts, 1)),
                 tuple(float(n == gold) for n in names))


def recommendation(problem: str, candidates: list[str]) -> Parts:
    """Return the parts of a problem of recommendation: its context is the history."""
    (listed,) = parts(r"in order:\s*(\[.*\])\s*Now there are", problem,
                      "history between 'in order:' and 'Now there are'")
    return tuple(map(clean_title, numbered(listed))), candidates, [clean_title(title) for title in candidates]


def routing(problem: str, candidates: list[str]) -> Parts:
    """Return the parts of a problem of routing: its texts are names with their descriptions."""
    before, question = parts(r"(.*?)Here is a query:\s*(.*\S)\s*and LLM c[ao]ndidates:", problem,
                             "query before 'and LLM condidates:'")
    described = dict(re.findall(r"^[ \t]*# (.+?): (.*\S)", before, re.MULTILINE))
    return question, candidates, [f"{name}: {described[name]}" if name in described else name for name in candidates]


def passages(problem: str, candidates: list[str]) -> Parts:
    """Return the parts of a problem of passages: `gt` is one of the ids in the problem."""
    question, listed = parts(r"Here is a query:\s*(.*?)\s*and candidate passages:\s*(.*\S)\s*Please think step by step",
                             problem, "passages between 'and candidate passages:' and 'Please think step by step'")
    found = re.findall(r"^(passage \d+): ?(.*?)\s*(?=^passage \d+:|\Z)", listed, re.MULTILINE | re.DOTALL)
    ids, texts = [i for i, _ in found], [text for _, text in found]
    if sorted(" ".join(c.split()) for c in candidates) not in (sorted(ids),
                                                               sorted(" ".join(text.split()) for text in texts)):
        raise ValueError("the passages in its problem are not its candidates")
    return question, ids, texts


KINDS = {"rec": recommendation, "router": routing, "passage": passages}


def parts(pattern: str, problem: str, what: str) -> tuple[str, ...]:
    """Return the groups of `pattern` in a problem. Raise ValueError, which names `what` is missing, for no match."""
    found = re.search(pattern, problem, re.DOTALL)
    if not found:
        raise ValueError(f"its problem has no {what}")
    return found.groups()


def numbered(listed: str) -> list[str]:
    """Return the titles of ['0. A', "1. B's"], a Python list, or of ['0. A', '1. B's'], which only looks like one."""
    try:
        items = ast.literal_eval(listed)
    except (ValueError, SyntaxError):
        items = re.split(r"""['"], ['"](?=\d+\. )""", listed[2:-2])
    found = [re.fullmatch(r"(\d+)\. (.*)", str(item), re.DOTALL) for item in items]
    if not (found and all(found)) or [int(f[1]) - int(found[0][1]) for f in found] != list(range(len(found))):
        raise ValueError("its history is no list of numbered titles")
    return [f[2] for f in found]
