"""Rank-R1's search: with an oracle heapsort finds exactly the best for every length; what cannot be read is counted and
leaves a permutation."""

import random
from collections import Counter

import pytest

from ranker import drive, llms
from ranker.data import Candidate, Query
from ranker.errors import UserError

ORACLE, MUTE = llms.scripted(llms.right_answer), llms.scripted(lambda ask: "")


def most_calls(n, **options) -> int:
    return drive.load_ranker({"name": "setwise"} | options).calls(n)


def query(n, seed=0) -> Query:
    grades = [float(g) for g in range(n)]  # all different
    random.Random(f"{n}/{seed}").shuffle(grades)
    return Query(f"q{n}.{seed}", "rank", "", tuple(Candidate(f"c{i}", f"text {i}") for i in range(n)), tuple(grades))


def ranked(queries, model=ORACLE, on_ask=None, seed=0, **options):
    return drive.run(drive.load_ranker({"name": "setwise"} | options), queries, model, seed, on_ask)


@pytest.mark.parametrize("children, depth, longest", [(19, 10, 120), (9, 10, 120), (3, 5, 120), (2, 1, 120),
                                                      (1, 3, 25)])
def test_an_oracle_finds_exactly_the_best_and_the_rest_keeps_the_order_given(children, depth, longest):
    for r in ranked([query(n) for n in range(longest + 1)], children=children, depth=depth):
        n, best = len(r.query.ids), sorted(r.query.ids, key=lambda c: -r.query.rel[c])[:depth]
        assert r.order == best + [c for c in r.query.ids if c not in best] and r.failed == 0
        assert r.calls <= most_calls(n, children=children, depth=depth)


@pytest.mark.parametrize("depth", [0, 30, 1000])
def test_a_depth_of_all_sorts_everything(depth):
    for r in ranked([query(n) for n in (1, 2, 3, 20, 21, 30)], depth=depth):
        assert r.gains == sorted(r.gains, reverse=True) and r.calls <= most_calls(len(r.query.ids), depth=depth)


def test_one_call_finds_the_best_of_up_to_twenty_and_none_is_needed_for_one():
    assert [(r.calls, r.gains[0]) for r in ranked([query(n) for n in (1, 2, 20)], depth=1)] == [(0, 0), (1, 1), (1, 19)]
    assert [most_calls(n, depth=1) for n in (0, 1, 2, 20, 21)] == [0, 0, 1, 1, 3]


@pytest.mark.parametrize("children, n, mean, most", [
    (19, 100, 23.4, 25), (9, 100, 31.4, 40), (3, 100, 81.6, 85), (2, 100, 140.3, 151), (19, 20, 10, 10)])
def test_random_orders_cost_what_the_published_loop_costs(children, n, mean, most):
    calls = [r.calls for r in ranked([query(n, seed) for seed in range(60)], children=children)]
    assert sum(calls) / len(calls) == pytest.approx(mean, rel=0.02)
    assert max(calls) <= most_calls(n, children=children) == most


def test_the_most_calls_are_reached_where_every_comparison_is_won_by_a_child_below():
    rising = Query("q", "rank", "", tuple(Candidate(f"c{i}", "") for i in range(7)), tuple(map(float, range(7))))
    [r] = ranked([rising], children=2, depth=1)
    assert r.calls == most_calls(7, children=2, depth=1) == 4  # three parents, the topmost candidate goes down twice


def test_a_comparison_shows_a_parent_and_its_children_in_an_order_that_tells_nothing():
    places, asked = Counter(), []
    for r in ranked([query(100, seed) for seed in range(40)], on_ask=lambda ask, *_: asked.append(ask)):
        assert r.failed == 0
    assert all(ask.decision == "pick" and 2 <= len(ask.pool) <= 20 for ask in asked)
    full = [ask for ask in asked if len(ask.pool) == 20]
    for ask in full:
        places[ask.pool.index(max(ask.pool, key=lambda c: ask.query.rel[c]))] += 1
    expected = len(full) / 20
    assert len(full) > 500 and sum((places[k] - expected) ** 2 / expected for k in range(20)) < 43.8  # 19 df, p = 0.001


def test_a_model_that_says_nothing_keeps_the_parent_each_time_and_every_failure_is_counted():
    for n in (1, 2, 5, 20, 50, 120):
        for children in (2, 19):
            [r] = ranked([query(n)], MUTE, children=children, depth=4)
            first, *others = r.query.ids
            assert r.order[:4] == [first, *others[::-1]][:4]  # the last stands in for each one taken from the top
            assert (sorted(r.order) == sorted(r.query.ids) and r.failed == r.calls
                    and set(r.statuses) <= {"missing_answer"})


def test_a_failed_comparison_costs_only_its_own_decision():
    # best first
    down = Query("q", "rank", "", tuple(Candidate(f"c{i}", "") for i in range(30)),
                 tuple(float(i) for i in range(30, 0, -1)))
    flaky = llms.scripted(lambda ask: "" if len(ask.pool) == 20 else llms.right_answer(ask))
    [r] = ranked([down], flaky, depth=1)
    assert r.order == list(down.ids) and (r.calls, r.failed) == (2, 1)


def test_rankings_repeat_for_a_seed_and_depend_on_it():
    show = lambda seed: (pools := [],  # noqa: E731
                         ranked([query(30)], seed=seed, on_ask=lambda ask, *_: pools.append(ask.pool)))[0]
    assert show(0) == show(0) != show(1)


# several votes a comparison


def test_votes_ask_the_same_candidates_in_different_orders_at_once():
    asked = []
    [r] = ranked([query(40)], votes=3, on_ask=lambda ask, turn, _: asked.append((turn, ask)))
    assert r.calls == len(asked) <= most_calls(40, votes=3) and r.gains[:10] == sorted(r.gains, reverse=True)[:10]
    for turn in range(r.calls // 3):
        pools = [ask.pool for t, ask in asked if t == turn]
        assert len(pools) == 3 and len({frozenset(pool) for pool in pools}) == 1
    assert len({ask.pool for _, ask in asked if len(ask.pool) > 10}) == sum(len(ask.pool) > 10 for _, ask in asked)


def first_shown(ask) -> str:
    """Somebody who knows, unless the best stands first."""
    best = max(ask.pool, key=lambda c: ask.query.rel[c])
    return "" if ask.pool[0] == best else llms.right_answer(ask)


def test_the_majority_of_the_readable_answers_decides():
    for seed in range(10):
        [r] = ranked([query(20, seed)], llms.scripted(first_shown), votes=7)
        assert r.gains[:10] == sorted(r.gains, reverse=True)[:10]
    [r] = ranked([query(20)], MUTE, votes=3)
    assert r.failed == r.calls == 30


def test_a_tied_vote_is_decided_by_lot():
    said = []

    def split(ask):  # of two votes one is for c0 and one for c1
        said.append(ask)
        return f"<answer>[{ask.pool.index(f'c{len(said) % 2}') + 1}]</answer>"

    pair = [Query(f"q{i}", "rank", "", (Candidate("c0", ""), Candidate("c1", "")), (1.0, 0.0)) for i in range(200)]
    won = Counter(r.order[0] for r in ranked(pair, llms.scripted(split), votes=2))
    assert set(won) == {"c0", "c1"} and abs(won["c0"] - 100) < 45  # 6 sd


# training


def test_training_draws_one_positive_among_negatives_in_random_order():
    ranker = drive.load_ranker({"name": "setwise", "children": 4})
    graded = Query("q", "rank", "", tuple(Candidate(f"c{i}", "") for i in range(9)), (0, 3, 0, 3, 1, 0, 2, 0, 0))
    asks = [ranker.sampled_asks(graded, random.Random(seed), None)[0] for seed in range(200)]
    for ask in asks:
        assert ask.decision == "pick" and len(ask.pool) == 5 and sum(c in graded.positives for c in ask.pool) == 1
    assert {ask.pool.index(c) for ask in asks for c in ask.pool if c in graded.positives} == set(range(5))
    assert {c for ask in asks for c in ask.pool} == set(graded.ids)
    assert (len(ranker.sampled_asks(graded, random.Random(0), 3)[0].pool) == 3
            and len(ranker.sampled_asks(graded, random.Random(0), 9)[0].pool) == 5)
    [ask] = ranker.sampled_asks(graded, random.Random(3), None)
    assert ask == asks[3]


@pytest.mark.parametrize("options, least", [({"children": 0}, 1), ({"depth": -1}, 0), ({"votes": 0}, 1)])
def test_options_that_make_no_sense_are_refused(options, least):
    with pytest.raises(UserError, match=f"must be at least {least}"):
        drive.load_ranker({"name": "setwise"} | options)
