"""Events of users -> a query per user: the history, the next item, and sampled items that the user never touched."""

import argparse
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from tqdm import tqdm

from ranker.data import Candidate, Query

Sequence = tuple[str, list[str]]  # a user, and the user's items in the order of time


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="the unpacked download")
    parser.add_argument("--history", type=int, default=20, help="items shown, the newest")
    parser.add_argument("--min_history", type=int, help="users with fewer are dropped (default: as many as are shown)")
    parser.add_argument("--candidates", type=int, default=20, help="the next item and sampled ones")


def by_time(events: Iterable[tuple[str, str, float]]) -> list[Sequence]:
    """Return the items of every user by time, from events (user, item, time).

    Items of equal time keep the order of the file; of a repeated item only the first event counts.
    """
    by_user: dict[str, list[tuple[float, str]]] = {}
    for user, item, time in tqdm(events, desc="events", unit="row"):
        by_user.setdefault(user, []).append((time, item))
    return [(user, list(dict.fromkeys(item for _, item in sorted(rows, key=lambda row: row[0]))))
            for user, rows in by_user.items()]


def queries(name: str, task: str, sequences: list[Sequence], titles: dict[str, str], args: argparse.Namespace,
            dropped: Counter, lists: dict[str, list[str]] | None = None) -> Iterator[Query]:
    """Yield a query per user, whose positive is the user's last item.

    The other candidates are sampled from the items of all users, or from `lists[user]`.
    """
    needed = args.history if args.min_history is None else args.min_history
    touched = sorted({item for _, items in sequences for item in items} & titles.keys(),
                     key=lambda item: (len(item), item))
    for user, items in tqdm(sequences, desc="queries", unit="user"):
        *history, positive = items
        history = history[max(len(history) - args.history, 0):]
        rng = random.Random(f"{args.seed}/{name}/{user}")
        seen = set(items)
        if len(history) < max(needed, 1):
            dropped[f"users with fewer than {max(needed, 1) + 1} items"] += 1
        elif any(item not in titles for item in (*history, positive)):
            dropped["users with an item that has no title"] += 1
        elif lists is not None and user not in lists:
            dropped["users without a list of candidates"] += 1
        else:
            pool = touched if lists is None else [c for c in lists[user] if c in titles]
            negatives = unseen(pool, args.candidates - 1, seen, rng)
            if negatives is None:
                dropped[f"users with fewer than {args.candidates - 1} items they never touched to choose from"] += 1
                continue
            shown = [positive, *negatives]
            rng.shuffle(shown)
            yield Query(f"{name}.{user}", task, tuple(titles[item] for item in history),
                        tuple(Candidate(c, titles[c]) for c in shown), tuple(float(c == positive) for c in shown))


def unseen(pool: list[str], count: int, seen: set[str], rng: random.Random) -> list[str] | None:
    """Draw `count` items of `pool` that are not in `seen`, uniformly; return None where there are too few.

    The cost does not grow with the pool: a little more is drawn than needed, and seen items are taken out.
    """
    drawn = rng.sample(pool, min(len(pool), count + len(seen)))
    kept = [c for c in drawn if c not in seen][:count]
    return kept if len(kept) == count else None
