"""A GR2-style reward (arXiv 2602.07774, and its report, arXiv 2606.31984): what a list gains over the order shown, and
form only with it.

The order shown is the first stage's, so train with `ranker.order: given`. With `gain: rank` (the paper) a list earns
(place of the target before - place after) / length; of several targets, the candidates of the best grade, the first one
counts. With `gain: auc` (the report) it earns the share of pairs of a target and another candidate that it orders
rightly.

Form (1 if exact) is paid `alpha`, but a copy of the order shown must not earn it, or copying is what is learned:
- `identity_rule: paper` pays it to a list that is better than the order shown, and where that is perfect already;
- `identity_rule: report` pays it to every list; a copy of an order that is not perfect earns it alone, without its
  gain.

The paper's rule leaves a timid policy safe: a copy earns 0, a failed attempt less. What an answer that is no ranking is
worth is not published: `invalid_reward` must be given, at most the least that a list of the length can earn, -(n-1)/n,
and so must alpha. Shown lists of one grade have no target; they are left out, as the report does, by a reward that is
no number.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ranker.data import Ask, Completion, Group
from ranker.errors import UserError
from ranker.plugins import setting
from .format import exact

TASK = True
WANTS_THOUGHT = True


@dataclass
class Options:
    alpha: float = setting(low=0.0)  # what the exact form is paid
    invalid_reward: float = setting()  # what an answer is worth that is no ranking, at most -(n-1)/n
    gain: str = setting("rank", choices=("rank", "auc"))
    identity_rule: str = setting("paper", choices=("paper", "report"))


def reward(groups: list[Group], options: Options) -> list[list[float]]:
    """Return one number per completion of each group: at most 1 + alpha, NaN where nothing can be gained."""
    return [[list_reward(group.ask, c, options) for c in group.completions] for group in groups]


def list_reward(ask: Ask, completion: Completion, options: Options) -> float:
    n, rel = len(ask.pool), ask.query.rel
    if ask.decision != "order":
        raise UserError("reward 'rank_gain' judges asks to order candidates, "
                        f"not to {ask.decision} (query '{ask.query.id}')")
    if options.invalid_reward > -(n - 1) / n:
        raise UserError(f"reward.rank_gain.invalid_reward must be at most {-(n - 1) / n:g} for {n} candidates "
                        f"(query '{ask.query.id}'),"
                        f" or a broken answer could be worth more than a bad one; got {options.invalid_reward:g}")
    best = max(rel[c] for c in ask.pool)
    targets = [c for c in ask.pool if rel[c] == best]
    if len(targets) == n:
        return math.nan
    if not completion.answer.ok:
        return options.invalid_reward
    order, form = completion.answer.value, options.alpha * exact(completion.text)
    if options.gain == "rank":
        before, after = first(ask.pool, targets), first(order, targets)
        gained, better, perfect = (before - after) / n, after < before, before == 1
    else:
        before, gained = auc(ask.pool, targets), auc(order, targets)
        better, perfect = gained > before, before == 1
    if options.identity_rule == "paper":
        return gained + form if better or perfect else gained
    return form if order == ask.pool and not perfect else gained + form


def first(order: Sequence[str], targets: Sequence[str]) -> int:
    """Return the place of the first target, from 1."""
    return min(order.index(c) for c in targets) + 1


def auc(order: Sequence[str], targets: Sequence[str]) -> float:
    """Return the share of pairs of a target and another candidate in which the target stands first."""
    above = [sum(c not in targets for c in order[order.index(t):]) for t in targets]  # others below each target
    return sum(above) / (len(targets) * (len(order) - len(targets)))
