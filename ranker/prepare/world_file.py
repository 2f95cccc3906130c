"""Training queries of the built-in world as a file: to see a data file, or to have a teacher rank the queries."""

import argparse
from collections import Counter
from collections.abc import Iterator

from ranker import sources, world
from ranker.data import Query
from ranker.errors import UserError


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--queries", type=int, default=50, help="of each task")
    parser.add_argument("--tasks", nargs="+", default=[], help="only these")


def prepare(args: argparse.Namespace, dropped: Counter) -> Iterator[Query]:
    """Yield `--queries` training queries of each task. Raise UserError for an unknown task or a number below 1."""
    if args.queries < 1:
        raise UserError(f"--queries must be at least 1, got {args.queries}")
    for task in sources.world_tasks(args.tasks):
        for i in range(args.queries):
            yield world.query(task, "train", i, args.seed)
