"""The sliding window closes at the head for every length: with an oracle one pass finds the best window - step, enough
passes everything."""

import random

import pytest

from ranker import drive, llms, metrics
from ranker.data import Candidate, Query

ORACLE, LIAR = llms.scripted(llms.right_answer), llms.scripted(llms.wrong_answer)


def query(n, seed=0) -> Query:
    grades = [float(g) for g in range(n)]  # all different
    random.Random(f"{n}/{seed}").shuffle(grades)
    return Query(f"q{n}.{seed}", "rank", "", tuple(Candidate(f"c{i}", f"text {i}") for i in range(n)), tuple(grades))


def ranked(queries, model=ORACLE, **options):
    return drive.run(drive.load_ranker({"name": "sliding"} | options), queries, model)


@pytest.mark.parametrize("window, step", [(20, 10), (20, 19), (20, 1), (4, 2), (2, 1), (7, 3), (60, 30), (10, 5)])
def test_one_pass_of_an_oracle_finds_the_best(window, step):
    k = window - step
    for r in ranked([query(n) for n in range(1, 61)], window=window, step=step):
        best = sorted(r.gains, reverse=True)
        assert (r.gains[:k] == best[:k]
                and metrics.of(r.gains, names=[f"nDCG@{k}"])[f"nDCG@{k}"] == pytest.approx(float(len(best) > 1)))


@pytest.mark.parametrize("window, step", [(20, 10), (4, 2), (2, 1), (7, 3)])
def test_enough_passes_sort_everything(window, step):
    for n in (1, 2, 15, 25, 55, 60):
        [r] = ranked([query(n)], window=window, step=step, passes=-(-n // (window - step)))
        assert r.gains == sorted(r.gains, reverse=True)


def test_one_relevant_candidate_reaches_the_top_from_any_place():
    for n in (2, 15, 21, 25, 39, 55):
        for place in range(n):
            q = Query("q", "rank", "", tuple(Candidate(f"c{i}", "") for i in range(n)),
                      tuple(float(i == place) for i in range(n)))
            assert ranked([q])[0].gains[0] == 1


@pytest.mark.parametrize("n, windows", [(1, []), (2, [(0, 2)]), (15, [(0, 15)]), (20, [(0, 20)]),
                                        (25, [(5, 25), (0, 15)]), (100, [(s, s + 20) for s in range(80, -1, -10)])])
def test_the_windows_are_those_of_the_recorded_runs_and_the_last_begins_at_the_head(n, windows):
    seen = []
    ranker = drive.load_ranker({"name": "sliding"})
    echo = llms.scripted(lambda ask: "<answer>" + " > ".join(f"[{k}]" for k in range(1, len(ask.pool) + 1))
                         + "</answer>")
    [r] = drive.run(ranker, [query(n)], echo,
                    on_ask=lambda ask, *_: seen.append((int(ask.pool[0][1:]), int(ask.pool[-1][1:]) + 1)))
    assert seen == windows and ranker.calls(n) == r.calls == len(windows) and r.order == list(query(n).ids)


def test_only_the_first_are_ranked_and_the_rest_keeps_its_place():
    [r] = ranked([query(50)], LIAR, depth=20)
    assert r.calls == 1 and r.order[20:] == list(query(50).ids[20:]) and r.gains[:20] == sorted(r.gains[:20])


def test_training_draws_windows_that_hold_a_positive():
    ranker = drive.load_ranker({"name": "sliding", "window": 5, "step": 2})
    for seed in range(30):
        ask = ranker.sampled_asks(query(12), random.Random(seed), None)[0]
        assert len(ask.pool) == 5 and set(query(12).positives) <= set(ask.pool) and ask.decision == "order"
    assert len(ranker.sampled_asks(query(3), random.Random(0), 3)[0].pool) == 3
    assert ranker.calls(3) == 1
