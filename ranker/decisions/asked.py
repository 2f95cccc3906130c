"""Say the context that a candidate answers: the log-probability of the query given a passage (UPR, 2204.07496)."""

from ranker.data import Ask
from ranker.decisions.order import parse, right  # noqa: F401

SHOWS = ("pool",)


def texts(ask: Ask) -> list[str]:
    context = ask.query.context
    return [context if isinstance(context, str) else ", ".join(context)]
