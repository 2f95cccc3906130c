"""Eliminate the worst candidates in question, at most `ask.drop`, the worst first."""

from ranker import answers
from ranker.data import Answer, Ask


def parse(inside: str, ask: Ask) -> Answer:
    return answers.some(answers.named(inside, ask, one=ask.drop == 1, worst=True), ask, most=ask.drop)


def right(ask: Ask) -> str:
    return answers.written(ask, answers.by_relevance(ask)[:-1 - ask.drop:-1])


def template(ask: Ask) -> str:
    return "eliminate_several" if ask.drop > 1 and not ask.by_logits else "eliminate"


def all_right(ask: Ask) -> list[str]:
    """Whoever is worse than the best may go; where several may be named at once, one answer is the right one."""
    best = max(ask.query.rel[c] for c in ask.left)
    worse = [c for c in ask.left if ask.query.rel[c] < best] or list(ask.left)
    return [answers.written(ask, [c]) for c in worse] if ask.drop == 1 else [right(ask)]
