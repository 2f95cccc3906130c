"""The command `python -m ranker.prepare NAME ... --out FILE [--seed N]`, where NAME is a file in this folder.

The file has two functions: `arguments(parser)` adds the arguments that the data set needs, and `prepare(args, dropped)`
is a generator of queries, which counts the queries that it leaves out in `dropped` (reason -> count).
"""

import argparse
import logging
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from tqdm import tqdm

from ranker.evaluation.baselines import context_text
from ranker.data import Query, iter_queries, write_queries
from ranker.errors import Parser, UserError, exit_status, nearest
from ranker.files import sha256, writing
from ranker.prepare import requests
from ranker.prepare._groups import finder, merged
from ranker.prepare._options import has_equal_texts
from ranker.sources import HELD_OUT, in_split, split_of

FILES = {path.stem.removesuffix("_file").replace("_", "-"): path.stem  # name -> module; no two modules share a name
         for path in sorted(Path(__file__).parent.glob("*.py")) if not path.stem.startswith("_")}


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in ("", "-h", "--help"):
        raise UserError(f"name a data set: python -m ranker.prepare NAME ... (known: {', '.join(FILES)}); "
                        "NAME --help says what it needs")
    if name not in FILES:
        raise UserError(f"unknown data set '{name}'{nearest(name, FILES)}")
    module = import_module(f"ranker.prepare.{FILES[name]}")
    parser = Parser(prog=f"python -m ranker.prepare {name}", description=module.__doc__)
    module.arguments(parser)
    parser.add_argument("--out", type=Path, required=True, help="the JSON lines file to write")
    parser.add_argument("--seed", type=int, default=0, help="of sampled candidates and their order")
    parser.add_argument("--requests_out", type=Path,
                        help="also write the queries as rank_llm's requests, for other rerankers")
    args = parser.parse_args(sys.argv[2:])
    dropped, counts, contexts = Counter(), Counter(), {}
    ungrouped = args.out.with_name(f"{args.out.name}.ungrouped")
    try:
        # Queries are written twice: their groups are known only at the end, since a late context may join two groups.
        write_queries(ungrouped, noted(module.prepare(args, dropped), contexts, has_windows(args)))
        if not contexts:
            raise UserError("no query came out of it; dropped: "
                            f"{', '.join(f'{n} {reason}' for reason, n in dropped.items()) or 'nothing'}")
        group = final_groups(contexts, args)
        queries = tqdm(iter_queries(ungrouped), desc="splits", unit="query")
        if has_windows(args):
            queries = for_training(queries, group, contexts, dropped)
        write_queries(args.out, counted(queries, group, counts))
    finally:
        with writing(ungrouped):
            ungrouped.unlink(missing_ok=True)
    if args.requests_out:
        requests.write(args.requests_out, iter_queries(args.out))
    print(f"{args.out}: {counts['queries']} queries, {counts['candidates']} candidates, "
          f"{counts['positives']} positives, sha256 {sha256(args.out)[:16]}")
    print(f"  splits by {'time' if by_time(args) else 'group'}: {counts['train']} training, {counts['validation']} "
          f"validation, {counts['test']} test; {counts['joined']} queries joined the group of one with nearly the same "
          "context")
    if counts["equal"]:
        print(f"  {counts['equal']} queries show two candidates of equal text"
              + (" (--distinct avoids that)" if getattr(args, "distinct", None) is False else ""))
    for reason, count in dropped.items():
        print(f"  dropped {count}: {reason}")
    print(f"next: python evaluate.py --data {args.out} --baselines      what a model must beat, without one\n"
          f"      python train.py configs/iranker-3b.yaml --model.name=FOLDER --data.train={args.out} "
          f"--run.dir=runs/{args.out.stem}\n"
          "      FOLDER holds a pretrained instruct model; the built-in policy (model.name=tiny) only knows its "
          "built-in world")


def by_time(args: argparse.Namespace) -> bool:
    """Tell whether the queries already stand in splits by time."""
    return getattr(args, "split", "users") == "time"


def has_windows(args: argparse.Namespace) -> bool:
    """Tell whether users give several queries, of which only training may see more than the last (the first given)."""
    return getattr(args, "windows", 1) != 1 and not by_time(args)


def noted(queries: Iterable[Query], contexts: dict[str, list[str]], once: bool) -> Iterator[Query]:
    """Yield the queries as they are, and note their `contexts` by group (`once`: that of a group's first query).

    Raise UserError for a query that could not be read back, which would only be known by a line of a temporary file.
    """
    ids: set[str] = set()
    for query in queries:
        if query.id in ids:
            raise UserError(f"two queries have the id '{query.id}'")
        for name in (query.id, *query.ids):
            if name.split() != [name]:
                raise UserError(f"query '{query.id}': the id {name!r} is empty or holds spaces")
        if len(set(query.ids)) < len(query.ids):
            raise UserError(f"query '{query.id}': two of its candidates have one id")
        if not all(0 <= value <= 1e9 for value in query.relevance):
            raise UserError(f"query '{query.id}': a relevance is not from 0 to 1e9")
        ids.add(query.id)
        found = contexts.setdefault(query.group or query.id, [])
        if not once or not found:
            found.append(context_text(query))
        yield query


def final_groups(contexts: dict[str, list[str]], args: argparse.Namespace) -> dict[str, str]:
    """Return group -> its final group, with those joined that have near-duplicate contexts.

    The split is written into the group where it must not depend on `data.seed` (see `sources.split_of`).
    """
    if by_time(args):  # every query already names its split, and the histories of a user are near-duplicates
        return {name: name for name in contexts}
    given, texts = zip(*((name, text) for name, found in contexts.items() for text in found))
    final, share = dict(zip(given, merged(given, texts))), getattr(args, "held_out", None)
    if has_windows(args) or share:
        final = {name: in_split(split_of(leader, 0, test=share or HELD_OUT), leader) for name, leader in final.items()}
    return final


def for_training(queries: Iterable[Query], group: dict[str, str], contexts: dict[str, list[str]],
                 dropped: Counter) -> Iterator[Query]:
    """Yield the first query of every given group; the others only where training sees them and nothing leaks."""
    first: set[str] = set()
    is_held_out = finder(text for name, found in contexts.items() if split_of(group[name], 0) != "train"
                         for text in found)
    for query in queries:
        name = query.group or query.id
        if name not in first:
            first.add(name)
            yield query
        elif split_of(group[name], 0) != "train":
            dropped["earlier items of users who are not trained on"] += 1
        elif is_held_out(context_text(query)):
            dropped["earlier items whose history is nearly one that is held out"] += 1
        else:
            yield query


def counted(queries: Iterable[Query], group: dict[str, str], counts: Counter) -> Iterator[Query]:
    """Yield the queries in their final groups (`group`: given group -> final one), and count them in `counts`."""
    for query in queries:
        given = query.group or query.id
        name = group[given]
        counts.update({"queries": 1, "candidates": len(query.ids), "positives": len(query.positives),
                       split_of(name, 0): 1, "joined": int(given not in (name, name.partition("::")[2])),
                       "equal": int(has_equal_texts(query))})
        yield replace(query, group="" if name == query.id else name)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    sys.exit(exit_status(main))
