"""Scripted models behind the driver, for tests and dry runs: they write completions, and the real parser reads them."""

from collections.abc import Callable, Sequence

from ranker.answers import parse
from ranker.data import Ask, Completion


def scripted(write: Callable[[Ask], str]) -> Callable[[Sequence[Ask]], list[tuple[int, Completion]]]:
    """A model that answers every ask with the text `write(ask)`."""
    return lambda asks: [(0, Completion([], [], text, True, parse(text, ask))) for ask in asks for text in [write(ask)]]


def right_answer(ask: Ask) -> str:
    """The completion of somebody who knows the relevance."""
    return _answer(ask, 1.0)


def wrong_answer(ask: Ask) -> str:
    """A well-formed completion that decides exactly the other way round."""
    return _answer(ask, -1.0)


def _answer(ask: Ask, sign: float) -> str:
    value = {c: sign * ask.query.rel[c] for c in ask.pool}
    order = sorted(ask.pool, key=lambda c: -value[c])
    number = {c: k for k, c in enumerate(ask.pool, 1)}
    if ask.decision == "score":
        share = ask.query.rel[order[0]] / max(ask.query.relevance)
        span = str(round(10 * (share if sign > 0 else 1 - share)))
    else:
        named = {"eliminate": order[-1:], "pick": order[:1], "order": order, "narrow": order[:(len(order) + 1) // 2]}
        span = " > ".join(f"[{number[c]}]" for c in named[ask.decision])
    return f"<think>{ask.query.task}: {len(ask.pool)} shown</think>\n<answer>{span}</answer>"
