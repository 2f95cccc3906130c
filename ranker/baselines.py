"""Rankings that need no model: the order given, and BM25 between the context and the candidates' texts.

BM25 (k1 0.9, b 0.4, as Anserini's defaults) takes its document frequencies from the pool, since a reranker has no
corpus; ties keep the order given.
"""

import math
import re
from collections import Counter

from ranker.data import Query

K1, B = 0.9, 0.4
_WORD = re.compile(r"\w+")


def tokens(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def input_order(query: Query) -> list[str]:
    return list(query.ids)


def context_text(query: Query) -> str:
    return query.context if isinstance(query.context, str) else " ".join(query.context)


class BM25:
    """Scores of a text against documents (id -> text) that also give the document frequencies."""

    def __init__(self, documents: dict[str, str]):
        self.counts = {key: Counter(tokens(text)) for key, text in documents.items()}
        self.lengths = {key: sum(counts.values()) for key, counts in self.counts.items()}
        self.average = max(sum(self.lengths.values()) / max(len(self.lengths), 1), 1e-9)
        self.holders: dict[str, list[str]] = {}  # word -> the documents that hold it
        for key, counts in self.counts.items():
            for word in counts:
                self.holders.setdefault(word, []).append(key)

    def scores(self, text: str) -> dict[str, float]:
        """Document id -> score, 0 for one that shares no word."""
        scores = dict.fromkeys(self.counts, 0.0)
        for word, times in Counter(tokens(text)).items():
            holders = self.holders.get(word, ())
            idf = math.log(1 + (len(scores) - len(holders) + 0.5) / (len(holders) + 0.5))
            for key in holders:
                count, norm = self.counts[key][word], K1 * (1 - B + B * self.lengths[key] / self.average)
                scores[key] += times * idf * count * (K1 + 1) / (count + norm)
        return scores


def bm25(query: Query) -> list[str]:
    """Candidate ids by falling BM25 score."""
    scores = BM25(query.texts).scores(context_text(query))
    return sorted(query.ids, key=lambda c: -scores[c])  # stable: ties keep the order given
