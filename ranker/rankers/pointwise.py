"""Pointwise ranking (ERank, arXiv 2509.00520): every candidate alone is given a whole number from 0 to 10, all at once.

The `score` of a candidate is the number times the policy's probability of it (`product`, as published, so that equal
numbers are told apart by how sure the policy is), the mean of 0 to 10 under its probabilities (`expectation`), or the
number as it is (`written`, all that an API gives). The probabilities are shares of the eleven numbers, so 10 may be
several tokens. Ties keep the order given; a candidate whose answer cannot be read comes last, and the driver counts it.

`first_stage` (published: 0.2, with BM25) mixes in a first stage: with that weight its z-scores within the query, with the
rest those of the scores above. A query holds no scores of a first stage, but the order that it left: ours takes minus the
logarithm of the place there. On TREC DL19 that correlates with the scores of the BM25 that made the order by 0.97 (mean over
queries); BM25 over the query's own candidates, which no longer knows which words are rare, by 0.29. Where the order
given is no first stage's, as after shuffling, this mixes in noise.
"""

import math
import random
from collections.abc import Generator
from statistics import fmean, pstdev

from ranker.data import Answer, Ask, Query
from ranker.errors import UserError
from ranker.rankers import listwise

SCORES = ("product", "expectation", "written")


def rank(query: Query, rng: random.Random, *, score: str = "product", first_stage: float = 0.0,
         pool: int = 0) -> Generator[list[Ask], list[Answer], list[str]]:
    """Yields one list of asks, receives their answers, returns candidate ids best first."""
    if len(query.ids) < 2:
        return list(query.ids)
    answers = yield [Ask(query, (c,), "score") for c in query.ids]
    values = {c: value(answer, score) for c, answer in zip(query.ids, answers) if answer.ok}
    if first_stage:
        first = standardised(places(query))
        values = {c: first_stage * first[c] + (1 - first_stage) * z for c, z in standardised(values).items()}
    return sorted(query.ids, key=lambda c: -values.get(c, -math.inf))  # stable: ties keep the order given


def value(answer: Answer, score: str) -> float:
    """The number that a readable answer stands for. Raises UserError where it has no probabilities but they are needed."""
    [number] = answer.value
    if score == "written":
        return number
    if not answer.scores:
        raise UserError(f"ranker.score={score} needs the probabilities of the numbers, which only the local policy gives;"
                        " rank by the numbers alone: ranker.score=written")
    return number * answer.scores[number] if score == "product" else sum(k * p for k, p in enumerate(answer.scores))


def places(query: Query) -> dict[str, float]:
    """What the order given says of each candidate."""
    return {c: -math.log(place) for place, c in enumerate(query.ids, 1)}


def standardised(values: dict[str, float]) -> dict[str, float]:
    """z-scores; all 0 where all are equal."""
    mean, deviation = (fmean(values.values()), pstdev(values.values())) if values else (0.0, 0.0)
    return {c: (v - mean) / deviation if deviation else 0.0 for c, v in values.items()}


def calls(n: int, *, score: str = "product", first_stage: float = 0.0, pool: int = 0) -> int:
    """The number of asks for n candidates."""
    return n if n > 1 else 0


def sampled_ask(query: Query, rng: random.Random, size: int | None = None, *, score: str = "product", first_stage: float = 0.0, pool: int = 0) -> Ask:
    """A random candidate."""
    return Ask(query, (rng.choice(query.ids),), "score")


def sampled_asks(query: Query, rng: random.Random, *, score: str = "product", first_stage: float = 0.0, pool: int = 0) -> list[Ask]:
    """A training state: an ask about every candidate (or about a positive and `pool` - 1 others), since the reward compares them."""
    return [Ask(query, (c,), "score") for c in listwise.sampled_ask(query, rng, pool or None).pool]


def check(where: str, *, score: str = "product", first_stage: float = 0.0, pool: int = 0) -> None:
    if score not in SCORES:
        raise UserError(f"{where}: ranker.score must be one of {', '.join(SCORES)}, got '{score}'")
    if not 0 <= first_stage < 1 or pool < 0 or pool == 1:
        raise UserError(f"{where}: ranker.first_stage ({first_stage:g}) must be from 0 to below 1, and ranker.pool ({pool}) 0 (all) or at least 2")
