"""Labels from somewhere else than the data: a teacher's ranking instead of the relevance (RankGPT's distillation, arXiv 2304.09542).

A teacher is a TREC run, such as evaluate.py writes of any checkpoint or server. Only what is learned from is relabelled;
validation and test keep the relevance of the data.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ranker import trec
from ranker.data import Query
from ranker.errors import UserError


def by_teacher(queries: Sequence[Query], path: Path) -> list[Query]:
    """The queries that the run ranks, relevance n for its first of n candidates down to 1. Raises UserError for one that it ranks in part."""
    run, found = trec.read_run(path, "input"), []
    for query in queries:
        place = {candidate: k for k, candidate in enumerate(run.get(query.id, []))}
        if missing := [c for c in query.ids if c not in place] if place else []:
            raise UserError(f"{path}: query '{query.id}' is ranked without its candidate '{missing[0]}'")
        if place:
            order = sorted(query.ids, key=place.get)
            found.append(replace(query, relevance=tuple(float(len(order) - order.index(c)) for c in query.ids)))
    if not found:
        raise UserError(f"{path} ranks none of the training queries; make it with evaluate.py --data FILE of the same file")
    return found
