"""The policy's own episodes: the ranker runs on every query several times, with sampled answers.

So the pools are those that the policy's own decisions lead to. A completion's return is its reward and, discounted,
those that follow it in its episode; it is compared with the other episodes of its query at the same pool size. Episodes
that stand at the same pool share its prompt.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from ranker.data import Ask, Completion, Group
from ranker.errors import UserError
from ranker.plugins import setting

GIVES, EPISODES = "samples", True


@dataclass
class Options:
    discount: float = setting(1.0, low=0.0, high=1.0)  # of the reward one ask later


def draw(source, sample, judge: Callable, state: dict, options: Options) -> list[Group]:
    seed, count = sample.seed(state), sample.rollout.completions_per_prompt
    queries = source.take(sample.rollout.prompts_per_step, state)
    first = queries[0][0]  # of this process's share
    groups, previous = [], {}  # episode -> its last completion
    episodes = {(q, e): sample.ranker.rank(query, random.Random(f"{seed}/{q}/{query.id}/{e}"))
                for q, query in queries for e in range(count)}
    pending = {episode: following(asking, None) for episode, asking in episodes.items()}
    rounds = 0
    while pending := {episode: ask for episode, ask in pending.items() if ask is not None}:
        shared: dict[tuple[int, Ask], list[tuple[int, int]]] = {}
        for episode, ask in pending.items():
            shared.setdefault((episode[0], ask), []).append(episode)
        number = random.Random(f"{seed}/{first}/{rounds}").getrandbits(60)
        sampled = sample([ask for _, ask in shared], list(map(len, shared.values())),
                         range(number, number + len(shared)))
        for ((q, ask), owners), group in zip(shared.items(), sampled):
            groups.append(group)
            for episode, completion in zip(owners, group.completions):
                completion.cohort = q, ask.decision, len(ask.left)
                if episode in previous:
                    previous[episode].next = completion
                previous[episode] = completion
                pending[episode] = following(episodes[episode], completion)
        rounds += 1
    return judge(groups, options.discount)


def following(asking, completion: Completion | None) -> Ask | None:
    """Return what an episode asks next, None at its end. Raise UserError for asks that no episode can be made of."""
    try:
        ask = asking.send(completion and completion.answer)
    except StopIteration:
        return None
    if isinstance(ask, list) or ask.samples > 1:
        raise UserError("draw.name=on_policy needs a ranker that asks one thing at a time; take draw.name=sampled")
    if ask.by_logits:
        raise UserError("draw.name=on_policy learns from what the policy writes, so not from logits: "
                        "leave ranker.final out")
    return ask
