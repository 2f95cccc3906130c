"""Score the one candidate of the pool with a whole number from 0 to 10."""

import re

from ranker import answers
from ranker.answers import FOREIGN, MISSING
from ranker.data import Answer, Ask

ALTERNATIVES = tuple(map(str, range(11)))
_SCORE = re.compile(r"(\d{1,9})(?:\.0*)?(?: ?/ ?10| (?:out )?of (?:10|ten))?(?:\.0*)?(?: points?)?[.!]?"
                    r"(?: ?\((?:not at all|surely)\))?", re.IGNORECASE)


def parse(inside: str, ask: Ask) -> Answer:
    head, _, remark = answers.tidy(inside).partition("\n")
    found = {int(number[1]) for view in answers.views(head) if (number := _SCORE.fullmatch(view))}
    if len(found) != 1 or re.search(r"\d", remark) or answers.turned(remark, {}, worst=False):
        return MISSING
    [value] = found
    return Answer("ok", (value,)) if value <= 10 else FOREIGN


def right(ask: Ask) -> str:
    return str(round(10 * ask.query.rel[ask.left[0]] / (max(ask.query.relevance) or 1)))
