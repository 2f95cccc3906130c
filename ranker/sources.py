"""Which queries a run trains on, validates on and is tested on: the built-in world, or JSON lines files.

Splits are by query, before any ask is drawn. A file that serves for training alone also gives the other two: a query
goes to test or validation by a hash of its group (its id where it has none), a tenth each, so that it stays there when
the file grows, and so that what belongs together (a user, a question under several objectives) stays together. A group
that begins with `train::`, `validation::` or `test::` stands in that split, whatever its hash.
"""

import hashlib
import logging
import os.path
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import takewhile
from pathlib import Path

from ranker import plugins, world
from ranker.config import Config, Data, stages
from ranker.data import Query, read_queries
from ranker.engine import distributed
from ranker.errors import UserError, nearest
from ranker.files import sha256
from ranker.templates import wording

HELD_OUT = 0.1
SPLITS = ("train", "validation", "test")
MISSING = "missing"  # the checksum of what is no file: a pipe, or a file that is gone


@dataclass
class Source:
    """An endless sequence that draws take from; it goes on through the stages of a run.

    `items` are shuffled anew in every epoch, so nothing is seen twice before all is seen once; or `item` gives what
    stands at a position.
    """

    name: str
    items: Sequence | None = None
    seed: str = ""
    item: Callable[[int], object] | None = None
    tasks: tuple[str, ...] = ()  # of its queries
    unlabelled: tuple[str, ...] = ()  # those with queries without labels
    planned: int = 0  # how many queries the run will take
    held_out: Callable[[], set[str]] = set  # ids of the queries that the run may not learn from
    shuffled: tuple[int, list] = field(default=(-1, ()), init=False)  # the number of an epoch, and its items

    def __getitem__(self, position: int) -> object:
        if self.items is None:
            return self.item(position)
        number, place = divmod(position, len(self.items))  # of the epoch, and in it
        if self.shuffled[0] != number:
            self.shuffled = number, random.Random(f"{self.seed}/{number}").sample(self.items, len(self.items))
        return self.shuffled[1][place]

    def take(self, count: int, state: dict) -> list[tuple[int, object]]:
        """Return this process's share of the next `count`, each with its number among them; `state` goes on."""
        start = state.get(self.name, 0)
        state[self.name] = start + count
        return [(i, self[start + i]) for i in distributed.share(count)]


def training(data: Data, seed: int, planned: int = 0) -> Source:
    """Return the training queries without end: tasks take turns in the world, files are shuffled anew each epoch.

    The lessons of `data` are done to them, one after the other; `planned` is how many queries the run will take.
    """
    if data.train == "world":
        tasks = world_tasks(data.tasks)
        return Source("queries", item=lambda i: world.query(tasks[i % len(tasks)], "train", i // len(tasks), data.seed),
                      tasks=tuple(tasks), planned=planned, held_out=lambda: held_out_ids(data))
    queries = held_out(data, "train")
    source = Source("queries", queries, str(seed), tasks=tuple(dict.fromkeys(q.task for q in queries)),
                    unlabelled=tuple(dict.fromkeys(q.task for q in queries if not q.labelled)), planned=planned,
                    held_out=lambda: held_out_ids(data))
    for section in data.lessons:
        if source.items is None:
            raise UserError(f"data.lessons: behind {source.name} there is no list of queries for '{section['name']}';"
                            " put it first")
        source = plugins.load("lesson", section).lesson(source, queries)
    return source


def planned(config: Config, where: str) -> int:
    """Return how many queries a run takes. Raise UserError."""
    return sum(now.train.steps * now.rollout.prompts_per_step for _, now in stages(config, where))


def held_out(data: Data, split: str, per_task: int | None = None) -> list[Query]:
    """Return the queries of `split` (train, validation or test), the first `per_task` of each task. Raise UserError.

    A file of its own must not share a query with the training file. Queries without labels can be ranked, so they stay
    in the test split; nothing can be learned from them.
    """
    source = getattr(data, split) or data.train
    if source == "world":
        if split == "train":
            raise ValueError("the world's training queries have no end")
        return [q for task in world_tasks(data.tasks) for q in world.queries(task, split, per_task or 50, data.seed)]
    queries = _in_file(data, split, source)
    if source != data.train:
        refuse_shared(queries, data, f"data.{split} {source}")
    elif not queries:
        raise UserError(f"{source} is too small to hold out queries for {split}; name a file in data.{split}")
    if split == "validation" or split == "train" and not data.unlabelled:
        queries = labelled(queries, f"{source}, {split}")
    if split == "train" and per_task:  # the first of a file may be those of a few users
        queries = random.Random("limit").sample(queries, len(queries))
    return first_of_each_task(queries, per_task)


def held_out_ids(data: Data) -> set[str]:
    """Return the ids of the queries for validation and test. Raise UserError for a file that cannot be read."""
    files = {split: getattr(data, split) or data.train for split in SPLITS[1:]}
    return {q.id for split, source in files.items()
            for q in (held_out(data, split) if source == "world" else _in_file(data, split, source))}


def _in_file(data: Data, split: str, source: str) -> list[Query]:
    """Return the queries of a split in its file: all, or those that the training file holds out for it."""
    queries = read_files([source], data.tasks)
    if source != data.train:
        return queries
    own = bool(data.validation), bool(data.test)
    return [q for q in queries if split_of(q.group or q.id, data.seed, *own) == split]


def labelled(queries: Sequence[Query], where: str) -> list[Query]:
    """Return the queries with a relevant candidate; tell how many have none. Raise UserError where all have none."""
    found = [query for query in queries if query.labelled]
    if not found:
        raise UserError(f"{where}: no query has a relevant candidate, so nothing can be learned or measured;"
                        " evaluate.py --data FILE ranks without labels")
    if len(found) < len(queries):
        logging.warning(f"{where}: {len(queries) - len(found)} of {len(queries)} queries have no relevant candidate and"
                        " are left out")
    return found


def refuse_shared(queries: Sequence[Query], data: Data, where: str) -> None:
    """Raise UserError where a query stands in the training part of the training file, if there is one."""
    if data.train == "world" or not os.path.isfile(os.path.expanduser(data.train)):
        return
    trained = {name for q in held_out(data, "train") for name in (q.id, q.group or q.id)}
    shared = [q.id for q in queries if q.id in trained or q.group in trained]
    if shared:
        raise UserError(f"{where}: {len(shared)} of its {len(queries)} queries are trained on, such as '{shared[0]}';"
                        " without a file of its own the held-out part of the training file is used")


def split_of(group: str, seed: int, has_validation: bool = False, has_test: bool = False,
             test: float = HELD_OUT) -> str:
    """Return the split of a group of queries of a training file; a split with a file of its own takes nothing.

    `test` is the share of the test split.
    """
    named, mark, _ = group.partition("::")
    if mark and named in SPLITS:
        return named
    digest = hashlib.sha256(f"{seed}/{group}".encode()).digest()
    share = int.from_bytes(digest[:8], "big") / 2**64
    if share < test and not has_test:
        return "test"
    return "validation" if test <= share < test + HELD_OUT and not has_validation else "train"


def in_split(split: str, group: str) -> str:
    """Return the name of a group that stands in a split whatever its hash."""
    return f"{split}::{group}"


def read_files(paths: Sequence[str], tasks: Sequence[str] = ()) -> list[Query]:
    """Return the queries of JSON lines files, of `tasks` only where any are named. Raise UserError."""
    queries = [q for path in paths for q in read_once(os.path.expanduser(path))]
    known, ids = {q.task for q in queries}, set()
    for task in known:
        wording(task)
    for task in tasks:
        if task not in known:
            raise UserError(f"no query of task '{task}' in {', '.join(map(str, paths))}{nearest(task, known)}")
    for query in queries:
        if query.id in ids:
            raise UserError(f"query id '{query.id}' stands in more than one of {', '.join(map(str, paths))}")
        ids.add(query.id)
    return [q for q in queries if not tasks or q.task in tasks]


def read_once(path: str) -> list[Query]:
    """Return the queries of a file, which is read once as long as it does not change; a pipe can be read once only."""
    try:
        stat = os.stat(path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    return _read(path, (stat.st_mtime_ns, stat.st_size) if os.path.isfile(path) else None)


@lru_cache(maxsize=4)
def _read(path: str, stamp: tuple[int, int] | None) -> list[Query]:
    return read_queries(path)


def first_of_each_task(queries: Sequence[Query], per_task: int | None) -> list[Query]:
    if per_task is None:
        return list(queries)
    count: dict[str, int] = {}
    kept = []
    for query in queries:
        count[query.task] = count.get(query.task, 0) + 1
        if count[query.task] <= per_task:
            kept.append(query)
    return kept


def world_tasks(names: Sequence[str]) -> list[str]:
    for name in names:
        if name not in world.TASKS:
            raise UserError(f"data.tasks: the built-in world has no task '{name}'{nearest(name, world.TASKS)}")
    return list(names) or list(world.TASKS)


def names(config: Config) -> list[str]:
    """Return every source that a config names: its data, and the files of its draws, rewards and lessons."""
    data = config.data
    found = [data.train, data.validation, data.test]
    found += [path for _, stage in stages(config) for path in plugins.files(stage.draw, "draw")]
    found += [path for _, stage in stages(config) for name, entry in stage.reward.items() for path in plugins.files(
        {"name": name} | {key: value for key, value in entry.items() if key not in ("weight", "tasks")}, "reward")]
    found += [path for lesson in data.lessons for path in plugins.files(lesson, "lesson")]
    return sorted({*filter(None, found)})


def refuse_unmade(paths: Sequence[str], config: str) -> None:
    """Raise UserError for a file that is not there and that the first lines of the config file say how to make."""
    lines = Path(config).read_text(encoding="utf-8").split("\n")
    head = re.split(r"[\s,]+", "\n".join(takewhile(lambda line: line.startswith("#"), lines)))
    for path in paths:
        if path != "world" and path in head and not os.path.exists(os.path.expanduser(path)):
            raise UserError(f"{path} is not made yet; the first lines of {config} tell how")


def checksum(source: str) -> str:
    """What tells two data sources apart: the hash of a file, or of the world's code. MISSING for a file that is
    gone."""
    path = Path(world.__file__) if source == "world" else Path(os.path.expanduser(source))
    return sha256(path)[:16] if path.is_file() else MISSING
