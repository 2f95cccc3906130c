"""CoRanking-style (arXiv 2503.23427): a small ranker orders everything, an adjuster rearranges the head into the order
that a large ranker likes best, and the large one orders that head, in one call.

The small ranker slides a window over all candidates. The adjuster (decision `arrange`) sees the first `head` of its
order and says in which order they shall be shown. 100 documents cost the small one 9 calls, the adjuster 1, the large
one 1; full windows of the large one cost 9. The adjuster is trained by DPO, as in the first version of the paper (a
later one says reinforcement learning). Ours, since the abstract is all that could be read: the tail keeps the small
ranker's order, an answer that is no full order is completed in the order shown, heads in training are in random order,
and the roles: the policy learns to adjust and its base plays the other two, unless `roles` name adapters or servers. An
adjuster fits the large ranker, prompt and head that it was trained with. `head_order` has the controls.
"""

import random
from collections.abc import Generator
from dataclasses import dataclass

from ranker import plugins
from ranker.data import Ask, Query
from ranker.plugins import setting
from ranker.rankers import listwise, sliding
from ranker.rankers.cascade import played


TRAINED_FOR = ("head", "large_role")  # what an adjuster fits


@dataclass
class Options:
    window: int = setting(20, low=2)  # candidates that the small ranker orders at a time
    step: int = setting(10, low=1)  # by which it moves
    head: int = setting(20, low=2)  # candidates that the large ranker sees
    small_role: str = setting("base")
    adjuster_role: str = setting("policy")
    large_role: str = setting("base")
    heads: str = setting("shuffled", choices=("shuffled", "given"))  # order of the heads in training
    # who orders the head for the large ranker; `small` and `reversed` are controls
    head_order: str = setting("adjuster", choices=("adjuster", "small", "reversed"))

    __post_init__ = sliding.Options.__post_init__


def rank(query: Query, rng: random.Random, options: Options) -> Generator:
    """Yield the asks of the three rankers, receive answers, return candidate ids best first."""
    if len(query.ids) < 2:
        return list(query.ids)
    small = plugins.load("ranker", {"name": "sliding", "window": options.window, "step": options.step})
    order = yield from played(small.rank(query, rng), options.small_role)
    head = order[:options.head]
    if options.head_order == "adjuster":
        answer = yield Ask(query, tuple(head), "arrange", role=options.adjuster_role)
        head = listwise.completed(answer, head)
    shown = head[::-1] if options.head_order == "reversed" else head
    answer = yield Ask(query, tuple(shown), "order", role=options.large_role)
    return listwise.completed(answer, shown) + order[options.head:]


def calls(n: int, options: Options) -> int:
    """Return the number of asks for n candidates."""
    windows = sliding.calls(n, sliding.Options(options.window, options.step))
    return windows + 1 + (options.head_order == "adjuster") if n > 1 else 0


def sampled_asks(query: Query, rng: random.Random, size: int | None, options: Options) -> list[Ask]:
    """Return a head for the adjuster: candidates, a positive among them, in random order or in the order given.

    The order given is true to the small ranker where the file holds the heads of its run (`ranker.prepare trec`).
    """
    [ask] = listwise.sampled_asks(query, rng, min(size or options.head, options.head), listwise.Options(options.heads))
    return [Ask(query, ask.pool, "arrange")]
