"""The command `python -m ranker.prepare NAME ... --out FILE [--seed N]`, where NAME is a file in this folder.

The file has two functions: `arguments(parser)` adds the arguments that the data set needs, and `prepare(args, dropped)`
is a generator of queries, which counts the queries that it leaves out in `dropped` (reason -> count).
"""

import logging
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from ranker.evaluation.baselines import context_text
from ranker.data import Query, iter_queries, write_queries
from ranker.errors import Parser, UserError, exit_status, nearest
from ranker.files import sha256, writing
from ranker.prepare import requests
from ranker.prepare._groups import merged
from ranker.sources import split_of

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
    dropped, counts, seen = Counter(), Counter(), {}
    ungrouped = args.out.with_name(f"{args.out.name}.ungrouped")
    try:
        # Queries are written twice: their groups are known only at the end, since a late context may join two groups.
        write_queries(ungrouped, noted(module.prepare(args, dropped), seen))
        if not seen:
            raise UserError("no query came out of it; dropped: "
                            f"{', '.join(f'{n} {reason}' for reason, n in dropped.items()) or 'nothing'}")
        group = dict(zip(seen, merged(*zip(*seen.values()))))
        write_queries(args.out, counted(iter_queries(ungrouped), group, counts))
    finally:
        with writing(ungrouped):
            ungrouped.unlink(missing_ok=True)
    if args.requests_out:
        requests.write(args.requests_out, iter_queries(args.out))
    print(f"{args.out}: {counts['queries']} queries, {counts['candidates']} candidates, "
          f"{counts['positives']} positives, sha256 {sha256(args.out)[:16]}")
    print(f"  splits by group: {counts['train']} training, {counts['validation']} validation, {counts['test']} test; "
          f"{counts['joined']} queries joined the group of one with nearly the same context")
    for reason, count in dropped.items():
        print(f"  dropped {count}: {reason}")
    print(f"next: python evaluate.py --data {args.out} --baselines      what a model must beat, without one\n"
          f"      python train.py configs/iranker-3b.yaml --model.name=FOLDER --data.train={args.out} "
          f"--run.dir=runs/{args.out.stem}\n"
          "      FOLDER holds a pretrained instruct model; the built-in policy (model.name=tiny) only knows its "
          "built-in world")


def noted(queries: Iterable[Query], seen: dict[str, tuple[str, str]]) -> Iterator[Query]:
    """Yield the queries as they are, and note the group and the context of each in `seen` (query id -> both)."""
    for query in queries:
        seen[query.id] = (query.group or query.id, context_text(query))
        yield query


def counted(queries: Iterable[Query], group: dict[str, str], counts: Counter) -> Iterator[Query]:
    """Yield the queries in their final groups (`group`: query id -> group), and count them in `counts`."""
    for query in queries:
        name = group[query.id]
        counts.update({"queries": 1, "candidates": len(query.ids), "positives": len(query.positives),
                       split_of(name, 0): 1, "joined": int(name != (query.group or query.id))})
        yield replace(query, group="" if name == query.id else name)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    sys.exit(exit_status(main))
