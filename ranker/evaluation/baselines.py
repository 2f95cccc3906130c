"""Baselines: rankings that need no model, which a model has to beat.

The baselines of `PLAIN` know the query alone. BM25 (k1 0.9, b 0.4, Anserini's defaults) takes its document frequencies
from the query's candidates, since a reranker has no corpus. The baselines of `every` may also know training queries:

- Where contexts are histories: the popularity of an item, and item-kNN (cosine of co-occurrence). Both compare texts,
  since a history has no ids.
- For routing: the cheapest model, the dearest model (which stands for the largest: sizes are not published) and the
  best single model, each chosen per task; and the mean over the nearest questions (kNN over BM25).

Candidates with equal scores keep the order given.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from heapq import nlargest

from ranker.data import Query

K1, B = 0.9, 0.4
NEIGHBOURS = 20  # training questions that kNN takes the mean of
_WORD = re.compile(r"\w+")


def tokens(text: str) -> list[str]:
    """Return the words of a text in lower case (case folded), in order."""
    return _WORD.findall(text.casefold())


def input_order(query: Query) -> list[str]:
    return list(query.ids)


def context_text(query: Query) -> str:
    """Return the context of a query as one text: the items of a history are joined by spaces."""
    return query.context if isinstance(query.context, str) else " ".join(query.context)


class BM25:
    """Scores of any text against fixed documents (id -> text), which also give the document frequencies."""

    def __init__(self, documents: dict[str, str]):
        self.counts = {key: Counter(tokens(text)) for key, text in documents.items()}
        self.lengths = {key: sum(counts.values()) for key, counts in self.counts.items()}
        self.average = max(sum(self.lengths.values()) / max(len(self.lengths), 1), 1e-9)
        self.known: dict[str, list[str]] = {}  # word -> ids of the documents with it, filled word by word when asked

    def holders(self, word: str) -> list[str]:
        """Return the ids of the documents that contain `word`."""
        if word not in self.known:
            self.known[word] = [key for key, counts in self.counts.items() if word in counts]
        return self.known[word]

    def scores(self, text: str) -> dict[str, float]:
        """Return document id -> BM25 score of `text`; a document that shares no word with it scores 0."""
        scores = dict.fromkeys(self.counts, 0.0)
        for word, times in Counter(tokens(text)).items():
            holders = self.holders(word)
            idf = math.log(1 + (len(scores) - len(holders) + 0.5) / (len(holders) + 0.5))
            for key in holders:
                count, norm = self.counts[key][word], K1 * (1 - B + B * self.lengths[key] / self.average)
                scores[key] += times * idf * count * (K1 + 1) / (count + norm)
        return scores


def bm25(query: Query) -> list[str]:
    """Return the candidate ids by falling BM25 score of the context."""
    return by_score(query, BM25(query.texts).scores(context_text(query)))


def reverse_order(query: Query) -> list[str]:
    return list(query.ids[::-1])


def oracle(query: Query) -> list[str]:
    """Return the candidate ids by falling relevance, which no model can beat."""
    return by_score(query, query.rel)


def by_score(query: Query, scores: dict[str, float]) -> list[str]:
    """Return the candidate ids by falling score; a candidate that `scores` lacks scores 0."""
    return sorted(query.ids, key=lambda c: -scores.get(c, 0.0))  # a stable sort: ties keep the order given


PLAIN: dict[str, Callable[[Query], list[str]]] = {"input order": input_order, "BM25": bm25}


def every(queries: Sequence[Query], train: Sequence[Query]) -> dict[str, Callable[[Query], list[str]]]:
    """Return name -> baseline, for all baselines that can rank all of `queries`; `train` holds the training queries."""
    found = {"input order": input_order, "reverse order": reverse_order, "BM25": bm25}
    if train and all(isinstance(q.context, tuple) for q in (*queries, *train)):
        found |= {"popularity": popularity(train), "item-kNN": item_knn(train)}
    if train and all(c.cost is not None for q in (*queries, *train) for c in q.candidates):
        cost, relevance = (means(train, value) for value in (lambda q, c: c.cost, lambda q, c: q.rel[c.id]))
        found |= {"cheapest": lambda q: by_score(q, {c: -v for c, v in cost[q.task].items()}),
                  "dearest (largest)": lambda q: by_score(q, cost[q.task]),
                  "best single": lambda q: by_score(q, relevance[q.task]), "kNN": nearest_questions(train)}
    return found | {"oracle": oracle}


def popularity(train: Sequence[Query]) -> Callable[[Query], list[str]]:
    """Return a baseline that ranks items by how many training users have them in the history or as the next item."""
    count = Counter(text for texts in owned(train) for text in texts)
    return lambda query: by_score(query, {c: count[text] for c, text in query.texts.items()})


def item_knn(train: Sequence[Query]) -> Callable[[Query], list[str]]:
    """Return a baseline that scores an item by the sum of its cosines to the items of the history.

    The cosine of two items is: users who have both / sqrt(users of the first * users of the second).
    """
    users: dict[str, set[int]] = {}
    for number, texts in enumerate(owned(train)):
        for text in texts:
            users.setdefault(text, set()).add(number)
    nobody: set[int] = set()

    def rank(query: Query) -> list[str]:
        return by_score(query, {c: sum(len(users.get(h, nobody) & mine) / math.sqrt(len(users[h]) * len(mine))
                                       for h in query.context if h in users)
                                for c, text in query.texts.items() for mine in [users.get(text, nobody)] if mine})

    return rank


def owned(train: Sequence[Query]) -> list[set[str]]:
    """Return the texts of each user's items, those of histories and next items; a user may have several queries."""
    users: dict[str, set[str]] = {}
    for query in train:
        users.setdefault(query.group or query.id, set()).update(
            query.context, (query.texts[c] for c in query.positives))
    return list(users.values())


def means(train: Sequence[Query], value: Callable) -> dict[str, Counter]:
    """Return task -> candidate id -> mean of value(query, candidate) over the training queries."""
    total: dict[str, Counter] = {}
    count: dict[str, Counter] = {}
    for query in train:
        for candidate in query.candidates:
            total.setdefault(query.task, Counter())[candidate.id] += value(query, candidate)
            count.setdefault(query.task, Counter())[candidate.id] += 1
    return {task: Counter({c: v / count[task][c] for c, v in values.items()}) for task, values in total.items()}


def nearest_questions(train: Sequence[Query]) -> Callable[[Query], list[str]]:
    """Return a baseline that ranks by the mean relevance over the nearest training queries of the same task.

    The nearest are the `NEIGHBOURS` queries whose contexts are most alike by BM25.
    """
    shelves: dict[str, dict[str, Query]] = {}  # task -> query id -> query
    for query in train:
        shelves.setdefault(query.task, {})[query.id] = query
    index = {task: BM25({q.id: context_text(q) for q in shelf.values()}) for task, shelf in shelves.items()}

    def rank(query: Query) -> list[str]:
        scores = index[query.task].scores(context_text(query))
        near = [shelves[query.task][q] for q in nlargest(NEIGHBOURS, scores, key=scores.__getitem__)]
        return by_score(query, means(near, lambda q, c: q.rel[c.id])[query.task])

    return rank
