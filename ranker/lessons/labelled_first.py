"""Human labels before a teacher's order (CoRanking-style, arXiv 2503.23427): what is relevant moves to the top.

The teacher's run orders the candidates of a training query, listwise and in windows; then the candidates of a relevance
above zero move to the head, and both parts keep the teacher's order. The paper names such a construction without its
rule, so the rule is ours.
"""

import os.path
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ranker.data import Query
from ranker.lessons.teacher import by_teacher
from ranker.plugins import setting
from ranker.sources import Source


@dataclass
class Options:
    run: str = setting(file=True)  # a TREC run of the teacher


def lesson(source: Source, fit: Sequence[Query], options: Options) -> Source:
    labels = {query.id: query.rel for query in source.items}
    taught = by_teacher(source.items, Path(os.path.expanduser(options.run)))
    return replace(source, items=[labelled_first(query, labels[query.id]) for query in taught])


def labelled_first(query: Query, labels: dict[str, float]) -> Query:
    """Return a query of a teacher's places with those of a label above zero raised over all others."""
    return replace(query, relevance=tuple(place + len(query.ids) * (labels[c] > 0)
                                          for c, place in zip(query.ids, query.relevance)))
