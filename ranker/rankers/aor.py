"""AoR, aggregation of reasoning (arXiv 2405.12939): of many sampled answers the one with the best reasoning is taken.

Samples are put into buckets by what they decide: the first candidate of an order, or who is eliminated. One bucket is
taken at once. Else a judge gives every chain points beside others of its bucket (local); those of at least `epsilon`,
at most the `keep` best, represent it. Then in `keep` rounds one representative of each bucket stands beside the others
(global), and the bucket of the highest mean wins. While the margin to the second is below `theta`, `extension` more are
sampled, up to `most`; only new chains are judged, and buckets are compared again where representatives changed. One
bucket that is left has its own mean as the margin, as in the published code.

Ours: an order is the Borda mean of the winner's representatives; the judge sees query and candidates; its points are
read by key, and an answer that cannot be read is asked for once more, sampled; unreadable samples are dropped. Where
no chain gets `epsilon` points the largest bucket wins, and the note `majority` counts it. With `judge: majority` nobody
is asked and the largest bucket wins (self-consistency); with `judge: borda` all samples count alike: the controls.
"""

import random
import re
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace

from ranker.data import Answer, Ask, Query
from ranker.decisions import judge_alone
from ranker.plugins import setting
from ranker.rankers import elimination, listwise

BATCH = 5  # chains that are judged alone in one call
Chains = dict[str, list[tuple[float, Answer]]]  # bucket -> (points, answer), the best first


@dataclass
class Options:
    decision: str = setting("order", choices=("order", "eliminate"))  # what is decided by aggregation
    samples: int = setting(20, low=1)
    most: int = setting(40, low=1)  # samples in all
    extension: int = setting(5, low=1)  # samples that are added at a time
    keep: int = setting(3, low=1)  # representatives of a bucket, and rounds of the comparison
    epsilon: float = setting(6.0, low=0.0, high=10.0)  # points that a representative needs
    buckets: int = setting(0, low=0)  # that are judged, the largest; 0: all, as published
    theta: float = setting(2.0, low=0.0)  # margin of points at which nothing more is sampled
    temperature: float = setting(1.0, low=0.01, high=2.0)
    judge: str = setting("judge", choices=("judge", "majority", "borda"))
    judge_role: str = setting("base")  # who judges

    def __post_init__(self):
        if self.most < self.samples:
            raise ValueError(f"most ({self.most}) must be at least samples ({self.samples})")


def rank(query: Query, rng: random.Random, options: Options) -> Generator:
    """Yield asks, receive answers, return candidate ids best first."""
    if options.decision == "order":
        if len(query.ids) < 2:
            return list(query.ids)
        found = yield from decided(Ask(query, query.ids, "order"), options)
        return found or list(query.ids)
    left, dropped = list(query.ids), []
    while len(left) > 1:
        gone = (yield from decided(Ask(query, tuple(left), "eliminate"), options)) or [rng.choice(left)]
        dropped.append(gone[0])
        left.remove(gone[0])
    return left + dropped[::-1]


def decided(ask: Ask, options: Options) -> Generator:
    """Return what the winning bucket decides, candidate ids; nothing where no sample can be read."""
    buckets: dict[str, list[Answer]] = {}
    fresh: dict[str, list[Answer]] = {}  # not judged yet
    best: Chains = {}
    means: dict[str, float] = {}
    drawn = 0
    while drawn < options.most:
        count = min(options.extension if drawn else options.samples, options.most - drawn)
        answers = yield replace(ask, samples=count, sample=drawn, temperature=options.temperature)
        drawn += count
        for answer in answers if count > 1 else [answers]:
            if answer.ok:
                fresh.setdefault(answer.value[0], []).append(answer)
                buckets.setdefault(answer.value[0], []).append(answer)
        if options.judge != "judge" or len(buckets) == 1 and not best:
            break
        largest = sorted(buckets, key=lambda key: -len(buckets[key]))[:options.buckets or None]
        seen = {key: fresh.pop(key) for key in list(fresh) if key in largest}
        if (yield from judged_alone(ask, seen, best, options)):
            means = yield from compared(ask, best, options)
        ranked = sorted(means.values(), reverse=True)
        if ranked and ranked[0] - (ranked[1] if len(ranked) > 1 else 0.0) >= options.theta:
            break
    if not buckets:
        return []
    if options.judge == "borda":
        return borda([answer for found in buckets.values() for answer in found], ask)
    if not means and options.judge == "judge" and len(buckets) > 1:
        yield "majority"
    winner = max(means, key=means.get) if means else max(buckets, key=lambda key: len(buckets[key]))
    return borda([answer for _, answer in best.get(winner, ())] or buckets[winner], ask)


def judged_alone(ask: Ask, fresh: dict[str, list[Answer]], best: Chains, options: Options) -> Generator:
    """Have the new chains of each bucket judged, and keep the best in `best`; tell whether that changed."""
    parts = [(key, found[i:i + BATCH]) for key, found in fresh.items() for i in range(0, len(found), BATCH)]
    asks = [judging(ask, "judge_alone", part, options, before=known(best.get(key, ()))) for key, part in parts]
    before = {key: list(found) for key, found in best.items()}
    for (key, part), points in zip(parts, (yield from points_of(asks))):
        found = best.get(key, []) + [(p, answer) for p, answer in zip(points, part)
                                     if p is not None and p >= options.epsilon]
        if found:
            best[key] = sorted(found, key=lambda pair: -pair[0])[:options.keep]  # stable: older chains first
    return best != before


def compared(ask: Ask, best: Chains, options: Options) -> Generator:
    """Return the mean points of each bucket over the rounds in which its representative was given any."""
    shown = [[found[t % len(found)][1] for found in best.values()] for t in range(options.keep)]
    rounds = yield from points_of([judging(ask, "judge_together", part, options) for part in shown])
    given = {key: [points[i] for points in rounds if points[i] is not None] for i, key in enumerate(best)}
    return {key: sum(points) / len(points) for key, points in given.items() if points}


def points_of(asks: Sequence[Ask]) -> Generator:
    """Return the points of the chains of each ask; one that cannot be read is asked again, sampled, then missing."""
    answers = (yield list(asks)) if asks else []
    again = [i for i, answer in enumerate(answers) if not answer.ok]
    more = (yield [replace(asks[i], temperature=1.0) for i in again]) if again else []
    for i, answer in zip(again, more):
        answers[i] = answer
    return [answer.value if answer.ok else (None,) * judge_alone.chains(ask) for ask, answer in zip(asks, answers)]


def judging(ask: Ask, decision: str, answers: Sequence[Answer], options: Options, **told: str) -> Ask:
    """Return the ask that shows chains to the judge, one a line."""
    chains = "\n".join(f"Chain {k}: {line(answer.text)}" for k, answer in enumerate(answers, 1))
    return Ask(ask.query, ask.pool, decision, told=(("chains", chains), *told.items()), role=options.judge_role)


def known(found: Sequence[tuple[float, Answer]]) -> str:
    """Return what the judge is told of the best and the worst representative so far."""
    return "\n".join(f"A chain that was given {points:g} points: {line(answer.text)}"
                     for points, answer in ((found[0], found[-1]) if len(found) > 1 else found))


def line(text: str) -> str:
    """Return a chain as one line that names no chain itself."""
    return re.sub(r"\b(chain) +(?=\d)", r"\1-", " ".join(text.split()), flags=re.IGNORECASE)


def borda(answers: Sequence[Answer], ask: Ask) -> list[str]:
    """Return the candidates by the mean of (n - place) over lists, ties in the order shown; what is eliminated, by
    votes."""
    points = {c: 0.0 for c in ask.pool}
    for answer in answers:
        for place, c in enumerate(answer.value, 1):
            points[c] += len(ask.pool) - place
    order = sorted(ask.pool, key=lambda c: -points[c])
    return order if ask.decision == "order" else order[:1]


def calls(n: int, options: Options) -> int:
    """Return the most asks that n candidates can cost: every sample a bucket of its own, and all are judged anew."""
    decisions = 0 if n < 2 else 1 if options.decision == "order" else n - 1
    if options.judge != "judge":
        return decisions * options.samples
    rounds = 1 + -(-(options.most - options.samples) // options.extension)
    return decisions * (options.most + 2 * options.most + 2 * options.keep * rounds)


def sampled_asks(query: Query, rng: random.Random, size: int | None, options: Options) -> list[Ask]:
    """Return a training state of the decision that is aggregated."""
    if options.decision == "order":
        return listwise.sampled_asks(query, rng, size, listwise.Options())
    return elimination.sampled_asks(query, rng, size, elimination.Options())
