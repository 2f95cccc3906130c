"""Score the one candidate of the pool with a whole number from 0 to 10."""

import re

from ranker.answers import FOREIGN, MISSING
from ranker.data import Answer, Ask

ALTERNATIVES = tuple(map(str, range(11)))
_SCORE = re.compile(r"(\d{1,9})(?:\s*/\s*10)?")


def parse(inside: str, ask: Ask) -> Answer:
    number = _SCORE.fullmatch(inside)
    if not number:
        return MISSING
    value = int(number[1])
    return Answer("ok", (value,)) if value <= 10 else FOREIGN


def right(ask: Ask) -> str:
    return str(round(10 * ask.query.rel[ask.left[0]] / (max(ask.query.relevance) or 1)))
