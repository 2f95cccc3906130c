"""Amazon reviews -> a query per user: the newest products as the history, the last product, and 19 never reviewed.

The folder holds one category, in one of three layouts, gzipped or not:

    *reviews*.json, *_5.json or any *.json[l] + meta_*.json   the releases of 2014 and 2018: one object a line
    *.inter + *.item                                          RecBole: user_id, item_id, timestamp + item_id, title
    *.inter + *.item, with a column item_id_list              histories and the next item, as LLMRank prepared them

Decisions a reader could doubt:
- A review counts as a purchase whatever its rating.
- Products are keyed by id, since titles repeat.
- Metadata lines of 2014 are Python literals, not JSON; they are read as literals and never run.
- A title that is empty, or that is a script of the shop's page (these contain `getTime`, as the release of 2018 warns),
  counts as no title; users who need that product are dropped, as in `_next_item`.
- A given history is in the order of time. If the next item stands in it already, it is taken out of the history.
- `--lists` (a line per user: the user, a tab, ids between spaces) names the products that a user's negatives are drawn
  from, without the history and the next item; users without a line are dropped.
- The task is in the queries' ids, so that categories can be trained together.
"""

import argparse
import ast
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from ranker.data import Query
from ranker.errors import UserError
from ranker.prepare import _next_item
from ranker.prepare._next_item import Sequence
from ranker.prepare.movielens import table_events
from ranker.reading import clean, columns, find, header, json_lines, number, open_text

TASKS = ("rec-game", "rec-music", "rec-movie", "rank")


def arguments(parser: argparse.ArgumentParser) -> None:
    _next_item.arguments(parser)
    parser.add_argument("--task", choices=TASKS, required=True, help="the wording that fits the category")
    parser.add_argument("--lists", type=Path, help="a file of the products that each user's negatives are drawn from")


def prepare(args: argparse.Namespace, dropped: Counter) -> Iterator[Query]:
    """Yield a query per user. Raise UserError for missing or broken files."""
    sequences, items = layout(args.folder)
    lists = None if args.lists is None else candidate_lists(args.lists, items)
    titles = {item: title for item, title in items.items() if title}
    yield from _next_item.queries(f"amazon-{args.task.removeprefix('rec-')}", args.task, sequences, titles, args,
                                  dropped, lists)


def layout(folder: Path) -> tuple[list[Sequence], dict[str, str]]:
    """Return every user's products by time, and every product's title ("" for none), from any of the layouts."""
    inter, item = find(folder, "*.test.inter", "*.inter"), find(folder, "*.item")
    if inter and item:
        items = {key: title_of(raw) for _, (key, raw) in columns(item, "\t", ("item_id:token", "title:token_seq"))}
        if "item_id_list:token_seq" in header(inter, "\t"):
            return list(histories(inter)), items
        return _next_item.by_time(table_events(inter, "\t",
                                               ("user_id:token", "item_id:token", "timestamp:float"))), items
    patterns = [pattern + end for pattern in ("*reviews*", "*_5", "*") for end in (".json", ".jsonl")]
    reviews, meta = find(folder, *patterns, but="meta*"), find(folder, "meta*.json", "meta*.jsonl")
    if reviews and meta:
        items = {key: title_of(record.get("title")) for _, (key,), record in records(meta, "asin")}
        return _next_item.by_time(review_events(reviews)), items
    raise UserError(f"{folder} holds neither reviews (*.json or *.jsonl) with meta_*.json, "
                    "nor *.inter with *.item (.gz or not)")


def records(path: Path, *names: str) -> Iterator[tuple[str, list[str], dict]]:
    """Yield (file:line, the named texts, the whole object) for every line."""
    for line, record in json_lines(path, json_or_literal):
        for name in names:
            if not isinstance(record.get(name), str):
                raise UserError(f"{path}:{line}: no text in a field '{name}' (found: {', '.join(map(str, record))})")
        yield f"{path}:{line}", [record[name] for name in names], record


def json_or_literal(line: str) -> object:
    """Parse a line of either release; only the Python literals of 2014 quote their first key with an apostrophe."""
    return ast.literal_eval(line) if line.startswith("{'") else json.loads(line)


def review_events(path: Path) -> Iterator[tuple[str, str, float]]:
    """Yield (user, product, time) for every review."""
    for where, (user, item), record in records(path, "reviewerID", "asin"):
        if "unixReviewTime" not in record:
            raise UserError(f"{where}: no field 'unixReviewTime' (found: {', '.join(map(str, record))})")
        yield user, item, number(record["unixReviewTime"], where, "unixReviewTime")


def histories(path: Path) -> Iterator[Sequence]:
    """Yield (user, the history and the next item) for every row.

    Raise UserError for a second row of a user, which would be a second query of the same id.
    """
    first: dict[str, int] = {}
    for line, (user, history, target) in columns(path, "\t",
                                                 ("user_id:token", "item_id_list:token_seq", "item_id:token")):
        if first.setdefault(user, line) != line:
            raise UserError(f"{path}:{line}: user '{user}' stood in line {first[user]} already; "
                            "one row a user is expected")
        yield user, [*(item for item in dict.fromkeys(history.split()) if item != target), target]


def candidate_lists(path: Path, items: dict[str, str]) -> dict[str, list[str]]:
    """Return user -> the listed products, each once. Raise UserError for a product that the category does not have."""
    lists: dict[str, list[str]] = {}
    with open_text(path) as file:
        for line, text in enumerate(file, 1):
            if not text.strip():
                continue
            user, tab, listed = text.strip("\r\n").partition("\t")
            if not tab:
                raise UserError(f"{path}:{line}: expected a user, a tab, and ids between spaces")
            if user in lists:
                raise UserError(f"{path}:{line}: user '{user}' has a list already")
            lists[user] = list(dict.fromkeys(listed.split()))
            unknown = [item for item in lists[user] if item not in items]
            if unknown:
                raise UserError(f"{path}:{line}: item '{unknown[0]}' is not among the {len(items)} items of the folder")
    return lists


def title_of(raw: object) -> str:
    """Return a title that can be shown, or "" for no text, a script of the shop's page, or half a surrogate pair."""
    title = clean(raw) if isinstance(raw, str) else ""
    return "" if re.search(r"getTime|[\ud800-\udfff]", title) else title
