"""Draws: where the groups of a training step come from. A draw is one file here.

A file NAME.py holds a dataclass `Options` and

    draw(source, sample, judge, state, options) -> list[Group]

with what the loop gives it:

    source.take(count, state)          [(number in the step, training query)], this process's share of the next `count`;
                                       `state` remembers the place, is saved, and goes on through stages
    sample(asks, counts, seeds)        a group of sampled completions for each ask; `sample.ranker` makes asks,
                                       `sample.policy` makes prompts, `sample.rollout` is that section of the config,
                                       `sample.seed(state)` begins one more draw and returns its seed
    judge(groups, discount=1.0)        the groups of all processes, rewarded, each completion `alive` or not

A completion's `cohort` says which completions it is compared with (set by `sample`: those of its group), `next` what
follows it in its episode. Constants:

    GIVES = "samples"      what the completions are: "samples" of the policy, "texts" that somebody else wrote,
                           "candidates" (each candidate of a list is a completion), or "thoughts" of the policy with
                           the right answers behind them; objectives say what they learn from
    EPISODES = False       whether the asks about a query follow from one another

    source(source, ranker, seed, options)   optional: another source in the place of the training queries

An example, the paper's pools without anything else:

    GIVES, EPISODES = "samples", False

    @dataclass
    class Options:
        pass

    def draw(source, sample, judge, state, options):
        seed = sample.seed(state)
        queries = source.take(sample.rollout.prompts_per_step, state)
        asks = [sample.ranker.sampled_asks(q, random.Random(f"{seed}/ask/{i}"), None)[0] for i, q in queries]
        return judge(sample(asks, sample.rollout.completions_per_prompt, [seed + i for i, _ in queries]))
"""

DEFAULT = "sampled"
GIVES = frozenset({"samples", "texts", "candidates", "thoughts"})
CONTRACT = {"draw": ("source", "sample", "judge", "state", "options"), "GIVES": GIVES,
            "EPISODES": frozenset({True, False}), "source": ("source", "ranker", "seed", "options")}
OPTIONAL = {"source": lambda source, ranker, seed, options: source}
