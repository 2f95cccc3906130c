"""A table of your own -> queries: a row is a query, a text to rank for it, and a label that says how good the text is.

Reads CSV (between commas or semicolons), TSV and parquet (needs pyarrow), gzipped or not:

    python -m ranker.prepare table FILE --query COL --text COL --label COL [--id COL] --out FILE.jsonl

Rows with the same query are one query, wherever they stand; with `--query_id` rows with the same id are. A label is a
number from 0, a word such as true or no, or a word of your own (`--grades Exact=3,Partial=1`); below 0 it counts as 0.

Decisions a reader could doubt:
- Candidates are shuffled, since many tables are sorted by label; `--keep_order` is for the order of a search. Without
  `--id` they are `p1`, `p2`, ... in the order shown, so that the id tells nothing.
- Rows without a query, a text or a usable label are dropped and counted, as are repetitions of a candidate within a
  query: the first row counts. So are queries with fewer than two candidates, or without a label above 0.
- A field between tabs may stand in quotes only as a whole, with the quotes inside it doubled, as spreadsheets write it.
"""

import argparse
import codecs
import random
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from tqdm import tqdm

from ranker.data import Candidate, Query
from ranker.errors import UserError
from ranker.prepare import _options
from ranker.reading import clean, finite, parquet, place, rows, short_ids, usable
from ranker.templates import wording

WORDS = {"true": 1.0, "yes": 1.0, "false": 0.0, "no": 0.0}


def grades(text: str) -> dict[str, float]:
    """Read `Exact=3,Partial=1` as word (in lower case) -> label. Raise ValueError for other texts."""
    return {word.strip().casefold(): float(value) for word, value in (pair.rsplit("=", 1) for pair in text.split(","))}


def encoding(text: str) -> str:
    """Return the name of an encoding. Raise ValueError for an unknown one."""
    try:
        return codecs.lookup(text).name
    except LookupError:
        raise ValueError(f"unknown encoding {text}") from None


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="a CSV, TSV or parquet file")
    parser.add_argument("--query", required=True, metavar="COL", help="the column of the query's text")
    parser.add_argument("--text", required=True, metavar="COL", help="the column of the text to rank")
    parser.add_argument("--label", required=True, metavar="COL", help="the column of the label, better is higher")
    parser.add_argument("--id", metavar="COL", help="the column of the text's id (default: p1, p2, ...)")
    parser.add_argument("--query_id", metavar="COL", help="the column of the query's id (default: FILE.1, FILE.2, ...)")
    parser.add_argument("--grades", type=grades, default={}, metavar="WORD=NUMBER,...", help="labels that are words")
    parser.add_argument("--task", default="rank", help="the wording, from prompts/tasks.yaml")
    parser.add_argument("--keep_order", action="store_true", help="do not shuffle the candidates of a query")
    parser.add_argument("--encoding", type=encoding, help="of a file that is not UTF-8, such as cp1251 or gb18030")
    _options.add_distinct(parser, "of equal ones the best label stays")


def prepare(args: argparse.Namespace, dropped: Counter) -> Iterator[Query]:
    """Yield a query per query of the table. Raise UserError for a broken table or a column that is not there."""
    wording(args.task)
    found: dict[str, dict[str, tuple[str, float]]] = {}  # query -> key of a candidate -> its text and label
    contexts: dict[str, str] = {}
    unread = Counter()
    for where, (query, text, label, key, name) in tqdm(table(args), desc="rows", unit="row"):
        value = label_of(label, args.grades)
        if not usable(query) or not filled(name):
            dropped["rows without a query"] += 1
        elif not usable(text) or not filled(key):
            dropped["rows without a text or its id"] += 1
        elif value is None:
            unread[str(label)] += 1
        else:
            query, text = clean(query), clean(text)
            name = query if name is None else str(name)
            if contexts.setdefault(name, query) != query:
                raise UserError(f"{where}: the query '{name}' had another text in an earlier row")
            first = found.setdefault(name, {}).setdefault(text if key is None else str(key), made := (text, value))
            if first is not made:
                dropped[f"rows that repeat a candidate{'' if first == made else ' with another text or label'}"] += 1
    if unread:
        seen = ", ".join(repr(label) for label, _ in unread.most_common(3))
        dropped[f"rows without a usable label ({seen}; --grades gives words a number)"] += unread.total()
    stem = "_".join(args.file.name.split(".")[0].split())
    ids = ({name: f"{stem}.{i}" for i, name in enumerate(found, 1)} if args.query_id is None
           else short_ids(args.file, found))
    keys = short_ids(args.file, dict.fromkeys(key for texts in found.values() for key in texts) if args.id else ())
    for name, texts in found.items():
        shown = list(texts.items())
        if not args.keep_order:
            random.Random(f"{args.seed}/table/{ids[name]}").shuffle(shown)
        if len(shown) < 2:
            dropped["queries with fewer than two candidates"] += 1
        elif max(label for _, (_, label) in shown) <= 0:
            dropped["queries without a label above 0"] += 1
        else:
            made = Query(ids[name], args.task, contexts[name],
                         tuple(Candidate(keys.get(key, f"p{i}"), text) for i, (key, (text, _)) in enumerate(shown, 1)),
                         tuple(label for _, (_, label) in shown))
            yield from _options.pools([made], args.distinct, dropped)


def table(args: argparse.Namespace) -> Iterator[tuple[str, list[object]]]:
    """Yield (where a row stands, its query, text, label, id and query id, None for those without a column)."""
    if args.file.suffix == ".parquet":
        records = parquet(args.file)
        where, first = next(records, ("", {}))
        header = list(first)
        lines = ((where, list(row.values())) for where, row in chain([(where, first)], records))
    else:
        numbered = rows(args.file, args.encoding, quoted_tabs=True)
        _, header = next(numbered, (1, []))
        lines = ((f"{args.file}:{line}", row) for line, row in numbered)
    if header and header[0].startswith("{"):
        raise UserError(f"{args.file}:1: JSON lines, not a table; train.py and evaluate.py read them as they are")
    names = {option: getattr(args, option) for option in ("query", "text", "label", "id", "query_id")}
    places = [None if column is None else place(header, column, f"{args.file}:1", option=f"--{option} ")
              for option, column in names.items()]
    for where, row in lines:
        yield where, [None if i is None else row[i] for i in places]


def label_of(raw: object, grades: dict[str, float]) -> float | None:
    """Return the label that a cell holds, at least 0; None for no label."""
    word = str(raw).strip().casefold()
    value = next((known[word] for known in (grades, WORDS) if word in known), finite(raw))
    return None if value is None or value > 1e9 else max(value, 0.0)


def filled(key: object) -> bool:
    """Tell whether a cell holds an id; None stands for no such column."""
    return key is None or bool(str(key).strip())
