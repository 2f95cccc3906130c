"""What an arrangement is worth (CoRanking-style, arXiv 2503.23427): the nDCG of the order that a large ranker makes of
it.

The large ranker (`role`) is asked to order the candidates as the adjuster arranged them; it is greedy, so equal
arrangements of a query are asked about once. It must be the one that will rank later, with the same prompt and head.
Where it does not care for the order shown, all arrangements earn the same, and the group teaches nothing. Where the
large ranker's own answer is no full order, it is completed in the order shown, as in ranking. An arrangement that is no
full order earns -1, the least.
"""

from collections.abc import Generator
from dataclasses import dataclass

from ranker import metrics
from ranker.data import Ask, Group
from ranker.errors import UserError
from ranker.plugins import setting
from ranker.rankers.listwise import completed

TASK = True


@dataclass
class Options:
    k: int = setting(10, low=1)  # of nDCG@k
    role: str = setting("base")  # the large ranker


def fits(ranker, options: Options) -> None:
    """Raise UserError unless the large ranker of training is that of ranking."""
    large = getattr(ranker.options, "large_role", options.role)
    if large != options.role:
        raise UserError(f"an adjuster fits one large ranker: ranker.large_role is '{large}', and"
                        f" reward.downstream_ndcg.role '{options.role}'; name the same")


def reward(groups: list[Group], options: Options) -> Generator:
    """Yield what the large ranker is asked, receive its answers, return one number per completion, in [-1, 1]."""
    asks: dict[tuple[str, tuple], Ask] = {}
    for group in groups:
        if group.ask.decision not in ("arrange", "order"):
            raise UserError(f"reward 'downstream_ndcg' judges arrangements, not to {group.ask.decision} (query"
                            f" '{group.ask.query.id}'); take ranker.name=coranking")
        for c in group.completions:
            if c.answer.ok:
                order = tuple(c.answer.value)
                asks.setdefault((group.ask.query.id, order), Ask(group.ask.query, order, "order", role=options.role))
    answers = yield list(asks.values())
    worth = {}
    for (key, ask), answer in zip(asks.items(), answers, strict=True):
        gains = [ask.query.rel[c] for c in completed(answer, ask.pool)]
        worth[key] = metrics.of(gains, names=(f"nDCG@{options.k}",))[f"nDCG@{options.k}"]
    return [[worth[group.ask.query.id, tuple(c.answer.value)] if c.answer.ok else -1.0 for c in group.completions]
            for group in groups]
