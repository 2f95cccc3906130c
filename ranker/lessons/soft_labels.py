"""Soft labels smoothed by tags (Zooter, arXiv 2311.08692): what a router imitates instead of the best candidate alone.

The soft label of a query is the softmax of its relevance over `tau`; that of a tag is the mean over the training
queries with the tag, by candidate id; the smoothed one is beta * own + (1 - beta) * mean of its tags'. A query without
tags keeps its own, and a candidate that a query lacks has no part in it: what is left of a tag's label is scaled to sum
1. Tags are the query's `tags` (a benchmark, a category) within its task. `tau` is ours: utilities within [0, 1] have a
nearly uniform softmax at the paper's 1. `leave_one_out` keeps a query out of its own tags' means, where it would give
itself away; a tag with no other query then has no label.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ranker.data import Query
from ranker.plugins import setting
from ranker.sources import Source


Sums = dict[tuple[str, str], tuple[int, dict[str, float]]]  # tag -> queries with it, candidate -> sum of their labels


@dataclass
class Options:
    tau: float = setting(1.0, low=1e-6)  # of the softmax; the paper's is 1
    beta: float = setting(0.3, low=0.0, high=1.0)  # weight of a query's own label; 1: no smoothing, 0: tags alone
    hard: bool = False  # the control: all weight on the best candidates
    leave_one_out: bool = False


def lesson(source: Source, fit: Sequence[Query], options: Options) -> Source:
    sums = tag_sums(fit, options)
    known = {query.id for query in fit}
    even = sum(len(set(query.relevance)) == 1 for query in source.items)
    if even:
        logging.warning(f"soft_labels: {even} of {len(source.items)} queries have equal candidates: their own label is"
                        " uniform")
    return replace(source, items=[replace(query, relevance=smoothed(query, sums, query.id in known, options))
                                  for query in source.items])


def own(query: Query, options: Options) -> list[float]:
    """Return the soft label of a query, one share a candidate."""
    best = max(query.relevance)
    if options.hard:
        return [(value == best) / query.relevance.count(best) for value in query.relevance]
    weights = [math.exp((value - best) / options.tau) for value in query.relevance]
    return [weight / sum(weights) for weight in weights]


def tags(query: Query) -> list[tuple[str, str]]:
    """Return the tags of a query, each with its task: under another objective other candidates are the best."""
    return [(query.task, tag) for tag in query.tags]


def tag_sums(queries: Sequence[Query], options: Options) -> Sums:
    """Return tag -> how many queries have it, and candidate id -> the sum of their labels."""
    sums: Sums = {}
    for query in queries:
        for tag in tags(query):
            count, label = sums.get(tag, (0, {}))
            for candidate, share in zip(query.ids, own(query, options)):
                label[candidate] = label.get(candidate, 0.0) + share
            sums[tag] = count + 1, label
    return sums


def smoothed(query: Query, sums: Sums, known: bool,
             options: Options) -> tuple[float, ...]:
    """Return the smoothed label of a query; `known`: it is one of those that the sums are of."""
    mine, means = own(query, options), []
    for count, label in (sums[tag] for tag in tags(query) if tag in sums):
        left = known and options.leave_one_out
        kept = [label.get(c, 0.0) - share * left for c, share in zip(query.ids, mine)]
        if count > left and sum(kept) > 0:
            means.append([share / sum(kept) for share in kept])
    if not means:
        return tuple(mine)
    return tuple(options.beta * share + (1 - options.beta) * sum(column) / len(means)
                 for share, column in zip(mine, zip(*means)))
