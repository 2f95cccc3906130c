"""Say the best candidate: each candidate's text is a completion of the context, and its log-probability the score."""

from ranker.data import Ask
from ranker.decisions.order import parse, right  # noqa: F401

SHOWS = ("context",)


def texts(ask: Ask) -> list[str]:
    return [ask.query.texts[c] for c in ask.pool]
