"""What an answer is worth beside a reference answer, to a judge (Omni-Thinker-style, arXiv 2507.14783).

For prompts without labels: where there are labels, take a reward that reads them (both may stand in a config, each
limited to its `tasks`). The judge sees the reference and the answer twice, in both orders. An answer that wins both
times earns 1, one that loses both times 0, and anything else 0.5, such as a judge that always names the first. Without
a readable answer a completion earns 0. The paper's prompt is not published; the three values are a reading of it.

References are JSON lines of `query` (its id) and `text`. They should name candidates by their texts: numbers mean the
order in which one prompt showed them.
"""

import functools
import json
import os.path
from collections.abc import Generator
from dataclasses import dataclass

from ranker.data import Ask, Group
from ranker.errors import UserError
from ranker.plugins import setting
from ranker.reading import open_text

TASK = True


@dataclass
class Options:
    references: str = setting(file=True)  # JSON lines of query and text
    role: str = setting("base")  # the judge


@functools.cache
def references(path: str) -> dict[str, str]:
    """Return query id -> its reference answer. Raise UserError for a file that holds something else."""
    try:
        with open_text(os.path.expanduser(path)) as file:
            found = {str(record["query"]): record["text"] for record in map(json.loads, filter(str.strip, file))}
    except (ValueError, KeyError, TypeError):
        found = {}
    if not found or not all(isinstance(text, str) and text.strip() for text in found.values()):
        raise UserError(f"{path}: every line must hold a `query` (its id) and a `text` that is not empty")
    return found


def reward(groups: list[Group], options: Options) -> Generator:
    """Yield what the judge is asked, receive its answers, return one number per completion: 0, 0.5 or 1."""
    known, asks = references(options.references), {}
    for group in groups:
        query = group.ask.query
        if query.id not in known:
            raise UserError(f"{options.references}: no reference answer to query '{query.id}'")
        for text in {c.text for c in group.completions if c.answer.ok}:
            pair = line(known[query.id]), line(text)
            for number, told in enumerate((pair, pair[::-1])):
                asks[group.ask, text, number] = Ask(query, group.ask.pool, "versus", role=options.role,
                                                   told=(("first", told[0]), ("second", told[1])))
    answers = dict(zip(asks, (yield list(asks.values())), strict=True)) if asks else {}

    def worth(ask: Ask, text: str) -> float:
        named = [answers[ask, text, number].value[:1] for number in (0, 1)]
        wins, losses = [("second",), ("first",)], [("first",), ("second",)]
        return 1.0 if named == wins else 0.0 if named == losses else 0.5

    return [[worth(group.ask, c.text) if c.answer.ok else 0.0 for c in group.completions] for group in groups]


def line(text: str) -> str:
    """Return a text as one line."""
    return " ".join(text.split())
