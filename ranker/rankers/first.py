"""Single-token decoding (FIRST, arXiv 2406.15657): one forward pass, the logits of the identifiers give the order.

More than `window` candidates are ranked by a sliding window, as in RankGPT. Nothing is written, so an ask costs its
prompt. Works with any checkpoint; one trained by `objectives/ranknet.py` is trained for it.
"""

import random
from collections.abc import Generator
from dataclasses import dataclass, replace

from ranker.data import Answer, Ask, Query
from ranker.plugins import setting
from ranker.rankers import sliding
from ranker.rankers.sliding import calls  # noqa: F401  the same windows


@dataclass
class Options:
    window: int = setting(20, low=2)  # candidates ordered at a time
    step: int = setting(10, low=1)  # by which it moves
    passes: int = setting(1, low=1)
    depth: int = setting(0, low=0)  # candidates that are ranked, from the head; 0: all

    __post_init__ = sliding.Options.__post_init__


def rank(query: Query, rng: random.Random, options: Options) -> Generator[Ask, Answer, list[str]]:
    """Yield asks that logits answer, receive answers, return candidate ids best first."""
    return (yield from sliding.slide(query, options, by_logits=True))


def sampled_asks(query: Query, rng: random.Random, size: int | None, options: Options) -> list[Ask]:
    """Return a training state: a window of candidates, a positive among them, in random order."""
    return [replace(ask, by_logits=True) for ask in sliding.sampled_asks(query, rng, size, options)]
