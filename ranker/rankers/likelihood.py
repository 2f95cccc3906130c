"""Ranking by likelihood: a candidate's score is the log-probability of its text as a completion; nothing is written.

One packed row a query: the prompt (the context) is computed once, behind it stands every candidate. `score` is the
`sum` over the tokens of a text and its end, their `mean`, or `pmi`: the sum less that of the text without a context,
so that common texts do not win (one more row, of which a text that stood there before is not computed again). With
`direction: query` it is the other way round: the log-probability of the query given a candidate, one row a candidate
(UPR, arXiv 2204.07496), for passages.

Any model ranks like that. One trained by `objectives/ranknet.py` or `objectives/plackett_luce.py` on the draw
`candidates` is trained for it.
"""

import random
from collections.abc import Generator
from dataclasses import dataclass

from ranker.data import Answer, Ask, Query
from ranker.plugins import setting
from ranker.rankers import listwise


@dataclass
class Options:
    score: str = setting("mean", choices=("sum", "mean", "pmi"))  # of a candidate, see above
    direction: str = setting("candidate", choices=("candidate", "query"))  # what is said: the candidate or the query
    pool: int = setting(0, low=0)  # candidates of a query in a training step; 0: all

    def __post_init__(self):
        if self.pool == 1:
            raise ValueError("pool (1) must be 0 (all) or at least 2")
        if (self.score, self.direction) == ("pmi", "query"):
            raise ValueError("pmi scores candidates; direction: query takes sum or mean")


def rank(query: Query, rng: random.Random, options: Options) -> Generator[list[Ask], list[Answer], list]:
    """Yield one list of asks, receive their answers, return (candidate id, score) pairs, best first."""
    if len(query.ids) < 2:
        return list(query.ids)
    asks = _asks(query, query.ids, options)
    if options.score == "pmi":
        asks.append(Ask(query, query.ids, "likely_alone"))
    answers = yield asks
    if not all(answer.ok and answer.scores for answer in answers):  # of somebody who wrote an order instead
        return listwise.completed(answers[0], query.ids) if len(asks[0].pool) > 1 else list(query.ids)
    if options.direction == "query":
        scores = [sum(per_text(answer, options.score)) for answer in answers]
    else:
        scores = per_text(answers[0], options.score)
        if options.score == "pmi":
            scores = [said - alone for said, alone in zip(scores, answers[1].scores)]
    pairs = list(zip(query.ids, scores))
    return sorted(pairs, key=lambda pair: -pair[1])  # stable: ties keep the order given


def per_text(answer: Answer, score: str) -> list[float]:
    """Return the score of each text of an answer."""
    return [s / n if score == "mean" else s for s, n in zip(answer.scores, answer.lengths)]


def calls(n: int, options: Options) -> int:
    """Return the number of asks for n candidates."""
    return 0 if n < 2 else n if options.direction == "query" else 1 + (options.score == "pmi")


def sampled_asks(query: Query, rng: random.Random, size: int | None, options: Options) -> list[Ask]:
    """Return a training state: candidates, a positive among them, in random order."""
    [ask] = listwise.sampled_asks(query, rng, size or options.pool or None, listwise.Options())
    return _asks(query, ask.pool, options)


def _asks(query: Query, pool: tuple[str, ...], options: Options) -> list[Ask]:
    if options.direction == "query":
        return [Ask(query, (c,), "asked") for c in pool]
    return [Ask(query, pool, "likely")]
