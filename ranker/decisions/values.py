"""Give every candidate in question a number from 0 to 10, as in `[1] 7, [2] 0`."""

import re

from ranker.answers import FOREIGN, MISSING
from ranker.data import Answer, Ask

_PAIR = re.compile(r"\s*\[\s*(\d{1,4})\s*\]\s*(?:[:=]\s*)?(\d{1,9}(?:\.\d{1,9})?)\s*(?:[,;]|\.?$)?")


def parse(inside: str, ask: Ask) -> Answer:
    """`value` holds a number for each candidate as shown, None where one is missing; then the answer failed."""
    pairs, end = [], 0
    while end < len(inside) and (pair := _PAIR.match(inside, end)):
        pairs.append(pair.groups())
        end = pair.end()
    if not pairs or inside[end:].strip():
        return MISSING
    found: dict[int, float] = {}
    for k, number in pairs:
        if not 1 <= int(k) <= len(ask.pool) or float(number) > 10:
            return FOREIGN
        if int(k) in found:
            return Answer("repetition")
        found[int(k)] = float(number)
    values = tuple(found.get(k) for k in range(1, len(ask.pool) + 1))
    return Answer("ok" if None not in values else "missing_ids", values)


def gold(ask: Ask) -> list[float]:
    """Return the right number of each candidate: its relevance in tenths of the query's best."""
    best = max(ask.query.relevance) or 1.0
    return [10 * ask.query.rel[c] / best for c in ask.pool]


def right(ask: Ask) -> str:
    return written(gold(ask))


def written(values: list[float]) -> str:
    return ", ".join(f"[{k}] {value:g}" for k, value in enumerate((round(v, 2) for v in values), 1))
