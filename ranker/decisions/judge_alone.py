"""Judge chains of reasoning that came to the same decision, each by itself: points from 0 to 10 (AoR's local stage).

The rubric is the paper's (arXiv 2405.12939); ours are the query and the candidates before the chains, which its prompt
leaves out, and the best and the worst chain judged before, where there are some. The answer is a JSON object, read by
its keys; a value is the points of each chain in order, None where they are missing.
"""

import json
import re

from ranker.answers import MISSING
from ranker.data import Answer, Ask

TOLD = ("chains", "before")
CHAIN = re.compile(r"^Chain (\d+): ", re.MULTILINE)


def chains(ask: Ask) -> int:
    """Return how many chains an ask tells."""
    return len(CHAIN.findall(dict(ask.told)["chains"]))


def parse(inside: str, ask: Ask) -> Answer:
    try:
        given = json.loads(inside)
    except (ValueError, RecursionError):
        return MISSING
    if not isinstance(given, dict):
        return MISSING
    points = tuple(given.get(f"Chain {k}") for k in range(1, chains(ask) + 1))
    points = tuple(float(p) if type(p) in (int, float) and 0 <= p <= 10 else None for p in points)
    return Answer("ok", points) if any(p is not None for p in points) else MISSING


def right(ask: Ask) -> str:
    """All chains alike: the relevance of candidates says nothing about reasoning."""
    return json.dumps({f"Chain {k}": 10 for k in range(1, chains(ask) + 1)})
