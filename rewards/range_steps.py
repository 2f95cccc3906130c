"""What a chain of ranges is worth (OrderChain-style, arXiv 2504.04801; the reward is ours): the share of its divisions
that were right before the first wrong one.

An answer to a single division earns 1 or 0. A chain that breaks off, or leaves the ranges that were allowed, is paid
for what came before; one without a range earns 0.
"""

from dataclasses import dataclass

from ranker.data import Answer, Ask, Group
from ranker.decisions import range as ranges
from ranker.errors import UserError

TASK = True


@dataclass
class Options:
    pass


def reward(groups: list[Group], options: Options) -> list[list[float]]:
    """Return one number per completion of each group, in [0, 1]."""
    return [[steps(group.ask, c.answer) for c in group.completions] for group in groups]


def steps(ask: Ask, answer: Answer) -> float:
    if ask.decision not in ("range", "range_chain"):
        raise UserError(f"reward 'range_steps' judges ranges, not to {ask.decision} (query '{ask.query.id}'); take"
                        " ranker.name=orderchain")
    classes = ranges.read(dict(ask.told)["scale"])[1] + 1
    grade = ranges.grade(ask, classes)
    if ask.decision == "range":
        return float(answer.ok and answer.value[0] <= grade <= answer.value[1])
    depth = len(ranges.chain(grade, classes)) - 1
    right = 0
    for low, high in answer.value[1:]:
        if not low <= grade <= high:
            break
        right += 1
    return right / depth if depth else 1.0  # a scale of one grade
