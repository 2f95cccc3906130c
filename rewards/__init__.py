"""Rewards: what a completion is worth. A reward is one file here.

A file NAME.py holds a dataclass `Options`, `TASK` (True: what the ranking is worth, whose spread decides which groups
teach; False: shaping, which must weigh less) and

    reward(groups, options) -> list of one number a completion, for each group; NaN where a completion cannot be scored

All groups of a step (or of a refill) are given at once, so a reward may compare completions of several asks. It may
also be a generator that yields asks (to a judge, by `role`) and receives answers, as a ranker does, and returns the
numbers. The config's section `reward.NAME` holds its options, `weight` (1) and `tasks` (a list; empty: all), to which
it is limited: elsewhere it pays 0. Optional, for a reward that does not go with every ranker:

    fits(ranker, options)      raise UserError where it does not go with the run's ranker

An example:

    TASK = True

    @dataclass
    class Options:
        k: int = setting(3, low=1)

    def reward(groups, options):
        return [[float(any(g.ask.query.rel[i] > 0 for i in c.answer.value[:options.k])) for c in g.completions]
                for g in groups]
"""

DEFAULT = "top1_hit"
CONTRACT = {"reward": ("groups", "options"), "TASK": frozenset({True, False}), "fits": ("ranker", "options")}
OPTIONAL = {"fits": lambda ranker, options: None}
