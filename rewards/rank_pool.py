"""An ERank-style reward (arXiv 2509.00520): a score is paid by its rank among all scores given to the candidates of its
query.

All completions of all asks about a query in a step make one pool; equal scores share the best rank. With `form: rr`:
- a positive earns 1 / rank;
- a negative above the positives loses `c_above`: above the lowest of them, or with `threshold: best_positive` only
  above all of them;
- any other negative earns 1 - ((score - t) / 10)^2;
- a malformed completion (form not exact, or no whole number from 0 to 10) loses `c_format` and has no rank.

The paper has these four cases; its constants and its third formula are not published, so the constants must be given,
and what this computes is not the paper's number. Its t is the score of the SFT model; ours is 10 * relevance / the
query's best. Positives are the candidates of the query's best grade. `form: ndcg` pays a positive its share of the
pool's nDCG (gain 1 for each positive) instead of 1 / rank. `form: se`, the squared error, pays everything well-formed
by the third formula and looks at no rank. A pool without a positive has nothing to be above. Two queries of one id in a
step make one pool.
"""

import math
from collections import Counter
from dataclasses import dataclass

from ranker.data import Completion, Group
from ranker.errors import UserError
from ranker.metrics import dcg
from ranker.plugins import setting
from .format import exact

TASK = True
WANTS_THOUGHT = True
THRESHOLDS = {"worst_positive": max, "best_positive": min}


@dataclass
class Options:
    c_above: float = setting(low=0.0)  # what a negative above the positives loses
    c_format: float = setting(low=0.0)  # what a malformed completion loses
    form: str = setting("rr", choices=("rr", "se", "ndcg"))
    threshold: str = setting("worst_positive", choices=tuple(THRESHOLDS))

    def __post_init__(self):
        if self.c_above > self.c_format:
            raise ValueError(f"c_format ({self.c_format:g}) must be at least c_above ({self.c_above:g}),"
                             " or a malformed answer could be worth more than a bad one")


def reward(groups: list[Group], options: Options) -> list[list[float]]:
    """Return one number per completion of each group, in [-c_format, 1]."""
    form = options.form
    scores = [[well_formed(group, c) for c in group.completions] for group in groups]
    pools: dict[str, list[int]] = {}  # query -> its groups
    for g, group in enumerate(groups):
        pools.setdefault(group.ask.query.id, []).append(g)
    paid: list[list[float]] = [[] for _ in groups]
    for members in pools.values():
        count = Counter(s for g in members for s in scores[g] if s is not None)
        rank = {s: 1 + sum(count[other] for other in count if other > s) for s in count}
        reached = [rank[s] for g in members if is_positive(groups[g]) for s in scores[g] if s is not None]
        limit = THRESHOLDS[options.threshold](reached, default=0)  # a negative of a smaller rank stands above
        ideal = dcg([1.0] * len(reached), len(reached))
        for g in members:
            rel, [candidate] = groups[g].ask.query.rel, groups[g].ask.pool
            target = 10 * rel[candidate] / max(rel.values())
            for s in scores[g]:
                if s is None:
                    paid[g].append(-options.c_format)
                elif form != "se" and is_positive(groups[g]):
                    paid[g].append(1 / rank[s] if form == "rr" else 1 / math.log2(1 + rank[s]) / ideal)
                elif form != "se" and rank[s] < limit:
                    paid[g].append(-options.c_above)
                else:
                    paid[g].append(1 - ((s - target) / 10) ** 2)
    return paid


def well_formed(group: Group, completion: Completion) -> int | None:
    """Return the score that a completion gives, None for a malformed one."""
    if group.ask.decision != "score":
        raise UserError(f"reward 'rank_pool' judges asks to score a candidate, not to {group.ask.decision} (query "
                        f"'{group.ask.query.id}')")
    return completion.answer.value[0] if completion.answer.ok and exact(completion.text) else None


def is_positive(group: Group) -> bool:
    return group.ask.pool[0] in group.ask.query.positives
