"""Halving (after OrderChain, arXiv 2504.04801): split the candidates into a better and a worse half, and those again.

All halves of one size are split in parallel: n candidates cost n - 1 asks in ceil(log2 n) rounds. An answer that cannot
be read splits by the order given, and the driver counts it. Ours: OrderChain narrows a scale of categories; a list's
places are one.
"""

import random
from collections.abc import Generator
from dataclasses import dataclass

from ranker.data import Answer, Ask, Query
from ranker.rankers import listwise


@dataclass
class Options:
    pass


def rank(query: Query, rng: random.Random, options: Options) -> Generator[list[Ask], list[Answer], list[str]]:
    """Yield lists of asks, receive their answers, return candidate ids best first."""
    parts = [query.ids]
    while any(len(part) > 1 for part in parts):
        asked = [part for part in parts if len(part) > 1]
        answers = yield [Ask(query, part, "narrow") for part in asked]
        halves = {part: split(part, answer) for part, answer in zip(asked, answers)}
        parts = [half for part in parts for half in halves.get(part, (part,))]
    return [c for part in parts for c in part]


def split(pool: tuple[str, ...], answer: Answer) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the better half, which an answer names, and the other, both in the order given."""
    named = answer.value if answer.ok else pool[:(len(pool) + 1) // 2]
    return tuple(c for c in pool if c in named), tuple(c for c in pool if c not in named)


def calls(n: int, options: Options) -> int:
    """Return the number of asks for n candidates."""
    return max(n - 1, 0)


def sampled_asks(query: Query, rng: random.Random, size: int | None, options: Options) -> list[Ask]:
    """Return a training state: a positive and others, as many as one of the halves that a ranking goes through has."""
    sizes = [len(query.ids)]
    while sizes[-1] > 3:
        sizes.append((sizes[-1] + 1) // 2)
    [drawn] = listwise.sampled_asks(query, rng, size or rng.choice(sizes), listwise.Options())
    return [Ask(query, drawn.pool, "narrow")]
