"""Pools of the sizes that teach: sampled pools whose size is drawn by the share of live groups, as it was seen.

A group of G completions is dead where all of them are right or all wrong. For a policy that drops candidates at random,
the share of live groups of 8 is 99% at pools of 2 candidates and 34% at 20; so that is what is expected before anything
was seen. What was seen counts more the longer it was seen and is forgotten as the policy learns (`memory`). A size is
drawn with a probability that grows with its expected share to the power of `power` (0: uniform, the control).
"""

import random
from dataclasses import dataclass

from ranker import credit
from ranker.data import Group
from ranker.plugins import setting

GIVES, EPISODES = "samples", False


@dataclass
class Options:
    power: float = setting(2.0, low=0.0)  # of the share by which sizes are drawn
    memory: float = setting(0.9, low=0.0, high=1.0)  # what one step leaves of what was seen before
    prior: float = setting(4.0, low=1e-9)  # groups that the expectation of a random policy counts


def draw(source, sample, judge, state: dict, options: Options) -> list[Group]:
    seed, count, asks, seeds = sample.seed(state), sample.rollout.completions_per_prompt, [], []
    seen = state.setdefault("sizes", {})  # size -> [groups, live ones], by JSON as text
    for i, query in source.take(sample.rollout.prompts_per_step, state):
        rng = random.Random(f"{seed}/ask/{i}")
        sizes = range(2, len(query.ids) + 1)
        weights = [live_share(n, count, *seen.get(str(n), (0.0, 0.0)), options.prior) ** options.power for n in sizes]
        [size] = rng.choices(sizes, weights)
        asks += sample.ranker.sampled_asks(query, rng, size)[:1]
        seeds.append(seed + i)
    groups = judge(sample(asks, count, seeds))
    for size in seen:
        seen[size] = [options.memory * number for number in seen[size]]
    for group in groups:  # those of all processes
        found = seen.setdefault(str(len(group.ask.left)), [0.0, 0.0])
        found[0] += 1
        found[1] += credit.live_cohorts([group])
    return groups


def live_share(size: int, count: int, groups: float, live: float, prior: float) -> float:
    """Return the expected share of live groups at a size, of `count` completions each, after `live` of `groups`."""
    right = (size - 1) / size
    random_policy = 1 - right**count - (1 - right)**count
    return max((prior * random_policy + live) / (prior + groups), 1e-9)
