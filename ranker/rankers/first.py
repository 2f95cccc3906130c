"""Single-token decoding (FIRST, arXiv 2406.15657): one forward pass, the logits of the identifiers give the order.

More than `window` candidates are ranked by a sliding window, as in RankGPT. Nothing is written, so an ask costs its
prompt. Works with any checkpoint; one trained by `objectives/ranknet.py` is trained for it.
"""

import random
from collections.abc import Generator
from dataclasses import replace

from ranker.data import Answer, Ask, Query
from ranker.rankers import sliding
from ranker.rankers.sliding import calls, check  # noqa: F401  the same windows


def rank(query: Query, rng: random.Random, *, window: int = 20, step: int = 10, passes: int = 1, depth: int = 0) -> Generator[Ask, Answer, list[str]]:
    """Yields asks that logits answer, receives answers, returns candidate ids best first."""
    return (yield from sliding.slide(query, window, step, passes, depth, by_logits=True))


def sampled_ask(query: Query, rng: random.Random, size: int | None = None, *, window: int = 20, **same) -> Ask:
    """A training state: a window of candidates, a positive among them, in random order."""
    return replace(sliding.sampled_ask(query, rng, size, window=window), by_logits=True)
