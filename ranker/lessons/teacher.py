"""A teacher's ranking instead of the relevance (RankGPT's distillation, arXiv 2304.09542).

A teacher is a TREC run over the training queries, such as evaluate.py writes of any checkpoint or server. Queries that
it does not rank are left out.
"""

import os.path
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ranker import trec_files
from ranker.data import Query
from ranker.errors import UserError
from ranker.plugins import setting
from ranker.sources import Source


@dataclass
class Options:
    run: str = setting(file=True)  # a TREC run


def lesson(source: Source, fit: Sequence[Query], options: Options) -> Source:
    return replace(source, items=by_teacher(source.items, Path(os.path.expanduser(options.run))))


def by_teacher(queries: Sequence[Query], path: Path) -> list[Query]:
    """Return the queries that the run ranks, relevance n for its first of n candidates down to 1.

    Raise UserError for a query that it ranks in part.
    """
    run, found = trec_files.read_run(path, "input"), []
    for query in queries:
        place = {candidate: k for k, candidate in enumerate(run.get(query.id, []))}
        if missing := [c for c in query.ids if c not in place] if place else []:
            raise UserError(f"{path}: query '{query.id}' is ranked without its candidate '{missing[0]}'")
        if place:
            order = sorted(query.ids, key=place.get)
            found.append(replace(query, relevance=tuple(float(len(order) - order.index(c)) for c in query.ids)))
    if not found:
        raise UserError(f"{path} ranks none of the training queries; "
                        "make it with evaluate.py --data FILE of the same file")
    return found
