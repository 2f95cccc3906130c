"""Pick the best candidate of the pool."""

from ranker import answers
from ranker.data import Answer, Ask


def parse(inside: str, ask: Ask) -> Answer:
    return answers.some(answers.named(inside, ask, one=True), ask, most=1)


def right(ask: Ask) -> str:
    return answers.written(ask, answers.by_relevance(ask)[:1])
