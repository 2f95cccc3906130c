"""Training states: sampled pools, and the policy's own episodes with their returns, cohorts and shaping."""

import random
from collections import defaultdict

import pytest
import torch

from ranker import config as settings, losses, metrics, states, world
from ranker.answers import parse
from ranker.data import Ask, Candidate, Completion, Group, Query
from ranker.drive import load_ranker
from ranker.errors import UserError
from ranker.rankers import elimination, listwise
from ranker.engine.sampler import Sampler
from rewards import ndcg_step


def guess(asks, counts, seed):
    """Groups of completions that name random candidates of those shown, as many as they may."""
    rng = random.Random(seed)
    counts = [counts] * len(asks) if isinstance(counts, int) else counts

    def say(ask) -> str:
        named = rng.sample(range(len(ask.pool)), ask.drop)
        return f"<answer>{' > '.join(f'[{k + 1}]' for k in named)}</answer>"

    return [Group(ask, [1], [Completion([2], [-1.0], text, True, parse(text, ask))
                             for text in [say(ask) for _ in range(count)]]) for ask, count in zip(asks, counts)]


@pytest.fixture
def guessing(monkeypatch):
    monkeypatch.setattr(states, "sample_groups",
                        lambda sampler, asks, counts, temperature, seed: guess(asks, counts, str(seed)))


def graded(n, seed):
    rng = random.Random(seed)
    relevance = [float(rng.choice((0, 0, 1, 2, 0.35))) for _ in range(n - 1)] + [1.0]
    return Query(f"q{seed}", "rank", "c", tuple(Candidate(f"c{i}", f"text {i}") for i in range(n)), tuple(relevance))


def episodes_of(experience):
    """Each episode as its completions' indices."""
    heads = set(range(len(experience.following))) - set(experience.following)
    for head in sorted(heads):
        chain = [head]
        while experience.following[chain[-1]] >= 0:
            chain.append(experience.following[chain[-1]])
        yield chain


def flat(experience):
    return [(group.ask, completion) for group in experience.groups for completion in group.completions]


def test_sampled_states_compare_the_completions_of_one_ask(guessing):
    queries = world.queries("passage-7", "train", 3)
    experience = states.sampled(None, load_ranker({"name": "elimination"}), queries, 4, 1.0, seed=0)
    assert experience.cohorts == [0] * 4 + [1] * 4 + [2] * 4 and set(experience.following) == {-1}
    assert [g.ask.query for g in experience.groups] == queries


def test_a_ranker_may_draw_several_asks_about_a_query_and_each_is_compared_with_itself(monkeypatch):
    called = {}

    def groups(sampler, asks, count, temperature, seeds):
        called[tuple(asks)] = seeds
        return guess(asks, count, 0)

    monkeypatch.setattr(states, "sample_groups", groups)
    queries = [graded(5, 0), graded(3, 1), graded(4, 2)]
    single, several = (load_ranker({"name": name}) for name in ("elimination", "pointwise"))
    whole = states.sampled(None, several, queries, 2, 1.0, seed=9)
    assert ([g.ask.query.id for g in whole.groups] == ["q0"] * 5 + ["q1"] * 3 + ["q2"] * 4
            and all(len(g.ask.pool) == 1 for g in whole.groups))
    assert whole.cohorts == [g for g in range(12) for _ in range(2)] and whole.following == [-1] * 24
    [seeds] = called.values()
    assert len(set(seeds)) == 12
    called.clear()
    states.sampled(None, several, queries[1:], 2, 1.0, seed=9, first=1)  # another process's share
    assert called == {tuple(g.ask for g in whole.groups[5:]): seeds[5:]}
    called.clear()
    states.sampled(None, single, queries, 2, 1.0, seed=9, first=3)
    assert list(called.values()) == [[12, 13, 14]]


def test_episodes_follow_the_policys_own_eliminations(guessing):
    queries = [graded(6, 0), graded(3, 1)]
    experience = states.on_policy(None, elimination, queries, 5, 1.0, seed=0)
    rows, chains = flat(experience), list(episodes_of(experience))
    assert (len(chains) == 10 and sorted(len(c) for c in chains) == [2] * 5 + [5] * 5
            and sum(map(len, chains)) == len(rows))
    for chain in chains:
        for here, there in zip(chain, chain[1:]):
            (ask, completion), (after, _) = rows[here], rows[there]
            assert set(ask.pool) - set(after.pool) == {completion.answer.value[0]} and ask.query == after.query
    by_cohort = defaultdict(set)
    for (ask, _), cohort in zip(rows, experience.cohorts):
        by_cohort[cohort].add((ask.query.id, len(ask.pool)))
    assert all(len(kinds) == 1 for kinds in by_cohort.values()) and len(by_cohort) == 5 + 2
    assert len(experience.groups[0].completions) == 5  # the whole pool is one prompt for all episodes
    pools = [(g.ask.query.id, g.ask.pool) for g in experience.groups]
    assert len(pools) == len(set(pools))  # episodes at the same pool share its prompt


def test_the_same_query_twice_in_a_step_stays_two_queries(guessing):
    query = graded(4, 0)
    experience = states.on_policy(None, elimination, [query, query], 3, 1.0, seed=0)
    assert len(set(experience.cohorts)) == 6


@pytest.mark.parametrize("k, options", [(3, {}), (20, {}), (20, {"drop": 3}), (20, {"pool": "append"})])
def test_shaped_rewards_of_an_episode_sum_to_the_ndcg_of_its_ranking(guessing, k, options):
    ranker = load_ranker({"name": "elimination", **options})
    for seed in range(30):
        query = graded(random.Random(seed).randint(2, 9), seed)
        experience = states.on_policy(None, ranker, [query], 3, 1.0, seed)
        rewards = [value for row in ndcg_step.reward(experience.groups, k=k) for value in row]
        rows = flat(experience)
        returns = losses.returns_to_go(torch.tensor(rewards, dtype=torch.double), experience.following)
        for chain in episodes_of(experience):
            if not all(rows[i][1].answer.ok for i in chain):  # somebody named one that was out
                continue
            dropped = [c for i in chain for c in rows[i][1].answer.value]
            order = [c for c in query.ids if c not in dropped] + dropped[::-1]
            ndcg = metrics.of([query.rel[c] for c in order], names=[f"nDCG@{k}"])[f"nDCG@{k}"]
            assert returns[chain[0]].item() == pytest.approx(ndcg, abs=1e-6)


def test_surviving_pays_as_published_and_losing_the_positive_pays_nothing():
    query = Query("q", "rank", "c", tuple(Candidate(f"c{i}", "t") for i in range(5)), (1.0, 0, 0, 0, 0))

    def step(pool, dropped) -> float:
        ask = Ask(query, pool, "eliminate")
        return ndcg_step.step_share(ask, parse(f"<answer>[{dropped}]</answer>", ask))

    pools = [query.ids[:n] for n in (5, 4, 3, 2)]
    gained = [step(pool, len(pool)) for pool in pools]
    assert (gained == pytest.approx([0.386853 + 0.043824, 0.069323, 0.130930, 0.369070], abs=1e-6)
            and sum(gained) == pytest.approx(1))
    assert step(pools[1], 1) == 0 and step(pools[1], 9) == -1


def test_on_policy_needs_a_ranker_that_asks_one_thing_at_a_time(guessing):
    class Parallel:
        @staticmethod
        def rank(query, rng):
            yield [Ask(query, query.ids, "pick")]
            return list(query.ids)

    with pytest.raises(UserError, match="one thing at a time"):
        states.on_policy(None, Parallel, [graded(3, 0)], 2, 1.0, 0)
    with pytest.raises(UserError, match="ranker.final"):
        states.on_policy(None, load_ranker({"name": "elimination", "final": 3}), [graded(3, 0)], 2, 1.0, 0)


def test_listwise_episodes_are_one_ask(guessing):
    experience = states.on_policy(None, listwise, [graded(3, 0)], 4, 1.0, 0)
    assert experience.cohorts == [0] * 4 and experience.following == [-1] * 4


def test_groups_of_unequal_sizes_are_sampled_together_each_for_its_own_prompt(make_policy, asks):
    sampler = Sampler(make_policy(), settings.Rollout(max_new_tokens=6))
    alone = [states.sample_groups(sampler, [ask], 1, 0.0)[0].completions[0].ids for ask in asks[:4]]
    together = states.sample_groups(sampler, asks[:4], [3, 1, 5, 2], 0.0)
    assert [[c.ids for c in g.completions] for g in together] == [[ids] * n for ids, n in zip(alone, [3, 1, 5, 2])]
    assert len({tuple(ids) for ids in alone}) > 1
    one, two = (states.sample_groups(sampler, asks[:4], [3, 1, 5, 2], 1.0, seed=7) for _ in range(2))
    assert [len(g.completions) for g in one] == [3, 1, 5, 2]
    assert [[c.ids for c in g.completions] for g in one] == [[c.ids for c in g.completions] for g in two]
