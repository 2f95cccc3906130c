"""Halving: halves of halves in parallel, and what a split is worth."""

import random

import pytest

from ranker import drive, llms
from ranker.answers import parse
from ranker.data import Ask, Candidate, Completion, Group, Query
from ranker.errors import UserError
from rewards import half

RANKER = drive.load_ranker({"name": "halving"})


def query(relevance, name="q"):
    candidates = tuple(Candidate(f"c{i}", f"text {i}") for i in range(len(relevance)))
    return Query(name, "rank", "c", candidates, tuple(map(float, relevance)))


@pytest.mark.parametrize("n, rounds", [(1, 0), (2, 1), (3, 2), (8, 3), (20, 5), (100, 7)])
def test_an_oracle_orders_n_candidates_in_log_n_rounds_and_n_minus_1_calls(n, rounds):
    relevance = random.Random(n).sample(range(n), n)
    driver = drive.Driver(RANKER, llms.scripted(llms.right_answer))
    ranking = driver.add(query(relevance))
    while driver.running:
        driver.round()
    assert ranking.gains == sorted(ranking.gains, reverse=True)
    assert (driver.rounds, ranking.calls, RANKER.calls(n)) == (rounds, n - 1, n - 1)


def test_a_mute_model_keeps_the_order_given_and_is_counted():
    [ranking] = drive.run(RANKER, [query(range(7))], llms.scripted(lambda ask: "no idea"))
    assert ranking.order == list(ranking.query.ids) and ranking.failed == ranking.calls == 6


def test_somebody_who_decides_the_other_way_round_reverses_the_list():
    [ranking] = drive.run(RANKER, [query(range(8))], llms.scripted(llms.wrong_answer))
    assert ranking.gains == sorted(ranking.gains)


@pytest.mark.parametrize("relevance, named, value", [
    ([3, 2, 1, 0], "[1] > [2]", 1.0), ([3, 2, 1, 0], "[3] > [4]", 0.0), ([3, 2, 1, 0], "[1] > [4]", 0.5),
    ([1, 0, 0], "[1] > [3]", 1.0), ([1, 0, 0], "[2] > [3]", 0.0), ([1, 1], "[2]", 1.0),
    ([3, 2, 1, 0], "[1]", -1.0), ([3, 2, 1, 0], "[1] > [9]", -1.0), ([3, 2, 1, 0], "[1] > [2] > [3]", -1.0)])
def test_a_split_earns_the_share_of_relevance_that_it_keeps(relevance, named, value):
    ask = Ask(query(relevance), query(relevance).ids, "narrow")
    text = f"<answer>{named}</answer>"
    group = Group(ask, [], [Completion([], [], text, True, parse(text, ask))])
    assert half.reward([group], half.Options()) == [[pytest.approx(value)]]


def test_other_decisions_are_refused():
    ask = Ask(query([1, 0]), ("c0", "c1"), "pick")
    with pytest.raises(UserError, match="judges asks to narrow"):
        half.reward([Group(ask, [], [Completion([], [], "", True, parse("", ask))])], half.Options())


def test_training_states_have_the_sizes_of_the_halves_and_a_positive():
    asked = query([0] * 9 + [1] + [0] * 10)
    pools = [RANKER.sampled_asks(asked, random.Random(i), None)[0] for i in range(60)]
    assert {len(ask.pool) for ask in pools} == {20, 10, 5, 3} and all(ask.decision == "narrow" for ask in pools)
    assert all("c9" in ask.pool for ask in pools)
