"""Metrics agree with trec_eval to the last digit, the chance row is the mean over all orders, BM25 is the textbook's
formula, and the statistics give known p-values and intervals for known cases, the same ones for the same seed."""

import itertools
import math
import random
from pathlib import Path

import numpy as np
import pytest
import pytrec_eval

from ranker import metrics, trec_files
from ranker.data import Candidate, Query
from ranker.errors import UserError
from ranker.evaluation import baselines, stats

REAL = Path(__file__).parents[2] / "shared/data/trec_eval_tests"

H = lambda n: sum(1 / i for i in range(1, n + 1))  # noqa: E731
EVERY = (*metrics.NAMES, "nDCG", "MRR@3", "AP", "AP@4", "Recall@5", "P@5", "P@30")
TREC = {"MRR": "recip_rank", "nDCG": "ndcg", "nDCG@10": "ndcg_cut_10", "nDCG@3": "ndcg_cut_3", "AP": "map",
        "AP@10": "map_cut_10", "Hit@1": "success_1",
        "Hit@5": "success_5", "Recall@5": "recall_5", "Recall@100": "recall_100", "P@5": "P_5", "P@20": "P_20"}


def lists(count, seed=0):
    """Relevance in ranked order: integer grades, at least one above 0."""
    rng = random.Random(seed)
    for _ in range(count):
        gains = [rng.choice((0, 0, 0, 1, 2, 3)) for _ in range(rng.randint(1, 30))]
        gains[rng.randrange(len(gains))] = rng.randint(1, 3)
        yield gains


def one(name, gains, level=0.0):
    return metrics.of(gains, level, [name])[name]


@pytest.mark.parametrize("level", [1, 2, 3])
def test_metrics_equal_trec_eval_on_two_thousand_runs(tmp_path, level):
    """Judged documents that were not retrieved, unjudged ones, queries without relevant ones, short lists, tied scores,
    missing queries."""
    rng = random.Random(level)
    qrels, run = {}, {}
    for q in range(2000):
        judged = {f"d{i}": rng.choice((-1, 0, 0, 1, 2, 3)) for i in range(rng.randint(1, 30))}
        if q % 50 == 0:
            judged = dict.fromkeys(judged, 0)
        qrels[f"q{q}"] = judged
        if q % 40 != 1:
            found = rng.sample([*judged, "x1", "x2", "x10"], rng.randint(1, len(judged) + 3))
            run[f"q{q}"] = {d: float(rng.randint(0, 6)) if q % 3 == 0 else rng.random() for d in found}
    (tmp_path / "run").write_text("".join(f"{q} Q0 {d} 1 {s!r} t\n" for q, scores in run.items()
                                          for d, s in scores.items()))
    ours = trec_files.read_run(tmp_path / "run", ties="trec")
    gains = [[qrels[q].get(d, 0) for d in ours.get(q, [])] for q in qrels]
    values = metrics.compute(list(TREC), gains, [list(judged.values()) for judged in qrels.values()], level)
    evaluator = pytrec_eval.RelevanceEvaluator(
        qrels, {"recip_rank", "ndcg", "map", "ndcg_cut.3,10", "map_cut.10", "success.1,5", "recall.5,100", "P.5,20"},
        relevance_level=level)
    theirs = evaluator.evaluate(run)
    for i, q in enumerate(qrels):  # a missing query counts 0, as in trec_eval -c
        for name, name_there in TREC.items():
            assert values[name][i] == pytest.approx(theirs[q][name_there] if q in theirs else 0.0, abs=1e-12), (q, name)


@pytest.mark.skipif(not REAL.is_dir(), reason="no ../shared/data/trec_eval_tests beside the repository")
@pytest.mark.parametrize("expected, qrels_file, run_file, level", [
    ("out.test.a", "qrels.test.gz", "results.test.gz", 1), ("out.test.aq", "qrels.test.gz", "results.test.gz", 1),
    ("out.test.aqc", "qrels.test.gz", "results.trunc.gz", 1),
    ("out.test.aql", "qrels.rel_level.gz", "results.test.gz", 2)])
def test_metrics_equal_the_outputs_that_trec_eval_ships(expected, qrels_file, run_file, level):
    with open(REAL / expected) as file:
        wanted = {(m, q): float(v) for m, q, v in (line.split() for line in file)
                  if m != "runid" and not m.startswith("relstring")}
    qrels, run = trec_files.read_qrels(REAL / qrels_file), trec_files.read_run(REAL / run_file, ties="trec")
    names = {m: metrics.canonical(m) for m, _ in wanted if m in ("map", "ndcg", "recip_rank")
             or m.startswith(("ndcg_cut_", "map_cut_", "success_", "recall_", "P_"))}
    values = metrics.compute(list(names.values()), [[qrels[q].get(d, 0) for d in run.get(q, [])] for q in qrels],
                             [list(g.values()) for g in qrels.values()], level)
    compared = 0
    for (measure, query), value in wanted.items():
        if measure in names:
            ours = values[names[measure]]
            assert ((ours.mean() if query == "all" else ours[list(qrels).index(query)])
                    == pytest.approx(value, abs=5.1e-5)), (measure, query)
            compared += 1
    assert compared >= len(names) >= 34


def test_hand_values():
    gains = [0, 2, 0, 1]
    ideal = 2 + 1 / math.log2(3)
    assert one("nDCG@10", gains) == pytest.approx((2 / math.log2(3) + 1 / math.log2(5)) / ideal)
    assert one("nDCG@3", gains) == pytest.approx(2 / math.log2(3) / ideal)
    assert one("nDCG@1", gains) == 0
    assert one("MRR", gains) == 1 / 2 and one("MRR@1", gains) == 0
    assert one("MRR", [0, 1, 0, 2]) == 1 / 4  # only the best grade counts ...
    assert one("MRR", [0, 1, 0, 2], level=1) == 1 / 2  # ... unless a level is named
    assert [one(f"Hit@{k}", gains) for k in (1, 2, 5)] == [0, 1, 1]
    assert one("Hit@2", [0, 1, 0, 2]) == 0 and one("Hit@2", [0, 1, 0, 2], level=1) == 1
    assert (one("AP", gains, level=1) == pytest.approx((1 / 2 + 2 / 4) / 2) and one("Recall@2", gains, level=1) == 0.5
            and one("P@5", gains, level=1) == 0.4)


def test_what_was_judged_but_not_ranked_counts_in_the_ideal():
    values = metrics.compute(["nDCG@10", "AP", "Recall@10", "MRR"], [[1, 0], []], [[1, 0, 3, 1], [2]], level=1)
    assert values["nDCG@10"].tolist() == pytest.approx([1 / (3 + 1 / math.log2(3) + 1 / 2), 0])
    assert (values["AP"].tolist() == pytest.approx([1 / 3, 0])
            and values["Recall@10"].tolist() == pytest.approx([1 / 3, 0]) and values["MRR"].tolist() == [1, 0])


def test_real_valued_and_tied_utilities():
    assert one("MRR", [0.1, 0.8, 0.8, 0.0]) == 1 / 2
    assert one("nDCG@10", [0.8, 0.8, 0.1]) == 1
    assert metrics.of([0.0, 0.0]) == dict.fromkeys(metrics.NAMES, 0.0)  # no gain, no credit, no error
    assert one("MRR", [0, 1], level=2) == 0


@pytest.mark.parametrize("alias, name", [("ndcg_cut_10", "nDCG@10"), ("ndcg@10", "nDCG@10"), ("NDCG", "nDCG"),
                                         ("mrr@10", "MRR@10"), ("recip_rank", "MRR"), ("RR", "MRR"),
                                         ("hr@1", "Hit@1"), ("success_5", "Hit@5"), ("map", "AP"),
                                         ("map_cut_100", "AP@100"), ("recall@5", "Recall@5"),
                                         ("R@1000", "Recall@1000"), ("P_20", "P@20"), (" Precision@1 ", "P@1")])
def test_other_tools_names_are_understood(alias, name):
    assert metrics.canonical(alias) == name == metrics.canonical(name)


@pytest.mark.parametrize("name", ["ndgc@10", "recall", "hit", "ndcg@0", "", "@10", "f1@3", "mrr@ten"])
def test_unknown_metrics_are_refused(name):
    with pytest.raises(UserError, match="unknown metric"):
        metrics.canonical(name)


def test_a_perfect_order_scores_one_and_any_swap_that_hurts_scores_less():
    for gains in lists(100, seed=1):
        best = sorted(gains, reverse=True)
        assert all(value == pytest.approx(1) for value in metrics.of(best).values())
        if best[0] > best[-1]:
            swapped = [best[-1], *best[1:-1], best[0]]
            assert one("nDCG@20", swapped) < 1


@pytest.mark.parametrize("gains", [[1], [0, 1], [0, 1, 0], [1, 1, 0], [2, 1, 0, 0], [2, 2, 1, 0],
                                   [0.5, 0.2, 0.5, 0.0, 0.1], [1, 1, 1], [3, 2, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0]])
@pytest.mark.parametrize("level", [0.0, 1.0, 2.0, 9.0])
@pytest.mark.parametrize("judged", [None, (0, 3, 2)])
def test_the_chance_row_is_the_mean_over_all_orders(gains, level, judged):
    orders = list(itertools.permutations(gains))
    known = judged and [*gains, *judged]
    values = metrics.compute(EVERY, orders, known and [known] * len(orders), level)
    assert (metrics.random_order(gains, level, EVERY, known)
            == pytest.approx({name: v.mean() for name, v in values.items()}, abs=1e-12))


@pytest.mark.parametrize("n, mrr", [(20, 0.1799), (10, 0.2929), (5, 0.4567), (7, 0.3704), (9, 0.3143)])
def test_chance_with_one_positive_is_the_harmonic_number_over_n(n, mrr):
    chance = metrics.random_order([1.0, *[0.0] * (n - 1)])
    assert chance["MRR"] == pytest.approx(H(n) / n) and chance["MRR"] == pytest.approx(mrr, abs=5e-5)
    assert chance["Hit@1"] == pytest.approx(1 / n) and chance["Hit@5"] == pytest.approx(5 / n)


def test_bm25_by_hand():
    """One text has both words and grows longer; where it falls behind the texts with one word depends on k1, b and
    idf."""
    rng, outcomes = random.Random(0), set()
    for length in range(2, 150):
        others = {f"other{i}": "dog" for i in range(rng.randint(8, 20))}
        texts = {"both": "fox red" + " x" * (length - 2), "red": "Red!", "fox": "a fox"} | others
        n, average = len(texts), (length + 1 + 2 + len(others)) / len(texts)
        idf = math.log(1 + (n - 2 + 0.5) / (2 + 0.5))  # each word stands in two texts
        weight = lambda words: 1.9 / (1 + 0.9 * (0.6 + 0.4 * words / average))  # noqa: E731
        # `red` is asked twice
        scores = {"both": 3 * idf * weight(length), "red": 2 * idf * weight(1), "fox": idf * weight(2)}
        query = Query("q", "rank", "red fox, RED", tuple(Candidate(c, t) for c, t in texts.items()),
                      (1.0, *[0.0] * (n - 1)))
        expected = sorted(scores, key=lambda c: -scores[c])
        assert baselines.bm25(query)[:3] == expected
        outcomes.add(tuple(expected))
    assert outcomes == {("both", "red", "fox"), ("red", "both", "fox"), ("red", "fox", "both")}


def test_a_rare_word_weighs_more_than_a_common_one():
    texts = ("common", "rare", "common", "common")
    query = Query("q", "rank", "common rare", tuple(Candidate(f"c{i}", t) for i, t in enumerate(texts)),
                  (0.0, 1.0, 0.0, 0.0))
    assert baselines.bm25(query) == ["c1", "c0", "c2", "c3"]


def test_bm25_reads_a_history_and_ignores_case_and_keeps_the_given_order_among_equals():
    candidates = tuple(Candidate(c, t)
                       for c, t in (("z", "plain"), ("y", "JAZZ album"), ("x", "plain"), ("w", "jazz album")))
    query = Query("q", "rec-music", ("some Jazz", "more jazz"), candidates, (0.0, 1.0, 0.0, 0.0))
    assert baselines.bm25(query) == ["y", "w", "z", "x"]
    assert baselines.input_order(query) == ["z", "y", "x", "w"]
    assert baselines.bm25(Query("q", "rank", "", candidates, query.relevance)) == ["z", "y", "x", "w"]


def test_p_is_the_share_of_sign_flips_that_are_as_extreme():
    assert stats.randomization_p([0.0] * 20) == 1
    assert stats.randomization_p([1.0, -1.0]) == 1
    # only all plus and all minus are as extreme
    assert stats.randomization_p([1.0] * 5) == pytest.approx(2 / 32, abs=0.01)
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
    assert (low == pytest.approx(values.mean() - half, abs=0.03)
            and high == pytest.approx(values.mean() + half, abs=0.03))
    assert stats.bootstrap_interval([0.25] * 9) == (0.25, 0.25)
    inner = stats.bootstrap_interval(values, level=0.5)
    assert low < inner[0] < values.mean() < inner[1] < high


def test_statistics_repeat_for_a_seed_and_only_for_that_one():
    values = np.random.default_rng(3).normal(0.05, 0.3, 50)
    for statistic in (stats.randomization_p, stats.bootstrap_interval):
        assert statistic(values, seed=4) == statistic(values, seed=4) != statistic(values, seed=5)


def test_the_mean_of_rows_is_taken_name_by_name():
    assert metrics.mean([{"MRR": 1.0, "Hit@1": 0.0}, {"MRR": 0.5, "Hit@1": 1.0}]) == {"MRR": 0.75, "Hit@1": 0.5}


def read(tmp_path, run, qrels="q1 0 d1 1\n"):
    """The run and the judgements of such files."""
    (tmp_path / "run").write_text(run, encoding="utf-8")
    (tmp_path / "qrels").write_text(qrels, encoding="utf-8")
    return trec_files.read_run(tmp_path / "run"), trec_files.read_qrels(tmp_path / "qrels")


def test_columns_are_parted_by_ascii_white_space_or_by_tabs_and_ids_keep_every_other_character(tmp_path):
    spaced = "q1 Q0 a\u00a0b 1 3 t\nq1\u2003x Q0 c\u3000 2 2 t\n"
    assert read(tmp_path, spaced)[0] == {"q1": ["a\u00a0b"], "q1\u2003x": ["c\u3000"]}
    tabbed = "q 1\tQ0\ta b\t1\t3\tmy tag\nq 1\tQ0\tc\t2\t2\tmy tag\n"
    assert read(tmp_path, tabbed, "q 1\t0\ta b\t1\n") == ({"q 1": ["a b", "c"]}, {"q 1": {"a b": 1}})
    with pytest.raises(UserError, match="run:1: 7 columns, expected 3 or 6"):
        read(tmp_path, "q1 Q0 a b 1 3 t\n")


def test_a_third_column_of_ranks_is_never_ranked_backwards(tmp_path):
    ranked = "q1\td1\t1\nq1\td2\t2\nq2\td9\t1\nq1\td3\t3\n"
    assert read(tmp_path, ranked)[0] == {"q1": ["d1", "d2", "d3"], "q2": ["d9"]}
    scored = "q1\td1\t1\nq1\td2\t3\nq1\td3\t2\n"  # no ranks: the second is not 2
    assert read(tmp_path, scored)[0] == {"q1": ["d2", "d3", "d1"]}
    assert read(tmp_path, "q1 Q0 d1 9 1 t\nq1 Q0 d2 8 2 t\n")[0] == {"q1": ["d2", "d1"]}  # six columns hold scores


def test_the_header_of_beir_and_grades_with_a_point_are_read(tmp_path):
    beir = "query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\td2\t2.0\n"
    assert read(tmp_path, "q1 d1 1\n", beir)[1] == {"q1": {"d1": 1, "d2": 2}}
    with pytest.raises(UserError, match="the grade '0.5' is no whole number"):
        read(tmp_path, "q1 d1 1\n", "q1 0 d1 0.5\n")
    with pytest.raises(UserError, match="qrels:2: the grade 'score'"):
        read(tmp_path, "q1 d1 1\n", "q1 d1 1\nquery-id corpus-id score\n")
