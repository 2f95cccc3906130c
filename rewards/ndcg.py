"""The reward of DRanker (arXiv 2506.21638 section 3.1): nDCG@k of the whole list that an `order` answer gives.

Published: nDCG@20 plus (candidates matched / candidates - 1), read from the answer character by character, so that
`pppppp` earned the maximum. Ours reads the parsed list: graded relevance, linear gain, the ideal over the pool. From
nDCG the list loses the share of itself that is not a candidate named for the first time (missing, repeated and foreign
ones; with missing ones alone that is the published term). An answer that cannot be read is worth -1, the least.
"""

from dataclasses import dataclass

from ranker.data import Answer, Ask, Group
from ranker.errors import UserError
from ranker.metrics import dcg
from ranker.plugins import setting

TASK = True


@dataclass
class Options:
    k: int = setting(20, low=1)  # of nDCG@k


def reward(groups: list[Group], options: Options) -> list[list[float]]:
    """Return one number per completion of each group, in [-1, 1]."""
    return [[list_reward(group.ask, c.answer, options.k) for c in group.completions] for group in groups]


def list_reward(ask: Ask, answer: Answer, k: int = 20) -> float:
    if ask.decision != "order" or len(ask.pool) < 2:
        raise UserError("reward 'ndcg' judges asks to order two candidates or more, "
                        f"not to {ask.decision} {len(ask.pool)}"
                        f" (query '{ask.query.id}')")
    rel = ask.query.rel
    ideal = dcg(sorted((rel[c] for c in ask.pool), reverse=True), k)
    gained = dcg([rel[c] for c in answer.value], k) / ideal if ideal > 0 else 0.0
    lost = 1 - len(answer.value) / max(len(ask.pool), answer.named)
    return gained - lost if answer.value else -1.0
