"""Objectives: how a batch of completions becomes a loss. An objective is one file here.

A file NAME.py holds a dataclass `Options` and

    alive(groups, options)             say of each completion whether it is learned from (`credit.mark`)
    passes(options) -> set of names    what must be known of each token before the loss, by name: see `passes.py`
    targets(groups, options) -> dict   after the passes: set `signals` (one number a token) and `advantage` of the
                                       completions that are alive; return what to log of the step
    loss(batch, options) -> (Tensor, dict)
                                       the SUM over the batch's units, and sums to log, which become means over the
                                       units; `batch` is a `passes.Batch`: logprobs, values, mask [N, T],
                                       batch["signal"] [N, T], groups (slices of the N), step, seed

Constants:

    UNIT = "token"                     of the mean: "token", "text" (a completion) or "group" (a list, a pair); the loop
                                       divides by the units of the whole optimizer step
    LEARNS_FROM = {"samples"}          what draws give it: "samples", "texts", "candidates", "thoughts"
    WHOLE_GROUPS = False               whether the completions of a group must share a forward pass
    LEAST = 2                          completions of a group that it needs at least
    REWARDS = True                     optional: whether it wants rewards at all

and, where it has parameters of its own,

    parameters(policy, options) -> dict    name -> (module, learning rate), kept in `policy.own`; the rate follows the
                                           schedule, and they are saved and resumed
    adapter_waits(options) -> int          steps in which those alone learn; the adapter's schedule begins after them

An example, REINFORCE with the mean of the step as its baseline:

    UNIT, LEARNS_FROM, WHOLE_GROUPS, LEAST = "token", {"samples"}, False, 1

    @dataclass
    class Options:
        pass

    def alive(groups, options):
        found = credit.completions(groups)
        credit.mark(found, ~credit.returns(found).isnan())

    def passes(options):
        return set()

    def targets(groups, options):
        found = credit.completions(groups)
        total = credit.returns(found)
        credit.spread(found, total - total.nanmean())
        return {}

    def loss(batch, options):
        return -(batch.logprobs * batch["advantage"] * batch.mask).sum(), {}
"""

DEFAULT = "grpo"
UNITS = frozenset({"token", "text", "group"})
CONTRACT = {
    "alive": ("groups", "options"), "passes": ("options",), "targets": ("groups", "options"),
    "loss": ("batch", "options"), "UNIT": UNITS, "LEARNS_FROM": None, "WHOLE_GROUPS": frozenset({True, False}),
    "LEAST": None, "parameters": ("policy", "options"), "adapter_waits": ("options",),
    "REWARDS": frozenset({True, False})}
OPTIONAL = {"parameters": lambda policy, options: {}, "adapter_waits": lambda options: 0, "REWARDS": True}
