"""Pointwise ranking (ERank, arXiv 2509.00520): every candidate alone is given a whole number from 0 to 10, all at once.

The `score` of a candidate is the number times the policy's probability of it (`product`, as published, so that equal
numbers are told apart by how sure the policy is), the mean of 0 to 10 under its probabilities (`expectation`), or the
number as it is (`written`, all that an API gives). The probabilities are shares of the eleven numbers, so 10 may be
several tokens. Ties keep the order given; a candidate whose answer cannot be read comes last, and the driver counts it.

`first_stage` (published: 0.2, with BM25) mixes in a first stage: with that weight its z-scores within the query, with
the rest those of the scores above. A query holds no scores of a first stage, but the order that it left: ours takes
minus the logarithm of the place there. On TREC DL19 that correlates with the scores of the BM25 that made the order by
0.97 (mean over queries); BM25 over the query's own candidates, which no longer knows which words are rare, by 0.29.
Where the order given is no first stage's, as after shuffling, this mixes in noise.
"""

import math
import random
from collections.abc import Generator
from dataclasses import dataclass
from statistics import fmean, pstdev

from ranker.data import Answer, Ask, Query
from ranker.errors import UserError
from ranker.plugins import setting
from ranker.rankers import listwise


@dataclass
class Options:
    score: str = setting("product", choices=("product", "expectation", "written"))  # of a candidate, see above
    first_stage: float = setting(0.0, low=0.0, high=0.99)  # weight of the order given
    pool: int = setting(0, low=0)  # candidates of a query in a training step; 0: all

    def __post_init__(self):
        if self.pool == 1:
            raise ValueError("pool (1) must be 0 (all) or at least 2")


def rank(query: Query, rng: random.Random, options: Options) -> Generator[list[Ask], list[Answer], list[str]]:
    """Yield one list of asks, receive their answers, return candidate ids best first."""
    if len(query.ids) < 2:
        return list(query.ids)
    answers = yield [Ask(query, (c,), "score") for c in query.ids]
    values = {c: value(answer, options.score) for c, answer in zip(query.ids, answers) if answer.ok}
    if options.first_stage:
        first = standardised(places(query))
        share = options.first_stage
        values = {c: share * first[c] + (1 - share) * z for c, z in standardised(values).items()}
    return sorted(query.ids, key=lambda c: -values.get(c, -math.inf))  # stable: ties keep the order given


def value(answer: Answer, score: str) -> float:
    """Return the number that a readable answer stands for. Raise UserError where it has no probabilities but they are
    needed."""
    [number] = answer.value
    if score == "written":
        return number
    if not answer.scores:
        raise UserError(f"ranker.score={score} needs the probabilities of the numbers, "
                        "which only the local policy gives;"
                        " rank by the numbers alone: ranker.score=written")
    return number * answer.scores[number] if score == "product" else sum(k * p for k, p in enumerate(answer.scores))


def places(query: Query) -> dict[str, float]:
    """Return what the order given says of each candidate."""
    return {c: -math.log(place) for place, c in enumerate(query.ids, 1)}


def standardised(values: dict[str, float]) -> dict[str, float]:
    """Return z-scores; all 0 where all are equal."""
    mean, deviation = (fmean(values.values()), pstdev(values.values())) if values else (0.0, 0.0)
    return {c: (v - mean) / deviation if deviation else 0.0 for c, v in values.items()}


def calls(n: int, options: Options) -> int:
    """Return the number of asks for n candidates."""
    return n if n > 1 else 0


def sampled_asks(query: Query, rng: random.Random, size: int | None, options: Options) -> list[Ask]:
    """Return a training state: an ask about every candidate (or about a positive and `pool` - 1 others).

    The reward compares them.
    """
    [drawn] = listwise.sampled_asks(query, rng, size or options.pool or None, listwise.Options())
    return [Ask(query, (c,), "score") for c in drawn.pool]
