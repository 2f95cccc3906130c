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


def bm25(query: Query) -> list[str]:
    """Candidate ids by falling BM25 score."""
    documents = {c.id: Counter(tokens(c.text)) for c in query.candidates}
    lengths = {c: sum(counts.values()) for c, counts in documents.items()}
    average = max(sum(lengths.values()) / len(lengths), 1e-9)
    context = query.context if isinstance(query.context, str) else " ".join(query.context)
    scores = dict.fromkeys(documents, 0.0)
    for word, times in Counter(tokens(context)).items():
        frequency = sum(word in counts for counts in documents.values())
        idf = math.log(1 + (len(documents) - frequency + 0.5) / (frequency + 0.5))
        for c, counts in documents.items():
            if word in counts:
                norm = K1 * (1 - B + B * lengths[c] / average)
                scores[c] += times * idf * counts[word] * (K1 + 1) / (counts[word] + norm)
    position = {c: i for i, c in enumerate(query.ids)}
    return sorted(query.ids, key=lambda c: (-scores[c], position[c]))
