"""Compare two answers to the same ask and name the better one, 1 or 2 (Omni-Thinker-style judge, arXiv 2507.14783)."""

from ranker.answers import FOREIGN
from ranker.data import Answer, Ask

TOLD = ("first", "second")
WORDS = {"1": "first", "2": "second"}


def parse(inside: str, ask: Ask) -> Answer:
    word = inside.strip().strip("[].").lower()
    return Answer("ok", (WORDS[word],)) if word in WORDS else FOREIGN


def right(ask: Ask) -> str:
    """The first: relevance says nothing of how well an answer is put."""
    return "1"
