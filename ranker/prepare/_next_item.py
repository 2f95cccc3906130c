"""Events of users -> queries: a user's history, the next item, and sampled items that the user never touched.

Decisions a reader could doubt:
- A user gives a query about the last item. With `--windows N` the users that training sees give one for each of their
  last N items, with the history before it; users of validation and test keep their last item. All queries of a user are
  one group, whose split is written down with it, so that another data.seed does not mix them. An earlier history that
  is nearly the same as one held out is dropped.
- With `--next N` the next N items are relevant in a query that is trained on (fewer at the end of a history): the same
  history teaches N times. Held-out users have their last item alone.
- `--split time` holds out by time instead of by user. Two moments are taken from the users' last events: the latest
  tenth (`--held_out`) is the test, the tenth before it the validation. Training gets, of every user, the last N items
  before the first moment, with negatives that somebody had touched by then; so nothing it sees happened later than what
  is held out. Near-duplicate histories are not joined, since a user's own ones are that alike.
- Items without a title are left out as if nobody had touched them; they are counted.
- `--min_history` counts all items before the next one, shown or not.
"""

import argparse
import random
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from ranker.data import Candidate, Query
from ranker.errors import UserError
from ranker.prepare import _options
from ranker.reading import open_text, short_ids
from ranker.sources import HELD_OUT, in_split


class User(NamedTuple):
    """Hold a user's items in the order of time, each once."""

    name: str
    items: list[str]
    times: list[float] | None = None  # None: only their order is known


def count(text: str) -> int:
    """Read a number from 1. Raise ArgumentTypeError for other texts."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 1, got '{text}'")
    return int(text)


def count_or_all(text: str) -> int | None:
    """Read a number from 1, or `all` as None. Raise ArgumentTypeError for other texts."""
    return None if text == "all" else count(text)


def share(text: str) -> float:
    """Read a share that leaves something to train on. Raise ArgumentTypeError or ValueError for other texts."""
    if not 0 < float(text) <= 0.8:
        raise argparse.ArgumentTypeError(f"expected a share above 0, at most 0.8, got {text}")
    return float(text)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="the unpacked download")
    parser.add_argument("--history", type=int, default=20, help="items shown, the newest")
    parser.add_argument("--min_history", type=int, help="users with fewer are dropped (default: as many as are shown)")
    parser.add_argument("--candidates", type=int, default=20, help="the next item and sampled ones")
    parser.add_argument("--lists", type=Path, help="a file of the items that each user's negatives are drawn from, such"
                        " as a retriever's: lines of a user, a tab, ids between spaces")
    parser.add_argument("--windows", type=count_or_all, default=1, metavar="N|all",
                        help="queries of a user that is trained on: one for each of the last N items")
    parser.add_argument("--next", type=count, default=1, metavar="N",
                        help="relevant items of a query that is trained on: the next N")
    parser.add_argument("--split", choices=("users", "time"), default="users",
                        help="hold out users, or what happened last")
    parser.add_argument("--held_out", type=share, metavar="SHARE",
                        help=f"of users (with --split time: of last events) in the test (default: {HELD_OUT})")
    _options.add_distinct(parser, "none that has the title of another is sampled")


def by_time(events: Iterable[tuple[str, str, float]], dropped: Counter) -> list[User]:
    """Return the users, from events (user, item, time); events without a user or an item are counted in `dropped`.

    Items of equal time keep the order of the file; of a repeated item only the first event counts.
    """
    by_user: dict[str, list[tuple[float, str]]] = {}
    for user, item, time in tqdm(events, desc="events", unit="row"):
        if user.strip() and item.strip():
            by_user.setdefault(user, []).append((time, item))
        else:
            dropped["events without a user or an item"] += 1
    found = []
    for user, rows in by_user.items():
        first: dict[str, float] = {}
        for time, item in sorted(rows, key=lambda row: row[0]):
            first.setdefault(item, time)
        found.append(User(user, list(first), list(first.values())))
    return found


def queries(name: str, task: str, users: list[User], items: dict[str, str], args: argparse.Namespace,
            dropped: Counter) -> Iterator[Query]:
    """Yield the queries of all users, the last item's first. `items` maps ids to titles (empty for none)."""
    if args.next >= args.candidates:
        raise UserError(f"--next={args.next} leaves no room for other items; take more --candidates than "
                        f"{args.candidates}")
    lists = None if args.lists is None else candidate_lists(args.lists, items)
    titles = {item: title for item, title in items.items() if title}
    users = titled(users, titles, dropped)
    needed = max(args.history if args.min_history is None else args.min_history, 1)
    moments = cuts(users, needed, args) if args.split == "time" else None
    pools = shared_pools(users, titles, moments, args.distinct)
    ids = short_ids(args.folder, [user.name for user in users]) | short_ids(args.folder, pools[""].items)
    for user in tqdm(users, desc="queries", unit="user"):
        if len(user.items) <= needed:
            dropped[f"users with fewer than {needed + 1} items"] += 1
            continue
        if lists is not None and user.name not in lists:
            dropped["users without a list of candidates"] += 1
            continue
        own = lists and pool_of([c for c in lists[user.name] if c in titles], titles, args.distinct)
        seen = set(user.items)
        for place, end, split in targets(user, args, moments):
            if place < needed:
                break
            later = len(user.items) - 1 - place
            key = f"{user.name}@{later}" if later else user.name
            rng = random.Random(f"{args.seed}/{name}/{key}")
            pool = own or pools[split]
            positives = pool_of(user.items[place:end], titles, args.distinct).items
            barred = seen | {pool.same.get(titles[item], item) for item in positives}
            negatives = args.candidates - len(positives)
            lots = [negatives + len(barred)]  # the last event's draw is as it was before there were others
            shown = drawn(pool.items, negatives, barred, [3 * args.candidates, *lots] if later else lots, rng)
            if shown is None:
                dropped[f"users with fewer than {negatives} items they never touched to choose from"] += 1
                break
            shown = positives + shown
            rng.shuffle(shown)
            group = f"{name}.{ids[user.name]}"
            yield Query(f"{group}@{later}" if later else group, task,
                        tuple(titles[item] for item in user.items[max(place - args.history, 0):place]),
                        tuple(Candidate(ids.get(c, c), titles[c]) for c in shown),
                        tuple(float(c in positives) for c in shown),
                        in_split(split, group) if split else group if later else "")


def titled(users: list[User], titles: dict[str, str], dropped: Counter) -> list[User]:
    """Return the users without their items that have no title, which are counted."""
    untitled, found = set(), []
    for user in users:
        gone = [item for item in user.items if item not in titles]
        if gone:
            untitled.update(gone)
            dropped["events of items without a title"] += len(gone)
            kept = [place for place, item in enumerate(user.items) if item in titles]
            user = User(user.name, [user.items[i] for i in kept], user.times and [user.times[i] for i in kept])
        found.append(user)
    if untitled:
        dropped["items without a title"] += len(untitled)
    return found


def cuts(users: list[User], needed: int, args: argparse.Namespace) -> tuple[float, float]:
    """Return the moments at which the validation and the test begin. Raise UserError for users without times."""
    if any(user.times is None for user in users):
        raise UserError(f"{args.folder}: --split time needs the time of every event; this layout has their order only")
    ends = sorted(user.times[-1] for user in users if len(user.items) > needed)
    test = args.held_out or HELD_OUT
    return tuple(ends[int(len(ends) * max(1 - held, 0))] if ends else 0.0 for held in (test + HELD_OUT, test))


def targets(user: User, args: argparse.Namespace, moments: tuple[float, float] | None) -> list[tuple[int, int, str]]:
    """Return (places of the next items: the first and the one behind them, the split), the last first.

    "" leaves the split to the user's hash.
    """
    end, held = len(user.items), []
    if moments:
        last, end = user.times[-1], bisect_left(user.times, moments[0])
        if last >= moments[0]:
            held = [(len(user.items) - 1, len(user.items), "test" if last >= moments[1] else "validation")]
    first = 0 if args.windows is None else max(end - args.windows, 0)
    return held + [(place, min(place + args.next, end), "train" if moments else "")
                   for place in range(end - 1, first - 1, -1)]


class Pool(NamedTuple):
    """Hold the items that negatives are drawn from."""

    items: list[str]
    same: dict[str, str] = {}  # where titles must differ: title -> the only item with it


def pool_of(items: list[str], titles: dict[str, str], distinct: bool) -> Pool:
    """Return a pool of the items; if `distinct`, of the first item of every title."""
    if not distinct:
        return Pool(items)
    same: dict[str, str] = {}
    for item in items:
        same.setdefault(titles[item], item)
    return Pool(list(same.values()), same)


def shared_pools(users: list[User], titles: dict[str, str], moments: tuple[float, float] | None,
                 distinct: bool) -> dict[str, Pool]:
    """Return split -> the pool of its queries: what anybody touched, for training by time before the first moment."""
    def pool(items: set[str]) -> Pool:
        return pool_of(sorted(items, key=lambda item: (len(item), item)), titles, distinct)

    every = pool({item for user in users for item in user.items})
    if not moments:
        return {"": every}
    early = pool({item for user in users for item in user.items[:bisect_left(user.times, moments[0])]})
    return {"": every, "train": early, "validation": every, "test": every}


def drawn(items: list[str], count: int, barred: set[str], lots: list[int],
          rng: random.Random) -> list[str] | None:
    """Return `count` items that are not barred, uniformly; None where there are too few.

    The cost does not grow with the items: some more are drawn than needed (`lots`, the last so many that they must
    suffice), and those that are barred are taken out.
    """
    for lot in lots:
        found = [item for item in rng.sample(items, min(len(items), lot)) if item not in barred][:count]
        if len(found) == count:
            return found
    return None


def candidate_lists(path: Path, items: dict[str, str]) -> dict[str, list[str]]:
    """Return user -> the listed items, each once. Raise UserError for an item that the folder does not have."""
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
