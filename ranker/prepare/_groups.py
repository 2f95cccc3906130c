"""The queries that must stay in one split: queries of one group, and queries with nearly the same context.

Two contexts are near-duplicates when the sets of their words overlap by at least four fifths (Jaccard). All such pairs
are found, not a sample of them: two sets that overlap so much share one of their rarest words, so only sets that share
one are compared (prefix filtering, Chaudhuri et al., ICDE 2006).
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from ranker.evaluation.baselines import tokens

ALIKE = 0.8  # the Jaccard similarity from which on contexts are near-duplicates


def merged(groups: Sequence[str], contexts: Sequence[str], alike: float = ALIKE) -> list[str]:
    """Return a group for every query: the first of all groups that near-duplicate contexts link to the query's own."""
    leader = {group: group for group in groups}

    def find(group: str) -> str:
        while leader[group] != group:
            leader[group] = group = leader[leader[group]]
        return group

    order = {group: i for i, group in reversed(list(enumerate(groups)))}  # group -> its first place
    for i, j in near_duplicates([frozenset(tokens(context)) for context in contexts], alike):
        first, second = sorted((find(groups[i]), find(groups[j])), key=order.__getitem__)
        leader[second] = first
    return [find(group) for group in groups]


def near_duplicates(sets: Sequence[frozenset[str]], alike: float) -> list[tuple[int, int]]:
    """Return pairs i > j that link all sets with a Jaccard similarity of at least `alike`.

    Equal sets are each paired with the first of them only.
    """
    frequency = Counter(word for words in sets for word in words)
    first: dict[frozenset[str], int] = {}
    holders: dict[str, list[int]] = {}  # word -> the sets that have it among their rarest words
    pairs = []
    for i, words in enumerate(sets):
        if words in first:
            pairs.append((i, first[words]))
            continue
        first[words] = i
        seen = set()
        for word in rarest(words, frequency, alike):
            for j in holders.setdefault(word, []):
                if j not in seen:
                    seen.add(j)
                    if are_alike(words, sets[j], alike):
                        pairs.append((i, j))
            holders[word].append(i)
    return pairs


def finder(contexts: Iterable[str], alike: float = ALIKE) -> Callable[[str], bool]:
    """Return a function that tells whether a context is a near-duplicate of any of `contexts`."""
    sets = {frozenset(tokens(context)) for context in contexts}
    frequency = Counter(word for words in sets for word in words)
    holders: dict[str, list[frozenset[str]]] = {}
    for words in sets:
        for word in rarest(words, frequency, alike):
            holders.setdefault(word, []).append(words)

    def found(context: str) -> bool:
        words = frozenset(tokens(context))
        return words in sets or any(are_alike(words, other, alike) for word in rarest(words, frequency, alike)
                                    for other in holders.get(word, ()))
    return found


def rarest(words: frozenset[str], frequency: Counter, alike: float) -> list[str]:
    """Return so many of the rarest words that a set without any of them is not alike."""
    order = sorted(words, key=lambda word: (frequency[word], word))
    return order[:len(order) - math.ceil(alike * len(order)) + 1]


def are_alike(one: frozenset[str], other: frozenset[str], alike: float) -> bool:
    """Tell whether two sets have a Jaccard similarity of at least `alike`."""
    if not alike * len(one) <= len(other) <= len(one) / alike:
        return False
    shared = len(one & other)
    return shared >= alike * (len(one) + len(other) - shared)
