"""Iterative elimination (IRanker, arXiv 2506.21638 section 3): drop the least likely candidate until one is left.

n candidates cost n-1 asks. An ask that cannot be read drops a seeded random candidate, so that a model that says
nothing ranks at chance; the driver counts it as failed. Ours are the options:
- `pool: append` leaves the list as it is and states at the prompt's end what is out, so that all asks about a query
  share all but the end of their prompt, which is computed once. `rewrite`, the paper's, writes the list anew.
- `drop: k` lets an ask name up to k candidates.
- `final: m` stops thinking when m are left: one forward pass orders them by the logits of their identifiers.
"""

import random
from collections.abc import Generator
from dataclasses import dataclass

from ranker.data import Answer, Ask, Query
from ranker.plugins import setting


@dataclass
class Options:
    pool: str = setting("rewrite", choices=("rewrite", "append"))  # how the pool shrinks, see above
    drop: int = setting(1, low=1)  # candidates that an ask may name
    final: int = setting(0, low=0)  # so many left are ordered by logits; 0: never

    def __post_init__(self):
        if self.final == 1:
            raise ValueError("final (1) must be 0 (never) or at least 2")


def rank(query: Query, rng: random.Random, options: Options) -> Generator[Ask, Answer, list[str]]:
    """Yield asks, receive answers, return candidate ids best first."""
    left, dropped = list(query.ids), []
    while len(left) > 1:
        if len(left) <= options.final:
            answer = yield Ask(query, tuple(left), "eliminate", drop=len(left), by_logits=True)
        else:
            shown, out = (query.ids, tuple(dropped)) if options.pool == "append" else (tuple(left), None)
            answer = yield Ask(query, shown, "eliminate", out=out, drop=min(options.drop, len(left) - 1))
        gone = answer.value if answer.ok else (rng.choice(left),)
        dropped += gone
        left = [c for c in left if c not in gone]
    return left + dropped[::-1]


def calls(n: int, options: Options) -> int:
    """Return the number of asks for n candidates, if each drops as many as it may."""
    count = 0
    while n > 1:
        n -= n if n <= options.final else min(options.drop, n - 1)
        count += 1
    return count


def sampled_asks(query: Query, rng: random.Random, size: int | None, options: Options) -> list[Ask]:
    """Return a training state as in the paper: one positive and k uniform negatives, k = 1..n-1 (or size-1), in random
    order.

    Of several positives (ties at the best grade) one is drawn; a negative is any candidate below the best grade.
    A query whose candidates are all of one grade has no negatives and gives a pool of any candidates. With `append` all
    candidates are shown in random order, and the others are out.
    """
    positive = rng.choice(query.positives)
    negatives = [c for c in query.ids if query.rel[c] < query.rel[positive]] or [c for c in query.ids if c != positive]
    count = rng.randint(1, len(negatives)) if size is None else min(size - 1, len(negatives))
    left = [positive, *rng.sample(negatives, count)]
    rng.shuffle(left)
    most = min(options.drop, len(left) - 1)
    if options.pool == "rewrite":
        return [Ask(query, tuple(left), "eliminate", drop=most)]
    out = [c for c in query.ids if c not in left]
    shown = tuple(rng.sample(query.ids, len(query.ids)))
    return [Ask(query, shown, "eliminate", out=tuple(rng.sample(out, len(out))), drop=most)]
