"""Amazon reviews -> a query per user: the newest products as the history, the last product, and 19 never reviewed.

The folder holds one category, in one of three layouts, gzipped or not:

    *reviews*.json, *_5.json or any *.json[l] + meta_*.json   the releases of 2014 and 2018: one object a line
    *.inter + *.item                                          RecBole: user_id, item_id, timestamp + item_id, title
    *.inter + *.item, with a column item_id_list              histories and the next item, as LLMRank prepared them

The release of 2023 has other names: --columns reviewerID=user_id,asin=parent_asin,unixReviewTime=timestamp

Decisions a reader could doubt:
- A review counts as a purchase whatever its rating.
- Products are keyed by id, since titles repeat.
- Metadata lines of 2014 are Python literals, not JSON; they are read as literals and never run.
- A title that is empty, or that is a script of the shop's page (these contain `getTime`, as the release of 2018 warns),
  counts as no title; the product is left out of histories and pools, as in `_next_item`.
- A given history is in the order of time. If the next item stands in it already, it is taken out of the history.
- `--lists` names the products that a user's negatives are drawn from, without the user's own; users without a line are
  dropped.
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
from ranker.prepare import _next_item, _options
from ranker.prepare._next_item import User
from ranker.prepare.movielens import table_events
from ranker.reading import bare, clean_title, columns, field, find, json_lines, number, rows

TASKS = ("rec-game", "rec-music", "rec-movie", "rank")
TITLE = ("title", "item_name", "name")


def arguments(parser: argparse.ArgumentParser) -> None:
    _next_item.arguments(parser)
    parser.add_argument("--task", choices=TASKS, required=True, help="the wording that fits the category")
    _options.add_columns(parser, "reviewerID", "asin", "unixReviewTime", "user_id", "item_id", "timestamp",
                         "item_id_list", "title")


def prepare(args: argparse.Namespace, dropped: Counter) -> Iterator[Query]:
    """Yield the queries of all users. Raise UserError for missing or broken files."""
    users, items = layout(args.folder, args.columns, dropped)
    yield from _next_item.queries(f"amazon-{args.task.removeprefix('rec-')}", args.task, users, items, args, dropped)


def layout(folder: Path, called: dict[str, str], dropped: Counter) -> tuple[list[User], dict[str, str]]:
    """Return every user's products by time, and every product's title ("" for none), from any of the layouts."""
    inter, item = find(folder, "*.test.inter", "*.inter"), find(folder, "*.item")
    if inter and item:
        items = {key: title_of(raw) for _, (key, raw) in columns(item, ("item_id", TITLE), called)}
        found = next(rows(inter), (1, []))[1]
        if called.get("item_id_list", "item_id_list") in {*found, *map(bare, found)}:
            return list(histories(inter, called)), items
        return _next_item.by_time(table_events(inter, ("user_id", "item_id", "timestamp"), called), dropped), items
    patterns = [pattern + end for pattern in ("*reviews*", "*_5", "*") for end in (".json", ".jsonl")]
    reviews, meta = find(folder, *patterns, but="meta*"), find(folder, "meta*.json", "meta*.jsonl")
    if reviews and meta:
        items = {key: title_of(record.get(called.get("title", "title")))
                 for _, (key,), record in records(meta, called, "asin")}
        return _next_item.by_time(review_events(reviews, called), dropped), items
    raise UserError(f"{folder} holds neither reviews (*.json or *.jsonl) with meta_*.json, "
                    "nor *.inter with *.item (.gz or not)")


def records(path: Path, called: dict[str, str], *names: str) -> Iterator[tuple[str, list[str], dict]]:
    """Yield (file:line, the named texts, the whole object) for every line."""
    for line, record in json_lines(path, json_or_literal):
        where = f"{path}:{line}"
        found = [field(record, name, where, called) for name in names]
        for name, value in zip(names, found):
            if not isinstance(value, str):
                raise UserError(f"{where}: no text in the field '{called.get(name, name)}'")
        yield where, found, record


def json_or_literal(line: str) -> object:
    """Parse a line of either release; only the Python literals of 2014 quote their first key with an apostrophe."""
    return ast.literal_eval(line) if line.startswith("{'") else json.loads(line)


def review_events(path: Path, called: dict[str, str]) -> Iterator[tuple[str, str, float]]:
    """Yield (user, product, time) for every review."""
    for where, (user, item), record in records(path, called, "reviewerID", "asin"):
        yield user, item, number(field(record, "unixReviewTime", where, called), where, "unixReviewTime")


def histories(path: Path, called: dict[str, str]) -> Iterator[User]:
    """Yield every row's user, with the history and the next item.

    Raise UserError for a second row of a user, which would be a second query of the same id.
    """
    first: dict[str, int] = {}
    for line, (user, history, target) in columns(path, ("user_id", "item_id_list", "item_id"), called):
        if first.setdefault(user, line) != line:
            raise UserError(f"{path}:{line}: user '{user}' stood in line {first[user]} already; "
                            "one row a user is expected")
        yield User(user, [*(item for item in dict.fromkeys(history.split()) if item != target), target])


def title_of(raw: object) -> str:
    """Return a title that can be shown, or "" for no text, a script of the shop's page, or half a surrogate pair."""
    title = clean_title(raw) if isinstance(raw, str) else ""
    return "" if re.search(r"getTime|[\ud800-\udfff]", title) else title
