"""What one elimination adds to the final ranking's nDCG@k: potential-based shaping whose sum over an episode is exact.

The potential of a state is the nDCG@k that the query ends with if the rest of the pool is dropped in the worst order.
An elimination earns the potential after it minus the potential before; the first one, from the whole pool, also earns
the potential of the beginning. So the undiscounted sum of an episode is the nDCG@k of its ranking (with one positive:
1/log2(m) - 1/log2(m+1) for surviving a pool of m, 0 for losing it). An answer that cannot be read is worth -1.
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
    """Return one number per completion of each group: -1, or a share of nDCG@k in [0, 1]."""
    return [[step_share(group.ask, c.answer, options.k) for c in group.completions] for group in groups]


def step_share(ask: Ask, answer: Answer, k: int = 20) -> float:
    if ask.decision != "eliminate":
        raise UserError(f"reward 'ndcg_step' judges eliminations, not '{ask.decision}'")
    if not answer.ok:
        return -1.0
    rel = ask.query.rel
    ideal = dcg(sorted(ask.query.relevance, reverse=True), k)
    worst = sorted(rel[c] for c in ask.left)  # the best candidate last
    after = sorted(rel[c] for c in ask.left if c not in answer.value)
    # Those dropped take the last ranks of their pool.
    gained = dcg([*after, *(rel[c] for c in answer.value[::-1])], k) - dcg(worst, k)
    start = dcg(worst, k) if len(ask.left) == len(ask.query.ids) else 0.0
    return (gained + start) / ideal
