"""The queries that must stay in one split: queries of one group, and queries with nearly the same context.

Two contexts are near-duplicates when the sets of their words overlap by at least four fifths (Jaccard). All such pairs
are found, not a sample of them: two sets that overlap so much share one of their rarest words, so only sets that share
one are compared (prefix filtering, Chaudhuri et al., ICDE 2006).
"""

import math
from collections import Counter
from collections.abc import Sequence

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
        rare = sorted(words, key=lambda word: (frequency[word], word))
        prefix = rare[:len(rare) - math.ceil(alike * len(rare)) + 1]
        seen = set()
        for word in prefix:
            for j in holders.setdefault(word, []):
                if j not in seen and alike * len(words) <= len(sets[j]) <= len(words) / alike:
                    seen.add(j)
                    shared = len(words & sets[j])
                    if shared >= alike * (len(words) + len(sets[j]) - shared):
                        pairs.append((i, j))
            holders[word].append(i)
    return pairs
