"""MovieLens -> a query per user: the newest movies as the history, the last movie, and 19 that the user never rated.

Reads `ratings.csv` + `movies.csv` (ml-latest), `ratings.dat` + `movies.dat` (ml-1m) or `*.inter` + `*.item` (RecBole),
gzipped or not.

Decisions a reader could doubt:
- Movies are keyed by id, since titles repeat. Ratings of equal time keep the order of the file.
- Negatives are drawn once, uniformly from the movies that anybody rated, and stored in their shuffled order.
- A query's id is its user, so that splits by query are splits by user.
- Whatever the rating was, the movie counts as watched.
- What `--windows`, `--split time`, `--lists` and untitled movies mean stands in `_next_item`.
"""

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from ranker.data import Query
from ranker.errors import UserError
from ranker.prepare import _next_item, _options
from ranker.reading import clean_title, columns, find, number, open_text

Events, Titles = Iterator[tuple[str, str, float]], dict[str, str]
USER, ITEM, TIME, TITLE = ("userId", "user_id"), ("movieId", "item_id"), "timestamp", ("title", "movie_title", "name")


def arguments(parser: argparse.ArgumentParser) -> None:
    _next_item.arguments(parser)
    _options.add_columns(parser, *USER, *ITEM, TIME, "title")


def prepare(args: argparse.Namespace, dropped: Counter) -> Iterator[Query]:
    """Yield the queries of all users. Raise UserError for missing or broken files."""
    events, titles = layout(args.folder, args.columns)
    yield from _next_item.queries("movielens", "rec-movie", _next_item.by_time(events, dropped), titles, args, dropped)


def layout(folder: Path, called: dict[str, str]) -> tuple[Events, Titles]:
    """Return rows of (user, movie, time), and movie -> title. Raise UserError for a folder without a known layout."""
    for ratings, movies, read in (("ratings.csv", "movies.csv", from_table), ("ratings.dat", "movies.dat", from_dat),
                                  ("*.inter", "*.item", from_table)):
        found = find(folder, ratings), find(folder, movies)
        if all(found):
            return read(*found, called)
    raise UserError(f"{folder} holds none of ratings.csv and movies.csv, ratings.dat and movies.dat, "
                    "*.inter and *.item (.gz or not)")


def from_table(ratings: Path, movies: Path, called: dict[str, str]) -> tuple[Events, Titles]:
    return (table_events(ratings, (USER, ITEM, TIME), called),
            {movie: clean_title(title) for _, (movie, title) in columns(movies, (ITEM, TITLE), called)})


def from_dat(ratings: Path, movies: Path, called: dict[str, str]) -> tuple[Events, Titles]:
    """Read the layout of ml-1m: fields between `::`, no header, titles in ISO 8859-1 (or UTF-8, where converted)."""
    events = ((user, movie, number(time, where, "the time")) for where, (user, movie, _, time) in dat(ratings, 4))
    return events, {movie: clean_title(title) for _, (movie, title, _) in dat(movies, 3)}


def dat(path: Path, count: int) -> Iterator[tuple[str, list[str]]]:
    """Yield (file:line, fields) for every line of a `.dat` file. Raise UserError where there are not `count` fields."""
    with open_text(path, "iso-8859-1") as file:
        for line, text in enumerate(file, 1):
            fields = text.rstrip("\r\n").split("::")
            if len(fields) != count and text.strip():
                raise UserError(f"{path}:{line}: {len(fields)} fields between '::', expected {count}")
            if text.strip():
                yield f"{path}:{line}", fields


def table_events(path: Path, names: tuple[str | tuple[str, ...], ...], called: dict[str, str]) -> Events:
    """Yield (user, item, time) from the three named columns of a table with a header."""
    for line, (user, item, time) in columns(path, names, called):
        yield user, item, number(time, f"{path}:{line}", "the time")
