"""Options that several preparations share, and what they do: names of columns, and pools without equal texts."""

import argparse
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from ranker.data import Query
from ranker.errors import nearest


def add_columns(parser: argparse.ArgumentParser, *known: str) -> None:
    """Add the option that says what a file calls the columns or fields that are `known` here."""
    parser.add_argument("--columns", type=renamed(known), default={}, metavar="OURS=YOURS,...",
                        help=f"what your file calls {', '.join(known)}")


def renamed(known: tuple[str, ...]) -> Callable[[str], dict[str, str]]:
    """Return a function that reads `ours=yours,...` and refuses names that are not `known`."""
    def read(text: str) -> dict[str, str]:
        found = dict(pair.partition("=")[::2] for pair in text.split(","))
        for ours, yours in found.items():
            if ours not in known:
                raise argparse.ArgumentTypeError(f"no column is called '{ours}' here{nearest(ours, known)}")
            if not yours:
                raise argparse.ArgumentTypeError(f"expected {ours}=COLUMN")
        return found
    return read


def add_distinct(parser: argparse.ArgumentParser, what: str) -> None:
    """Add the option that avoids equal texts in a pool; `what` tells how."""
    parser.add_argument("--distinct", action="store_true", help=f"no two candidates of equal text: {what}")


def has_equal_texts(query: Query) -> bool:
    """Tell whether two candidates have the same text, so that nobody can tell them apart."""
    return len(set(query.texts.values())) < len(query.ids)


def distinct(query: Query) -> Query:
    """Return the query without candidates that repeat a text; the most relevant (of these, the first) stays."""
    best: dict[str, str] = {}  # text -> id
    for candidate in query.candidates:
        other = best.setdefault(candidate.text, candidate.id)
        if query.rel[candidate.id] > query.rel[other]:
            best[candidate.text] = candidate.id
    kept = tuple(c for c in query.candidates if best[c.text] == c.id)
    return replace(query, candidates=kept, relevance=tuple(query.rel[c.id] for c in kept))


def pools(queries: Iterable[Query], are_distinct: bool, dropped: Counter) -> Iterator[Query]:
    """Yield the queries, without candidates that repeat a text if they are to be distinct; count what goes."""
    for query in queries:
        made = distinct(query) if are_distinct else query
        if len(made.ids) < len(query.ids):
            dropped["candidates that repeat the text of another"] += len(query.ids) - len(made.ids)
        if len(made.ids) < 2:
            dropped["queries whose candidates all have one text"] += 1
        else:
            yield made
