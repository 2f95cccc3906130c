"""Narrow the grade of the one candidate shown to one of two ranges, as OrderChain does (arXiv 2504.04801).

Grades go from 0 to `classes` - 1 and are the candidate's relevance in shares of the query's best. An ask tells the
`scale`, such as `0..7`, and the range `now`, which is divided: its lower half has one grade more where they are odd,
unless a tree says how ranges are divided.
"""

import re

from ranker.answers import FOREIGN, MISSING
from ranker.data import Answer, Ask

TOLD = ("scale", "now", "lower", "upper")
Range = tuple[int, int]  # the lowest and the highest grade
Tree = dict[Range, tuple[Range, Range]]  # how ranges are divided; empty: in halves
_RANGE = re.compile(r"(\d{1,4})(?:\s*(?:\.\.|-|to)\s*(\d{1,4}))?")


def tree_of(pairs: list, classes: int) -> Tree:
    """Return how nested pairs divide ranges: [[0, 1], 2] divides 0..2 into 0..1 and 2, and 0..1 into 0 and 1.

    Raise ValueError for what are no pairs, or not all grades in order.
    """
    found: Tree = {}

    def span(node) -> Range:
        if type(node) is int:
            return node, node
        if not isinstance(node, list) or len(node) != 2:
            raise ValueError(f"tree must be nested pairs of grades, such as [[0, 1], 2]; got {node}")
        lower, upper = map(span, node)
        if lower[1] + 1 != upper[0]:
            raise ValueError(f"tree: {shown(upper)} does not follow {shown(lower)}")
        found[lower[0], upper[1]] = lower, upper
        return lower[0], upper[1]

    if pairs and span(pairs) != (0, classes - 1):
        raise ValueError(f"tree must hold the grades 0 to {classes - 1}")
    return found


def halves(span: Range, tree: Tree | None = None) -> tuple[Range, Range]:
    """Return the two parts of a range of several grades."""
    if tree:
        return tree[span]
    low, high = span
    middle = low + (high - low) // 2
    return (low, middle), (middle + 1, high)


def chain(grade: int, classes: int, tree: Tree | None = None) -> list[Range]:
    """Return the ranges that hold a grade, from the whole scale to itself."""
    found = [(0, classes - 1)]
    while found[-1][0] < found[-1][1]:
        found += [half for half in halves(found[-1], tree) if half[0] <= grade <= half[1]]
    return found


def grade(ask: Ask, classes: int) -> int:
    """Return the right grade of the candidate shown."""
    [candidate] = ask.left
    return round((classes - 1) * ask.query.rel[candidate] / (max(ask.query.relevance) or 1.0))


def shown(span: Range) -> str:
    return str(span[0]) if span[0] == span[1] else f"{span[0]}..{span[1]}"


def read(text: str) -> Range | None:
    """Return the range that a text is, None for any other text."""
    found = _RANGE.fullmatch(text.strip())
    return (int(found[1]), int(found[2] or found[1])) if found else None


def told(classes: int, now: Range, tree: Tree | None = None) -> tuple[tuple[str, str], ...]:
    """Return what an ask tells."""
    lower, upper = halves(now, tree)
    return (("scale", shown((0, classes - 1))), ("now", shown(now)), ("lower", shown(lower)), ("upper", shown(upper)))


def texts_of(ask: Ask) -> tuple[Range, Range]:
    """Return the two ranges that an ask allows."""
    return tuple(read(dict(ask.told)[name]) for name in ("lower", "upper"))


def parse(inside: str, ask: Ask) -> Answer:
    found = read(inside.rstrip("."))
    if found is None:
        return MISSING
    return Answer("ok", found) if found in texts_of(ask) else FOREIGN


def right(ask: Ask) -> str:
    lower, upper = texts_of(ask)
    return shown(upper if grade(ask, read(dict(ask.told)["scale"])[1] + 1) >= upper[0] else lower)
