"""Setwise ranking (Rank-R1, arXiv 2503.06034; its search: arXiv 2310.09497): the best `depth` by a heapsort that
compares many at once.

The list is a heap in which every place has up to `children` below it. One ask shows a candidate with those below it, in
an order shuffled anew, and wants the best; a child that wins changes places with its parent and is compared further
down. The best `depth` (0: all) are taken from the top; the rest keeps the order given. With `votes` each comparison is
asked so many times at once, in different orders, and the most named one wins, ties by lot. Asks about a query follow
one another.

An answer that cannot be read leaves the parent where it is, as published, but is counted by the driver. A model that
says nothing so does not leave the order given: whatever stood last takes the place of each one taken from the top.
"""

import random
from collections import Counter
from collections.abc import Generator
from dataclasses import dataclass, replace

from ranker.data import Answer, Ask, Query
from ranker.plugins import setting
from ranker.rankers import elimination


@dataclass
class Options:
    children: int = setting(19, low=1)  # candidates below each in the heap
    depth: int = setting(10, low=0)  # candidates that are taken from its top; 0: all
    votes: int = setting(1, low=1)  # asks for one comparison


Asking = Generator[Ask | list[Ask], Answer | list[Answer], str | list[str] | None]


def rank(query: Query, rng: random.Random, options: Options) -> Asking:
    """Yield asks (lists of them with several votes), receive answers, return candidate ids best first."""
    heap, best = list(query.ids), []
    children, votes, wanted = options.children, options.votes, min(options.depth or len(query.ids), len(query.ids))
    for place in reversed(range(len(heap))):
        yield from sift(query, rng, heap, place, children, votes)
    while len(best) < wanted:
        if best:
            yield from sift(query, rng, heap, 0, children, votes)
        heap[0], heap[-1] = heap[-1], heap[0]
        best.append(heap.pop())
    return best + [c for c in query.ids if c not in best]


def sift(query: Query, rng: random.Random, heap: list[str], place: int, children: int, votes: int) -> Asking:
    """Move the candidate at `place` down, until it is preferred to all below it."""
    while (first := children * place + 1) < len(heap):
        places = {heap[i]: i for i in (place, *range(first, min(first + children, len(heap))))}
        down = places[(yield from preferred(query, rng, list(places), votes))]
        if down == place:
            return
        heap[place], heap[down] = heap[down], heap[place]
        place = down


def preferred(query: Query, rng: random.Random, pool: list[str], votes: int) -> Asking:
    """Return the candidate that most answers name; the first of the pool where none can be read."""
    asks = [Ask(query, tuple(rng.sample(pool, len(pool))), "pick") for _ in range(votes)]
    answers = (yield asks) if votes > 1 else [(yield asks[0])]
    named = Counter(answer.value[0] for answer in answers if answer.ok)
    return rng.choice([c for c in named if named[c] == max(named.values())] or pool[:1])


def calls(n: int, options: Options) -> int:
    """Return the most asks that n candidates can cost: every comparison won by a child. Random orders cost a little
    less."""
    children, depth = options.children, options.depth
    built = sum(levels(place, n, children) for place in range(n))
    return options.votes * (built + sum(levels(0, n - taken, children) for taken in range(1, min(depth or n, n))))


def levels(place: int, size: int, children: int) -> int:
    """Return how many levels of a heap of `size` lie below a place."""
    count = 0
    while (place := children * place + 1) < size:
        count += 1
    return count


def sampled_asks(query: Query, rng: random.Random, size: int | None, options: Options) -> list[Ask]:
    """Return a training state: one positive and up to `children` negatives in random order."""
    most = options.children + 1
    drawn = elimination.sampled_asks(query, rng, min(size or most, most), elimination.Options())
    return [replace(ask, decision="pick") for ask in drawn]
