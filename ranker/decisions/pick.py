"""Pick the best candidate of the pool."""

from ranker import answers
from ranker.data import Answer, Ask


def parse(inside: str, ask: Ask) -> Answer:
    return answers.some(answers.named(inside, ask, one=True), ask, most=1)


def right(ask: Ask) -> str:
    return answers.written(ask, answers.by_relevance(ask)[:1])


def all_right(ask: Ask) -> list[str]:
    best = max(ask.query.rel[c] for c in ask.left)
    return [answers.written(ask, [c]) for c in ask.left if ask.query.rel[c] == best]
