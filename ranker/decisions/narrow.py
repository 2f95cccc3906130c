"""Narrow the pool to its better half, rounded up, the best first."""

from ranker import answers
from ranker.data import Answer, Ask


def half(ask: Ask) -> int:
    """Return how many candidates the better half has."""
    return (len(ask.left) + 1) // 2


def parse(inside: str, ask: Ask) -> Answer:
    return answers.exactly(answers.named(inside, ask, one=False), ask, half(ask))


def right(ask: Ask) -> str:
    return answers.written(ask, answers.by_relevance(ask)[:half(ask)])
