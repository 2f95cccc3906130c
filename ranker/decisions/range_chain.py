"""Say the whole chain of ranges of the one candidate shown at once, from the scale to its grade: `0..7 -> 4..7 -> 6..7
-> 6`."""

from ranker.answers import FOREIGN, MISSING
from ranker.data import Answer, Ask
from ranker.decisions import range as ranges

TOLD = ("scale",)


def parse(inside: str, ask: Ask) -> Answer:
    """`value` holds the ranges; each must be a half of the one before, and the last one a single grade."""
    found = [ranges.read(part) for part in inside.rstrip(".").split("->")]
    if None in found:
        return MISSING
    before = found[:1] if found[0] == ranges.read(dict(ask.told)["scale"]) else []
    for span in found[1:] if before else ():
        if before[-1][0] == before[-1][1] or span not in ranges.halves(before[-1]):
            return Answer(FOREIGN.status, tuple(before))
        before.append(span)
    if not before:
        return FOREIGN
    return Answer("ok" if before[-1][0] == before[-1][1] else "missing_ids", tuple(before))


def right(ask: Ask) -> str:
    classes = ranges.read(dict(ask.told)["scale"])[1] + 1
    return " -> ".join(map(ranges.shown, ranges.chain(ranges.grade(ask, classes), classes)))
