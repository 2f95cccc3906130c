"""As `range`, without a word: the log-probabilities of the two ranges as completions are the answer."""

from ranker.data import Ask
from ranker.decisions import range as ranges
from ranker.decisions.range import TOLD, parse, right  # noqa: F401


def texts(ask: Ask) -> list[str]:
    return [ranges.shown(span) for span in ranges.texts_of(ask)]
