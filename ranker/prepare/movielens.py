"""MovieLens -> a query per user: the newest movies as the history, the last movie, and 19 that the user never rated.

Reads `ratings.csv` + `movies.csv` (ml-latest), `ratings.dat` + `movies.dat` (ml-1m) or `*.inter` + `*.item` (RecBole),
gzipped or not.

Decisions a reader could doubt:
- Movies are keyed by id, since titles repeat. Ratings of equal time keep the order of the file.
- Negatives are drawn once, uniformly from the movies that anybody rated, and stored in their shuffled order.
- A query's id is its user, so that splits by query are splits by user.
- Whatever the rating was, the movie counts as watched.
"""

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from ranker.data import Query
from ranker.errors import UserError
from ranker.prepare import _next_item
from ranker.prepare._next_item import arguments  # noqa: F401
from ranker.reading import clean, columns, find, number, open_text

Events, Titles = Iterator[tuple[str, str, float]], dict[str, str]


def prepare(args: argparse.Namespace, dropped: Counter) -> Iterator[Query]:
    """Yield a query per user. Raise UserError for missing or broken files."""
    events, titles = layout(args.folder)
    yield from _next_item.queries("movielens", "rec-movie", _next_item.by_time(events), titles, args, dropped)


def layout(folder: Path) -> tuple[Events, Titles]:
    """Return rows of (user, movie, time), and movie -> title. Raise UserError for a folder without a known layout."""
    for ratings, movies, read in (("ratings.csv", "movies.csv", from_csv), ("ratings.dat", "movies.dat", from_dat),
                                  ("*.inter", "*.item", from_recbole)):
        found = find(folder, ratings), find(folder, movies)
        if all(found):
            return read(*found)
    raise UserError(f"{folder} holds none of ratings.csv and movies.csv, ratings.dat and movies.dat, "
                    "*.inter and *.item (.gz or not)")


def from_csv(ratings: Path, movies: Path) -> tuple[Events, Titles]:
    return (table_events(ratings, ",", ("userId", "movieId", "timestamp")),
            {movie: clean(title) for _, (movie, title) in columns(movies, ",", ("movieId", "title"))})


def from_recbole(ratings: Path, movies: Path) -> tuple[Events, Titles]:
    return (table_events(ratings, "\t", ("user_id:token", "item_id:token", "timestamp:float")),
            {movie: clean(title)
             for _, (movie, title) in columns(movies, "\t", ("item_id:token", "movie_title:token_seq"))})


def from_dat(ratings: Path, movies: Path) -> tuple[Events, Titles]:
    """Read the layout of ml-1m: fields between `::`, no header, titles in ISO 8859-1."""
    events = ((user, movie, number(time, where, "the time")) for where, (user, movie, _, time) in dat(ratings, 4))
    return events, {movie: clean(title) for _, (movie, title, _) in dat(movies, 3)}


def dat(path: Path, count: int) -> Iterator[tuple[str, list[str]]]:
    """Yield (file:line, fields) for every line of a `.dat` file. Raise UserError where there are not `count` fields."""
    with open_text(path, "iso-8859-1") as file:
        for line, text in enumerate(file, 1):
            fields = text.rstrip("\r\n").split("::")
            if len(fields) != count:
                raise UserError(f"{path}:{line}: {len(fields)} fields between '::', expected {count}")
            yield f"{path}:{line}", fields


def table_events(path: Path, separator: str, names: tuple[str, ...]) -> Events:
    """Yield (user, item, time) from the three named columns of a table with a header."""
    for line, (user, item, time) in columns(path, separator, names):
        yield user, item, number(time, f"{path}:{line}", "the time")
