"""Where the asks of a training step come from, and which completions are compared with one another.

`sampled` (the paper's): every query gives one ask, a pool of random size that holds the positive; its completions are
compared with each other. (A ranker may draw several asks about a query, whose rewards may depend on one another; still only
the completions of one ask are compared.) `on_policy`: the ranker runs on every query several times, with sampled answers, so the pools
are those that the policy's own decisions lead to; a completion's return is its reward and those that follow it in its
episode, and it is compared with the other episodes of its query at the same pool size. Episodes that stand at the same
pool share its prompt.

For supervised objectives there are three more. `recorded`: traces of a file, each a group of its own. `hinted`: sampled
like `sampled`, but the prompt gives the right answer away; the completions are learned for the prompt without it (GR2's
targeted sampling, STaR's rationalisation). `identifiers`: nothing is sampled; every candidate has a completion of one
token, its identifier where an answer begins, and the right order, written there, is one more without a reward.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

from ranker import llms
from ranker.answers import span
from ranker.data import Answer, Ask, Completion, Group, Query
from ranker.errors import UserError
from ranker.rollout import Sampler, complete, sample_groups


@dataclass
class Experience:
    """The completions of one training step. `cohorts` and `following` run through all groups, a completion each."""

    groups: list[Group] = field(default_factory=list)
    cohorts: list[int] = field(default_factory=list)  # completions of one cohort are compared
    following: list[int] = field(default_factory=list)  # the next completion of the same episode, -1 for none


def joined(parts: Sequence[Experience]) -> Experience:
    """The completions of several processes as those of one, numbered anew."""
    whole = Experience()
    for part in parts:
        start, cohort = len(whole.cohorts), max(whole.cohorts, default=-1) + 1
        whole.groups += part.groups
        whole.cohorts += [cohort + c for c in part.cohorts]
        whole.following += [start + f if f >= 0 else -1 for f in part.following]
    return whole


def sampled(sampler: Sampler, ranker: SimpleNamespace, queries: Sequence[Query], count: int, temperature: float, seed: int, first: int = 0) -> Experience:
    """The random asks of each query, `count` completions each. `first` is the number of the first query among those of all processes."""
    asked = drawn(ranker.sampled_asks, queries, seed, first)
    seeds = [seed + i + (number << 32) for i, asks in enumerate(asked, first) for number in range(len(asks))]
    return by_group(sample_groups(sampler, [ask for asks in asked for ask in asks], count, temperature, seeds))


def drawn(draw: Callable, queries: Sequence[Query], seed: int, first: int) -> list:
    """What a ranker draws for each query, from a generator of the query's own."""
    return [draw(query, random.Random(f"{seed}/ask/{i}")) for i, query in enumerate(queries, first)]


def by_group(groups: list[Group]) -> Experience:
    """Every group is a cohort, and no completion follows another."""
    cohorts = [g for g, group in enumerate(groups) for _ in group.completions]
    return Experience(groups, cohorts, [-1] * len(cohorts))


def recorded(sampler: Sampler, ranker: SimpleNamespace, traces: Sequence[tuple[Ask, str]], *rest) -> Experience:
    """Traces as groups of one. Their log-probabilities are unknown: NaN."""
    policy, groups = sampler.policy, []
    for ask, text in traces:
        ids = policy.prompter.behind(policy.prompter.chat.opening, text.removeprefix(policy.prompter.prefill))
        prompt, cut = policy.prompter.fitted(ask)
        groups.append(Group(ask, prompt, [complete(policy, ask, ids, [math.nan] * len(ids), True, cut=cut)]))
    return by_group(groups)


def hinted(sampler: Sampler, ranker: SimpleNamespace, queries: Sequence[Query], count: int, temperature: float, seed: int, first: int = 0) -> Experience:
    """`sampled`, with the right answer in the prompt while sampling."""
    asks = drawn(ranker.sampled_ask, queries, seed, first)
    told = [replace(ask, hint=span(llms.right_answer(ask))) for ask in asks]
    groups = sample_groups(sampler, told, count, temperature, seed + first)
    return by_group([Group(ask, sampler.policy.prompter.encode(ask), group.completions) for ask, group in zip(asks, groups)])


def identifiers(sampler: Sampler, ranker: SimpleNamespace, queries: Sequence[Query], count: int, temperature: float, seed: int, first: int = 0) -> Experience:
    """Every candidate's identifier as a completion, then the right order of all, for a prompt that has begun the answer."""
    prompter, groups = sampler.policy.prompter, []
    for ask in drawn(ranker.sampled_ask, queries, seed, first):
        ask = replace(ask, by_logits=True)
        if ask.decision != "order":
            raise UserError(f"rollout.states=identifiers needs a ranker that asks for an order, such as first, not {ranker.name}")
        [(_, right)] = llms.scripted(llms.right_answer)([ask])
        text, written = prompter.written_answer([ask.pool.index(c) + 1 for c in right.answer.value])
        completions = [
            Completion([token], [math.nan], f"[{prompter.identifier(k)}]", True, Answer("ok", (ask.pool[k - 1],), 1))
            for k, token in enumerate(prompter.identifier_tokens(len(ask.pool)), 1)]
        completions.append(Completion(written, [math.nan] * len(written), text, True, right.answer))
        groups.append(Group(ask, prompter.encode(ask), completions))
    return by_group(groups)


def on_policy(sampler: Sampler, ranker: SimpleNamespace, queries: Sequence[Query], count: int, temperature: float, seed: int, first: int = 0) -> Experience:
    """`count` episodes a query, in lockstep: every round's asks are sampled in one batch."""
    made = Experience()
    cohorts: dict[tuple, int] = {}
    episodes = {(q, e): ranker.rank(query, random.Random(f"{seed}/{first + q}/{query.id}/{e}"))
                for q, query in enumerate(queries) for e in range(count)}
    previous: dict[tuple[int, int], int] = {}  # episode -> its last completion
    pending: dict[tuple[int, int], Ask] = {}

    def step(episode, answer) -> None:
        try:
            pending[episode] = episodes[episode].send(answer)
            if isinstance(pending[episode], list):
                raise UserError("rollout.states=on_policy needs a ranker that asks one thing at a time; use states=sampled")
            if pending[episode].by_logits:
                raise UserError("rollout.states=on_policy learns from what the policy writes, so not from logits: leave ranker.final out")
        except StopIteration:
            pending.pop(episode, None)

    for episode in episodes:
        step(episode, None)
    rounds = 0
    while pending:
        shared: dict[tuple[int, Ask], list[tuple[int, int]]] = {}
        for episode, ask in pending.items():
            shared.setdefault((episode[0], ask), []).append(episode)
        asks = [ask for _, ask in shared]
        groups = sample_groups(sampler, asks, [len(owners) for owners in shared.values()], temperature,
                               random.Random(f"{seed}/{first}/{rounds}").getrandbits(60))
        for ((q, ask), owners), group in zip(shared.items(), groups):
            made.groups.append(group)
            for episode, completion in zip(owners, group.completions):
                index = len(made.cohorts)
                made.cohorts.append(cohorts.setdefault((q, ask.decision, len(ask.left)), len(cohorts)))
                made.following.append(-1)
                if episode in previous:
                    made.following[previous[episode]] = index
                previous[episode] = index
                step(episode, completion.answer)
        rounds += 1
    return made
