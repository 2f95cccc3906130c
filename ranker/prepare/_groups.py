"""Which queries must stay in one split: those of one group, and those whose contexts nearly are the same.

Two contexts are near-duplicates when the sets of their words overlap by at least four fifths (Jaccard). The join is
exact, not sampled: two sets that alike share one of their rarest words, so only holders of those are compared
(prefix filtering, Chaudhuri et al., ICDE 2006).
"""

import math
from collections import Counter
from collections.abc import Sequence

from ranker.evaluation.baselines import tokens

ALIKE = 0.8


def merged(groups: Sequence[str], contexts: Sequence[str], alike: float = ALIKE) -> list[str]:
    """A group for every query: the first group among all that are linked to its own by near-duplicate contexts."""
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
    """Pairs i > j that link all sets of at least `alike` Jaccard similarity; of equal sets each is paired with the
    first."""
    frequency = Counter(word for words in sets for word in words)
    first: dict[frozenset[str], int] = {}
    holders: dict[str, list[int]] = {}  # rare word -> the sets that hold it in their prefix
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
