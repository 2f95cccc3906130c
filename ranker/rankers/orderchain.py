"""OrderChain-style (arXiv 2504.04801): a grade for every candidate, found from coarse to fine by halving its range.

With `chain: turns` every division is an ask of its own, all candidates at once; with `one_pass` the policy writes the
whole chain. `mask: hard` goes on inside the range that was named. `soft` writes nothing and never decides: every range
is scored as a completion, a grade's probability is the product along its chain, and the mean grade ranks. An answer
that cannot be read takes the lower half. Where the right grade is known, the notes `wrong at level N` count divisions
that were wrong though those before were right. Ours: the arity and the tree (two parts, the lower one larger), since
the paper's are not to be had, and relevance as the scale. `rankers/halving.py` halves the list instead.
"""

import math
import random
from collections.abc import Generator
from dataclasses import dataclass
from itertools import count

from ranker.data import Answer, Ask, Query
from ranker.decisions import range as ranges
from ranker.plugins import setting


@dataclass
class Options:
    classes: int = setting(8, low=2, high=64)  # grades
    chain: str = setting("turns", choices=("turns", "one_pass"))
    mask: str = setting("hard", choices=("hard", "soft"))
    tree: list = setting([])  # nested pairs, such as [[[0, 1], 2], [3, 4]]; empty: halves

    def __post_init__(self):
        self.divisions = ranges.tree_of(self.tree, self.classes)
        if self.divisions and self.chain == "one_pass":
            raise ValueError("a tree is told turn by turn; chain: one_pass halves")
        if (self.chain, self.mask) == ("one_pass", "soft"):
            raise ValueError("mask: soft scores the ranges of turns; chain: one_pass takes mask: hard")


def rank(query: Query, rng: random.Random, options: Options) -> Generator[list[Ask], list[Answer], list]:
    """Yield lists of asks, receive their answers, return (candidate id, grade) pairs, best first."""
    if len(query.ids) < 2:
        return list(query.ids)
    way = one_pass if options.chain == "one_pass" else soft if options.mask == "soft" else turns
    grades = yield from way(query, options)
    return sorted(grades.items(), key=lambda pair: -pair[1])  # stable: ties keep the order given


def turns(query: Query, options: Options) -> Generator[list[Ask], list[Answer], dict[str, float]]:
    now = {c: (0, options.classes - 1) for c in query.ids}
    for level in count(1):
        wide = [c for c, span in now.items() if span[0] < span[1]]
        if not wide:
            return {c: float(low) for c, (low, _) in now.items()}
        asks = [asked(query, c, now[c], options) for c in wide]
        answers = yield asks
        for c, ask, answer in zip(wide, asks, answers):
            before, now[c] = now[c], answer.value if answer.ok else ranges.halves(now[c], options.divisions)[0]
            grade = ranges.grade(ask, options.classes)
            if query.labelled and before[0] <= grade <= before[1] and not now[c][0] <= grade <= now[c][1]:
                yield f"wrong at level {level}"


def one_pass(query: Query, options: Options) -> Generator[list[Ask], list[Answer], dict[str, float]]:
    whole = 0, options.classes - 1
    answers = yield [Ask(query, (c,), "range_chain", told=ranges.told(options.classes, whole)[:1]) for c in query.ids]
    return {c: float((answer.value or (whole,))[-1][0]) for c, answer in zip(query.ids, answers)}


def soft(query: Query, options: Options) -> Generator[list[Ask], list[Answer], dict[str, float]]:
    spans = divided((0, options.classes - 1), options.divisions)
    answers = iter((yield [asked(query, c, span, options) for c in query.ids for span in spans]))
    grades = {}
    for c in query.ids:
        logs = {(0, options.classes - 1): 0.0}  # range -> log-probability
        for span in spans:  # from the widest on
            scores = next(answers).scores or (0.0, 0.0)
            total = max(scores) + math.log(sum(math.exp(s - max(scores)) for s in scores))
            for half, score in zip(ranges.halves(span, options.divisions), scores):
                logs[half] = logs[span] + score - total
        grades[c] = sum(low * math.exp(log) for (low, high), log in logs.items() if low == high)
    return grades


def divided(span: ranges.Range, tree: ranges.Tree) -> list[ranges.Range]:
    """Return a range and all ranges within it that are divided, each before its parts."""
    return [] if span[0] == span[1] else [span, *(s for part in ranges.halves(span, tree) for s in divided(part, tree))]


def asked(query: Query, candidate: str, span: ranges.Range, options: Options) -> Ask:
    decision = "range_likely" if options.mask == "soft" else "range"
    return Ask(query, (candidate,), decision, told=ranges.told(options.classes, span, options.divisions))


def calls(n: int, options: Options) -> int:
    """Return the most asks that n candidates can cost."""
    deepest = max(len(ranges.chain(grade, options.classes, options.divisions)) - 1 for grade in range(options.classes))
    each = 1 if options.chain == "one_pass" else options.classes - 1 if options.mask == "soft" else deepest
    return n * each if n > 1 else 0


def sampled_asks(query: Query, rng: random.Random, size: int | None, options: Options) -> list[Ask]:
    """Return a training state: a candidate, as often a best one as another, and a division on the way to its grade."""
    others = [c for c in query.ids if c not in query.positives] or list(query.ids)
    candidate = rng.choice(query.positives if rng.random() < 0.5 else others)
    whole = Ask(query, (candidate,), "range_chain", told=ranges.told(options.classes, (0, options.classes - 1))[:1])
    if options.chain == "one_pass":
        return [whole]
    span = rng.choice(ranges.chain(ranges.grade(whole, options.classes), options.classes, options.divisions)[:-1])
    return [Ask(query, (candidate,), "range", told=ranges.told(options.classes, span, options.divisions))]
