"""What training draws: sampled pools, the policy's own episodes with their returns, cohorts and shaping; and the order
of the queries, which goes on through refills and stages."""

import json
import random
from collections import defaultdict

import pytest
import torch

from ranker import asking, config as settings, credit, metrics, world
from ranker.answers import parse
from ranker.asking import Sample, sample_groups
from ranker.data import Ask, Candidate, Completion, Group, Query
from ranker.drive import load_ranker
from ranker.engine import distributed
from ranker.engine.sampler import Sampler
from ranker.errors import UserError
from ranker.plugins import load
from ranker.sources import Source
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
    """Return a list that gets the seeds of each call that samples."""
    called = []

    def groups(sampler, asks, counts, temperature, seeds):
        called.append(list(seeds))
        return guess(asks, counts, str(list(seeds)))

    monkeypatch.setattr(asking, "sample_groups", groups)
    return called


def sample_of(ranker, count, prompts, seed=0, policy=None):
    ranker = load_ranker(ranker) if isinstance(ranker, dict) else ranker
    sampler = policy and Sampler(policy, settings.Rollout(max_new_tokens=6))
    return Sample(sampler, ranker, settings.Rollout(prompts_per_step=prompts, completions_per_prompt=count), seed)


def draw(name, queries, ranker, count, state=None, seed=0, judge=lambda groups, discount=1.0: groups, **options):
    """Return the groups that a draw gives for all of `queries`, in their order."""
    source = Source("queries", item=queries.__getitem__)
    return load("draw", {"name": name} | options).draw(
        source, sample_of({"name": ranker} if isinstance(ranker, str) else ranker, count, len(queries), seed), judge,
        {} if state is None else state)


def cohorts_of(groups):
    """Return the cohort of each completion, numbered as they appear."""
    return credit.cohorts(credit.completions(groups)).tolist()


def alone(groups) -> bool:
    return all(c.next is None for c in credit.completions(groups))


def graded(n, seed):
    rng = random.Random(seed)
    relevance = [float(rng.choice((0, 0, 1, 2, 0.35))) for _ in range(n - 1)] + [1.0]
    return Query(f"q{seed}", "rank", "c", tuple(Candidate(f"c{i}", f"text {i}") for i in range(n)), tuple(relevance))


def episodes_of(groups):
    """Each episode as its (ask, completion) pairs."""
    asked = {id(c): (group.ask, c) for group in groups for c in group.completions}
    heads = asked.keys() - {id(c.next) for _, c in asked.values()}
    for head in (c for c in credit.completions(groups) if id(c) in heads):
        chain = [asked[id(head)]]
        while chain[-1][1].next is not None:
            chain.append(asked[id(chain[-1][1].next)])
        yield chain


def test_sampled_pools_compare_the_completions_of_one_ask(guessing):
    queries = world.queries("passage-7", "train", 3)
    groups = draw("sampled", queries, "elimination", 4)
    assert cohorts_of(groups) == [0] * 4 + [1] * 4 + [2] * 4 and alone(groups)
    assert [g.ask.query for g in groups] == queries


def test_a_ranker_may_draw_several_asks_about_a_query_and_each_is_compared_with_itself(guessing, monkeypatch):
    queries = [graded(5, 0), graded(3, 1), graded(4, 2)]
    whole = draw("sampled", queries, "pointwise", 2, seed=9)
    assert ([g.ask.query.id for g in whole] == ["q0"] * 5 + ["q1"] * 3 + ["q2"] * 4
            and all(len(g.ask.pool) == 1 for g in whole))
    assert cohorts_of(whole) == [g for g in range(12) for _ in range(2)] and alone(whole)
    [seeds] = guessing
    assert len(set(seeds)) == 12
    monkeypatch.setattr(distributed, "share", lambda count: range(1, count))  # another process's
    assert [g.ask for g in draw("sampled", queries, "pointwise", 2, seed=9)] == [g.ask for g in whole[5:]]
    assert guessing[1] == seeds[5:]
    monkeypatch.setattr(distributed, "share", lambda count: range(3, count))
    draw("sampled", [graded(3, k) for k in range(6)], "elimination", 2, seed=9)
    first = sample_of({"name": "elimination"}, 2, 6, 9).seed({})
    assert guessing[2] == [first + 3, first + 4, first + 5]


def test_episodes_follow_the_policys_own_eliminations(guessing):
    queries = [graded(6, 0), graded(3, 1)]
    groups = draw("on_policy", queries, "elimination", 5)
    rows, chains = credit.completions(groups), list(episodes_of(groups))
    assert (len(chains) == 10 and sorted(len(c) for c in chains) == [2] * 5 + [5] * 5
            and sum(map(len, chains)) == len(rows))
    for chain in chains:
        for (ask, completion), (after, _) in zip(chain, chain[1:]):
            assert set(ask.pool) - set(after.pool) == {completion.answer.value[0]} and ask.query == after.query
    by_cohort = defaultdict(set)
    for group in groups:
        for c in group.completions:
            by_cohort[c.cohort].add((group.ask.query.id, len(group.ask.pool)))
    assert all(len(kinds) == 1 for kinds in by_cohort.values()) and len(by_cohort) == 5 + 2
    assert len(groups[0].completions) == 5  # the whole pool is one prompt for all episodes
    pools = [(g.ask.query.id, g.ask.pool) for g in groups]
    assert len(pools) == len(set(pools))  # episodes at the same pool share its prompt


def test_the_same_query_twice_in_a_step_stays_two_queries(guessing):
    query = graded(4, 0)
    assert len(set(cohorts_of(draw("on_policy", [query, query], "elimination", 3)))) == 6


@pytest.mark.parametrize("k, options", [(3, {}), (20, {}), (20, {"drop": 3}), (20, {"pool": "append"})])
def test_shaped_rewards_of_an_episode_sum_to_the_ndcg_of_its_ranking(guessing, k, options):
    ranker = load_ranker({"name": "elimination", **options})
    for seed in range(30):
        query = graded(random.Random(seed).randint(2, 9), seed)
        groups = draw("on_policy", [query], ranker, 3, seed=seed)
        for group, row in zip(groups, ndcg_step.reward(groups, ndcg_step.Options(k=k))):
            for c, value in zip(group.completions, row):
                c.rewards = {"task": value, "total": value}
        credit.add_returns(groups, 1.0)
        for chain in episodes_of(groups):
            if not all(c.answer.ok for _, c in chain):  # somebody named one that was out
                continue
            dropped = [candidate for _, c in chain for candidate in c.answer.value]
            order = [c for c in query.ids if c not in dropped] + dropped[::-1]
            ndcg = metrics.of([query.rel[c] for c in order], names=[f"nDCG@{k}"])[f"nDCG@{k}"]
            assert chain[0][1].returns["task"] == pytest.approx(ndcg, abs=1e-6)


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

    class Repeated:
        @staticmethod
        def rank(query, rng):
            yield Ask(query, query.ids, "pick", samples=2, temperature=1.0)
            return list(query.ids)

    for ranker in (Parallel, Repeated):
        with pytest.raises(UserError, match="one thing at a time"):
            draw("on_policy", [graded(3, 0)], ranker, 2)
    with pytest.raises(UserError, match="ranker.final"):
        draw("on_policy", [graded(3, 0)], {"name": "elimination", "final": 3}, 2)


def test_listwise_episodes_are_one_ask(guessing):
    groups = draw("on_policy", [graded(3, 0)], "listwise", 4)
    assert cohorts_of(groups) == [0] * 4 and alone(groups)


def test_groups_of_unequal_sizes_are_sampled_together_each_for_its_own_prompt(make_policy, asks):
    sampler = Sampler(make_policy(), settings.Rollout(max_new_tokens=6))
    alone = [sample_groups(sampler, [ask], 1, 0.0)[0].completions[0].ids for ask in asks[:4]]
    together = sample_groups(sampler, asks[:4], [3, 1, 5, 2], 0.0)
    assert [[c.ids for c in g.completions] for g in together] == [[ids] * n for ids, n in zip(alone, [3, 1, 5, 2])]
    assert len({tuple(ids) for ids in alone}) > 1
    one, two = (sample_groups(sampler, asks[:4], [3, 1, 5, 2], 1.0, seed=7) for _ in range(2))
    assert [len(g.completions) for g in one] == [3, 1, 5, 2]
    assert [[c.ids for c in g.completions] for g in one] == [[c.ids for c in g.completions] for g in two]


def test_a_source_gives_nothing_twice_before_all_is_seen_once():
    source, state = Source("queries", range(7), "0"), {}
    taken = [item for _ in range(7) for _, item in source.take(3, state)]
    epochs = [taken[i:i + 7] for i in (0, 7, 14)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(7))] * 3 and len(set(map(tuple, epochs))) == 3
    assert state == {"queries": 21} and taken == [Source("queries", range(7), "0")[i] for i in range(21)]
    assert [i for i, _ in source.take(4, state)] == [0, 1, 2, 3]  # numbers in the step


def test_a_source_goes_on_through_refills_and_stages_and_two_draws_never_share_a_seed(guessing):
    """Nothing is ever alive, so every refill is drawn; a state that was saved in between goes on where it stood."""
    source, state, seen = Source("queries", [graded(3, k) for k in range(12)], "0"), {}, []
    for name, options in (("sampled", {"refills": 2}), ("on_policy", {}), ("sampled", {})):  # stages
        sample = sample_of({"name": "elimination"}, 2, 3, 5)
        groups = load("draw", {"name": name} | options).draw(source, sample, lambda groups, discount=1.0: groups, state)
        seen += dict.fromkeys(g.ask.query.id for g in groups)
        state = json.loads(json.dumps(state))
    order = [source[i].id for i in range(15)]
    assert state == {"queries": 15, "draws": 5} and seen == order and sorted(seen[:12]) == sorted(set(seen))
    seeds = [seed for call in guessing for seed in call]
    assert len(seeds) == len(set(seeds)) and len(seeds) >= 15
