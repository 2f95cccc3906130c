"""DRanker: the whole list is read, paid by its nDCG, and ranked; what the published reward got wrong stays right
here."""

import itertools
import random

import pytest

from ranker import drive, llms, metrics
from ranker.answers import parse
from ranker.data import Ask, Candidate, Completion, Group, Query
from ranker.errors import UserError
from rewards import ndcg

listwise = drive.load_ranker({"name": "listwise"})


def query(relevance, name="q") -> Query:
    return Query(name, "rank", "context", tuple(Candidate(f"{name}-{i}", f"text {i}") for i in range(len(relevance))),
                 tuple(map(float, relevance)))


def paid(question, *spans, **options) -> list[float]:
    ask = Ask(question, question.ids, "order")
    texts = [span if "<" in span else f"<think>so</think>\n<answer>{span}</answer>" for span in spans]
    return ndcg.reward([Group(ask, [], [Completion([], [], t, True, parse(t, ask)) for t in texts])],
                       ndcg.Options(**options))[0]


def listed(order) -> str:
    return " > ".join(f"[{k}]" for k in order)


@pytest.mark.parametrize("n", [2, 5, 20])
def test_the_reward_falls_strictly_with_the_rank_of_the_positive(n):
    for gold in range(1, n + 1):
        question = query([float(k == gold) for k in range(1, n + 1)])
        others = [k for k in range(1, n + 1) if k != gold]
        rewards = paid(question, *(listed([*others[:place], gold, *others[place:]]) for place in range(n)))
        assert rewards[0] == 1 and all(a > b for a, b in itertools.pairwise(rewards)) and rewards[-1] > -1


def test_graded_relevance_has_linear_gain_and_the_ideal_of_the_pool():
    question = query([0, 3, 1, 2])
    [value] = paid(question, "[3] > [2] > [1] > [4]", k=3)
    assert (value == pytest.approx(metrics.of([1, 3, 0, 2], names=["nDCG@3"])["nDCG@3"])
            and paid(question, "[2] > [4] > [3] > [1]") == [1.0])


@pytest.mark.parametrize("garbage", ["pppppp", "((((((((", "", ">>>", "[9] > [8]", "text", "<answer>[1] > [2]",
                                     "[2] > [1]</think>"])
def test_garbage_is_worth_the_least(garbage):
    question = query([0, 0, 1, 0, 0])
    worst = min(paid(question, *(listed(order) for order in itertools.permutations(range(1, 6)))))
    assert paid(question, garbage) == [-1.0] and worst > -1


def test_missing_repeated_and_foreign_identifiers_lose_the_share_they_cost():
    question = query([0, 1, 0, 0, 0])
    complete, missing, repeated, foreign, extra = paid(
        question, "[1] > [2] > [3] > [4] > [5]", "[1] > [2] > [3] > [4]", "[1] > [2] > [3] > [4] > [4]",
        "[1] > [2] > [3] > [4] > [9]", "[1] > [2] > [3] > [4] > [5] > [5]")
    assert complete == pytest.approx(0.630930, abs=1e-6)
    # four of five, as published for a missing one
    assert missing == repeated == foreign == pytest.approx(0.430930, abs=1e-6)
    assert extra == pytest.approx(0.630930 - 1 / 6, abs=1e-6)


def test_naming_only_the_favourite_pays_less_than_any_full_list_that_has_it_first():
    question = query([0, 1, 0, 0, 0])
    alone, full = paid(question, "[2]", "[2] > [5] > [4] > [3] > [1]")
    assert alone == pytest.approx(0.2) and full == 1


def test_an_answer_over_several_lines_is_read_whole():
    question = query([0, 1, 0, 2])
    lines = "\n[4]\n[2]\n[1]\n[3]\n"
    assert paid(question, lines, "1. [4]\n2. [2]\n3. [1]\n4. [3]", "[4], [2], [1], [3]") == [1.0, 1.0, 1.0]


def test_an_order_of_one_and_another_decision_are_refused_in_one_line():
    one, two = query([1]), query([1, 0])
    for ask in (Ask(one, one.ids, "order"), Ask(two, two.ids, "eliminate")):
        with pytest.raises(UserError, match="two candidates or more"):
            ndcg.reward([Group(ask, [], [Completion([], [], "", True, parse("<answer>[1]</answer>", ask))])],
                        ndcg.Options())


def test_an_oracle_ranks_perfectly_in_one_ask_and_a_mute_model_scores_the_input_order():
    queries = [query([random.Random(i).choice((0, 1, 2)) for i in range(9)] + [3], f"q{n}") for n in range(5)]
    for ranking in drive.run(listwise, queries, llms.scripted(llms.right_answer)):
        assert ranking.gains == sorted(ranking.gains, reverse=True) and ranking.calls == 1 == listwise.calls(10)
    for ranking in drive.run(listwise, queries, llms.scripted(lambda ask: "")):
        assert ranking.order == list(ranking.query.ids) and ranking.failed == 1


def test_a_broken_list_keeps_what_could_be_read_and_counts_as_failed():
    question = query([0, 1, 0, 0])
    [ranking] = drive.run(listwise, [question], llms.scripted(lambda ask: "<answer>[3] > [3] > [9] > [2]</answer>"))
    assert [question.ids.index(c) + 1 for c in ranking.order] == [3, 2, 1, 4] and ranking.failed == 1


def test_nothing_is_asked_about_a_single_candidate():
    [ranking] = drive.run(listwise, [query([1])], llms.scripted(llms.right_answer))
    assert ranking.calls == 0 == listwise.calls(1) and ranking.order == ["q-0"]


def test_training_states_hold_every_candidate_in_random_order_or_a_positive_among_fewer():
    question = query([0, 0, 1, 0, 0, 0])
    asks = [listwise.sampled_asks(question, random.Random(i), None)[0] for i in range(50)]
    assert (all(sorted(a.pool) == sorted(question.ids) and a.decision == "order" for a in asks)
            and len({a.pool for a in asks}) > 40)
    assert all(len(a.pool) == 3 and "q-2" in a.pool
               for a in (listwise.sampled_asks(question, random.Random(i), 3)[0] for i in range(50)))
