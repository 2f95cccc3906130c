"""MovieLens -> one query a user: the 20 newest movies before the last one, that last one, and 19 the user never rated.

Reads `ratings.csv` + `movies.csv` (ml-latest) or `*.inter` + `*.item` (RecBole), gzipped or not. Movies are keyed by id
since titles repeat. Ratings of equal time keep the order of the file. Negatives are drawn once, uniformly from the
movies that anybody rated, and stored with their shuffled order. A query's id is its user, so that splits by query are
splits by user. Whatever the rating was, the movie counts as watched.
"""

import csv
import gzip
import math
import random
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from ranker.data import Candidate, Query
from ranker.errors import UserError

TASK, HISTORY, NEGATIVES = "rec-movie", 20, 19


def prepare(folder: Path, seed: int = 0) -> tuple[list[Query], dict[str, int]]:
    """(queries, reason -> users dropped). Raises UserError for missing or broken files."""
    ratings, movies = layout(folder)
    titles = {row[0]: row[1] for row in movies}
    by_user: dict[str, list[tuple[float, str]]] = {}
    for user, movie, time in tqdm(ratings, desc="ratings", unit="row"):
        by_user.setdefault(user, []).append((time, movie))
    rated = sorted({movie for events in by_user.values() for _, movie in events} & titles.keys(), key=lambda m: (len(m), m))
    queries, short, unknown, saturated = [], 0, 0, 0
    for user, events in by_user.items():
        watched = [movie for _, movie in sorted(events, key=lambda event: event[0])]  # stable: ties keep the file's order
        if len(watched) <= HISTORY:
            short += 1
            continue
        *history, positive = watched[-HISTORY - 1:]
        if any(movie not in titles for movie in watched[-HISTORY - 1:]):
            unknown += 1
            continue
        seen = set(watched)
        unseen = [m for m in rated if m not in seen]
        if len(unseen) < NEGATIVES:
            saturated += 1
            continue
        rng = random.Random(f"{seed}/movielens/{user}")
        pool = [positive, *rng.sample(unseen, NEGATIVES)]
        rng.shuffle(pool)
        queries.append(Query(f"movielens.{user}", TASK, tuple(titles[m] for m in history),
                             tuple(Candidate(m, titles[m]) for m in pool), tuple(float(m == positive) for m in pool)))
    return queries, {f"users with at most {HISTORY} ratings": short, "users with a movie that has no title": unknown,
                     f"users with fewer than {NEGATIVES} movies they never rated": saturated}


def layout(folder: Path) -> tuple[Iterator[tuple[str, str, float]], Iterator[list[str]]]:
    """Rows of (user, movie, time) and of [movie, title, ...], whichever layout the folder has."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}")
    found = {kind: sorted(folder.glob(pattern)) for kind, pattern in (
        ("ratings", "ratings.csv*"), ("movies", "movies.csv*"), ("inter", "*.inter*"), ("item", "*.item*"))}
    if found["ratings"] and found["movies"]:
        return events(found["ratings"][0], ",", ("userId", "movieId", "timestamp")), columns(found["movies"][0], ",", ("movieId", "title"))
    if found["inter"] and found["item"]:
        return (events(found["inter"][0], "\t", ("user_id:token", "item_id:token", "timestamp:float")),
                columns(found["item"][0], "\t", ("item_id:token", "movie_title:token_seq")))
    raise UserError(f"{folder} holds neither ratings.csv and movies.csv nor *.inter and *.item (.gz or not)")


def events(path: Path, separator: str, names: tuple[str, ...]) -> Iterator[tuple[str, str, float]]:
    for number, (user, movie, time) in enumerate(columns(path, separator, names), 2):
        try:
            seconds = float(time)
            if not math.isfinite(seconds):
                raise ValueError
            yield user, movie, seconds
        except ValueError:
            raise UserError(f"{path}:{number}: the time {time!r} is no number") from None


def columns(path: Path, separator: str, names: tuple[str, ...]) -> Iterator[list[str]]:
    """The named columns of a table with a header, row by row."""
    opener = gzip.open if path.suffix == ".gz" else open
    quoting = csv.QUOTE_MINIMAL if separator == "," else csv.QUOTE_NONE
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=separator, quoting=quoting)
            header = next(reader, [])
            missing = [name for name in names if name not in header]
            if missing:
                raise UserError(f"{path}:1: no column '{missing[0]}' (found: {', '.join(header)})")
            places = [header.index(name) for name in names]
            for number, row in enumerate(reader, 2):
                if not row:
                    continue
                if len(row) <= max(places):
                    raise UserError(f"{path}:{number}: {len(row)} columns, expected {len(header)}")
                yield [row[i] for i in places]
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
