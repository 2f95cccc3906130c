"""The form of a completion: one think span, then one answer span, nothing else. Exact form 0, anything else -1.

Reads the completion only (the published code read prompt and completion, so its penalty was constant). The exact
form earns nothing by itself, and the loader refuses weights that would let form outweigh the task, so that a wrong
answer is never worth more than a right one. (Where a task reward knows halves, a half-right answer in good form can
be.)
"""

import re
from dataclasses import dataclass

from ranker.data import Group

TASK = False
WANTS_THOUGHT = True

_FORM = re.compile(r"\s*<think>\s*\S.*?</think>\s*<answer>\s*\S.*?</answer>\s*", re.DOTALL)
_TAGS = ("<think>", "</think>", "<answer>", "</answer>")


@dataclass
class Options:
    pass


def reward(groups: list[Group], options: Options) -> list[list[float]]:
    """Return 0 or -1 per completion."""
    return [[0.0 if exact(c.text) else -1.0 for c in group.completions] for group in groups]


def exact(text: str) -> bool:
    return all(text.count(tag) == 1 for tag in _TAGS) and _FORM.fullmatch(text) is not None
