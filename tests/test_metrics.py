"""Metrics agree with trec_eval wherever both are defined, the chance row is the mean over all orders, BM25 is the textbook's
formula, and the statistics give known p-values and intervals for known cases, the same ones for the same seed."""

import itertools
import math
import random

import numpy as np
import pytest
import pytrec_eval

from ranker import baselines, metrics, stats
from ranker.data import Candidate, Query

H = lambda n: sum(1 / i for i in range(1, n + 1))  # noqa: E731


def lists(count, seed=0):
    """Relevance in ranked order: integer grades, at least one above 0."""
    rng = random.Random(seed)
    for _ in range(count):
        gains = [rng.choice((0, 0, 0, 1, 2, 3)) for _ in range(rng.randint(1, 30))]
        gains[rng.randrange(len(gains))] = rng.randint(1, 3)
        yield gains


def trec(gains, level):
    names = [f"d{i}" for i in range(len(gains))]
    measures = {"ndcg_cut.1,5,10,20", "recip_rank", "success.1,5,10"}
    evaluator = pytrec_eval.RelevanceEvaluator({"q": dict(zip(names, gains))}, measures, relevance_level=level)
    found = evaluator.evaluate({"q": {name: float(len(gains) - i) for i, name in enumerate(names)}})["q"]
    return {"MRR": found["recip_rank"], **{f"nDCG@{k}": found[f"ndcg_cut_{k}"] for k in (1, 5, 10, 20)},
            **{f"Hit@{k}": found[f"success_{k}"] for k in (1, 5, 10)}}


def test_metrics_equal_trec_eval():
    for gains in lists(500):
        for level in (1, 2, 3):
            assert metrics.all_metrics(gains, level) == pytest.approx(trec(gains, level), abs=1e-9)
        assert metrics.all_metrics(gains) == pytest.approx(trec(gains, max(gains)), abs=1e-9)  # level 0 is the best grade


def test_hand_values():
    gains = [0, 2, 0, 1]
    ideal = 2 + 1 / math.log2(3)
    assert metrics.ndcg(gains, 10) == pytest.approx((2 / math.log2(3) + 1 / math.log2(5)) / ideal)
    assert metrics.ndcg(gains, 3) == pytest.approx(2 / math.log2(3) / ideal)
    assert metrics.ndcg(gains, 1) == 0
    assert metrics.reciprocal_rank(gains) == 1 / 2
    assert metrics.reciprocal_rank([0, 1, 0, 2]) == 1 / 4  # only the best grade counts ...
    assert metrics.reciprocal_rank([0, 1, 0, 2], level=1) == 1 / 2  # ... unless a level is named
    assert [metrics.hit(gains, k) for k in (1, 2, 5)] == [0, 1, 1]
    assert metrics.hit([0, 1, 0, 2], 2) == 0 and metrics.hit([0, 1, 0, 2], 2, level=1) == 1


def test_real_valued_and_tied_utilities():
    assert metrics.reciprocal_rank([0.1, 0.8, 0.8, 0.0]) == 1 / 2
    assert metrics.ndcg([0.8, 0.8, 0.1], 10) == 1
    assert metrics.all_metrics([0.0, 0.0]) == dict.fromkeys(metrics.NAMES, 0.0)  # no gain, no credit, no error
    assert metrics.reciprocal_rank([0, 1], level=2) == 0


def test_a_perfect_order_scores_one_and_any_swap_that_hurts_scores_less():
    for gains in lists(100, seed=1):
        best = sorted(gains, reverse=True)
        assert all(value == pytest.approx(1) for value in metrics.all_metrics(best).values())
        if best[0] > best[-1]:
            swapped = [best[-1], *best[1:-1], best[0]]
            assert metrics.ndcg(swapped, 20) < 1


@pytest.mark.parametrize("gains", [[1], [0, 1], [0, 1, 0], [1, 1, 0], [2, 1, 0, 0], [2, 2, 1, 0], [0.5, 0.2, 0.5, 0.0, 0.1],
                                   [1, 1, 1], [3, 2, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0]])
@pytest.mark.parametrize("level", [0.0, 1.0, 2.0, 9.0])
def test_the_chance_row_is_the_mean_over_all_orders(gains, level):
    orders = [metrics.all_metrics(order, level) for order in itertools.permutations(gains)]
    assert metrics.random_order(gains, level) == pytest.approx(metrics.mean(orders), abs=1e-12)


@pytest.mark.parametrize("n, mrr", [(20, 0.1799), (10, 0.2929), (5, 0.4567), (7, 0.3704), (9, 0.3143)])
def test_chance_with_one_positive_is_the_harmonic_number_over_n(n, mrr):
    chance = metrics.random_order([1.0, *[0.0] * (n - 1)])
    assert chance["MRR"] == pytest.approx(H(n) / n) and chance["MRR"] == pytest.approx(mrr, abs=5e-5)
    assert chance["Hit@1"] == pytest.approx(1 / n) and chance["Hit@5"] == pytest.approx(5 / n)


def test_bm25_by_hand():
    """One text has both words and grows longer; where it falls behind the texts with one word depends on k1, b and idf."""
    rng, outcomes = random.Random(0), set()
    for length in range(2, 150):
        others = {f"other{i}": "dog" for i in range(rng.randint(8, 20))}
        texts = {"both": "fox red" + " x" * (length - 2), "red": "Red!", "fox": "a fox"} | others
        n, average = len(texts), (length + 1 + 2 + len(others)) / len(texts)
        idf = math.log(1 + (n - 2 + 0.5) / (2 + 0.5))  # each word stands in two texts
        weight = lambda words: 1.9 / (1 + 0.9 * (0.6 + 0.4 * words / average))  # noqa: E731
        scores = {"both": 3 * idf * weight(length), "red": 2 * idf * weight(1), "fox": idf * weight(2)}  # `red` is asked twice
        query = Query("q", "rank", "red fox, RED", tuple(Candidate(c, t) for c, t in texts.items()), (1.0, *[0.0] * (n - 1)))
        expected = sorted(scores, key=lambda c: -scores[c])
        assert baselines.bm25(query)[:3] == expected
        outcomes.add(tuple(expected))
    assert outcomes == {("both", "red", "fox"), ("red", "both", "fox"), ("red", "fox", "both")}


def test_a_rare_word_weighs_more_than_a_common_one():
    texts = ("common", "rare", "common", "common")
    query = Query("q", "rank", "common rare", tuple(Candidate(f"c{i}", t) for i, t in enumerate(texts)), (0.0, 1.0, 0.0, 0.0))
    assert baselines.bm25(query) == ["c1", "c0", "c2", "c3"]


def test_bm25_reads_a_history_and_ignores_case_and_keeps_the_given_order_among_equals():
    candidates = tuple(Candidate(c, t) for c, t in (("z", "plain"), ("y", "JAZZ album"), ("x", "plain"), ("w", "jazz album")))
    query = Query("q", "rec-music", ("some Jazz", "more jazz"), candidates, (0.0, 1.0, 0.0, 0.0))
    assert baselines.bm25(query) == ["y", "w", "z", "x"]
    assert baselines.input_order(query) == ["z", "y", "x", "w"]
    assert baselines.bm25(Query("q", "rank", "", candidates, query.relevance)) == ["z", "y", "x", "w"]


def test_p_is_the_share_of_sign_flips_that_are_as_extreme():
    assert stats.randomization_p([0.0] * 20) == 1
    assert stats.randomization_p([1.0, -1.0]) == 1
    assert stats.randomization_p([1.0] * 5) == pytest.approx(2 / 32, abs=0.01)  # only all plus and all minus are as extreme
    assert stats.randomization_p([1.0] * 40) == pytest.approx(1 / (stats.SAMPLES + 1))  # never 0
    values = [0.5, 0.3, -0.1, 0.4, 0.2, -0.3, 0.6]
    flips = [abs(sum(s * v for s, v in zip(signs, values))) for signs in itertools.product((1, -1), repeat=7)]
    exact = sum(f >= abs(sum(values)) - 1e-12 for f in flips) / len(flips)
    assert stats.randomization_p(values) == pytest.approx(exact, abs=0.015)


def test_p_has_two_sides_and_grows_with_noise():
    gain = np.random.default_rng(0).normal(0.1, 0.3, 100)
    assert stats.randomization_p(gain) == stats.randomization_p(-gain) < 0.05
    assert stats.randomization_p(gain - gain.mean() + 0.01) > 0.5


def test_under_no_effect_p_is_below_a_tenth_a_tenth_of_the_time():
    rng = np.random.default_rng(1)
    small = sum(stats.randomization_p(rng.normal(size=30), samples=300) < 0.1 for _ in range(400))
    assert 20 < small < 64  # 40 expected, sd 6


def test_the_interval_of_the_mean_is_that_of_the_normal_law_for_many_values():
    values = np.random.default_rng(2).normal(3, 2, 400)
    low, high = stats.bootstrap_interval(values)
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.03) and high == pytest.approx(values.mean() + half, abs=0.03)
    assert stats.bootstrap_interval([0.25] * 9) == (0.25, 0.25)
    inner = stats.bootstrap_interval(values, level=0.5)
    assert low < inner[0] < values.mean() < inner[1] < high


def test_statistics_repeat_for_a_seed_and_only_for_that_one():
    values = np.random.default_rng(3).normal(0.05, 0.3, 50)
    for statistic in (stats.randomization_p, stats.bootstrap_interval):
        assert statistic(values, seed=4) == statistic(values, seed=4) != statistic(values, seed=5)


def test_the_mean_of_rows_is_taken_name_by_name():
    assert metrics.mean([{"MRR": 1.0, "Hit@1": 0.0}, {"MRR": 0.5, "Hit@1": 1.0}]) == {"MRR": 0.75, "Hit@1": 0.5}
