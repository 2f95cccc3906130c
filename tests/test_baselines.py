"""The rows a model must beat, the routing plane, and the comparison of two evaluations, against hand-made cases."""

import csv
import json
import math
import random
import re
import statistics
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

import evaluate
from ranker import compare
from ranker.data import Candidate, Query, write_queries
from ranker.drive import Ranking
from ranker.errors import exit_status
from ranker.evaluation import baselines, cost_quality, report, stats


def movie(name, history, candidates, positive) -> Query:
    return Query(name, "rec-movie", tuple(history), tuple(Candidate(c, c) for c in candidates),
                 tuple(float(c == positive) for c in candidates))


TRAIN = [movie("t1", "abc", "dxyz", "d"), movie("t2", "abd", "exyz", "e"), movie("t3", "de", "axyz", "a"),
         movie("t4", "ff", "gxyz", "g")]


def test_popularity_counts_users_and_item_knn_their_cosine():
    query = movie("q", "bc", "xgdea", "e")
    # 3 users have d and a, 2 e, 1 g (not 2: one user had f twice)
    assert baselines.popularity(TRAIN)(query) == ["d", "a", "e", "g", "x"]
    users = {"a": {1, 2, 3}, "b": {1, 2}, "c": {1}, "d": {1, 2, 3}, "e": {2, 3}, "g": {4}}
    cosine = lambda i, j: len(users[i] & users[j]) / math.sqrt(len(users[i]) * len(users[j]))  # noqa: E731
    score = {c: cosine("b", c) + cosine("c", c) for c in "gdea"} | {"x": 0.0}
    assert baselines.item_knn(TRAIN)(query) == sorted(query.ids, key=lambda c: -score[c]) == ["d", "a", "e", "x", "g"]


def test_a_user_with_several_queries_counts_once():
    last, earlier = movie("u@1", "ab", "cxyz", "c"), movie("u", "abc", "dxyz", "d")
    several = [*TRAIN, *(replace(q, group="u") for q in (last, earlier))]
    one = [*TRAIN, movie("u", "abc", "dxyz", "d")]
    queries = [movie(f"q{h}", h, "xgdeca", "e") for h in ("bc", "a", "df")]
    for baseline in (baselines.popularity, baselines.item_knn):
        assert [baseline(several)(q) for q in queries] == [baseline(one)(q) for q in queries]
    assert baselines.owned(several)[-1] == set("abcd")


def routed(name, task, question, table) -> Query:
    """table: model -> (performance, cost, relevance)."""
    return Query(name, task, question, tuple(Candidate(m, m, p, c) for m, (p, c, _) in table.items()),
                 tuple(float(r) for *_, r in table.values()))


def fleet(rng, name, task="router-performance") -> Query:
    kind = rng.choice(["sum", "poem"])
    good = {"cheap": kind == "sum", "mid": rng.random() < 0.3, "dear": kind == "poem"}
    models = {m: (float(good[m]), cost * rng.uniform(0.8, 1.2), float(good[m]))
              for m, cost in (("cheap", 1), ("mid", 5), ("dear", 20))}
    shuffled = dict(rng.sample(list(models.items()), 3))
    return routed(name, task, f"please write a {kind} about item {rng.randrange(1000)}",
                  shuffled | ({} if any(good.values()) else {"mid": (1.0, 5.0, 1.0)}))


def test_routing_baselines_know_the_training_queries_alone():
    rng = random.Random(0)
    train, test = [fleet(rng, f"t{i}") for i in range(200)], [fleet(rng, f"q{i}") for i in range(40)]
    rankers = baselines.every(test, train)
    assert set(rankers) == {"input order", "reverse order", "BM25", "cheapest", "dearest (largest)", "best single",
                            "kNN", "oracle"}
    assert all(rankers["cheapest"](q) == ["cheap", "mid", "dear"] == rankers["dearest (largest)"](q)[::-1]
               for q in test)
    mean = Counter()
    for q in train:
        mean.update(q.rel)
    assert all(rankers["best single"](q)[0] == max(mean, key=mean.get) for q in test)
    assert sum(q.rel[rankers["kNN"](q)[0]] for q in test) >= 38  # the kind of question decides, and words tell the kind
    assert all([q.rel[c] for c in rankers["oracle"](q)] == sorted(q.relevance, reverse=True) for q in test)
    assert all(rankers["reverse order"](q) == rankers["input order"](q)[::-1] for q in test)
    assert set(baselines.every(test, [])) == {"input order", "reverse order", "BM25", "oracle"}


def test_the_hull_rises_and_bends_down_and_its_area_is_the_mean_height():
    points = [(1, 0.2), (2, 0.5), (3, 0.55), (4, 0.5), (5, 0.9), (2, 0.4)]
    assert cost_quality.hull(points) == [(1, 0.2), (2, 0.5), (5, 0.9)]
    rng = random.Random(1)
    for _ in range(50):
        cloud = [(rng.random(), rng.random()) for _ in range(20)]
        corners = cost_quality.hull(cloud)
        assert corners[0] == min(cloud) and corners[-1][1] == max(y for _, y in cloud)
        for x, y in cloud:  # no point lies above
            below = [(a, b) for a, b in zip(corners, corners[1:]) if a[0] <= x <= b[0]]
            height = corners[-1][1]
            if below:
                (x0, y0), (x1, y1) = below[0]
                height = y0 + (y1 - y0) * (x - x0) / (x1 - x0)
            assert y <= height + 1e-12
    assert cost_quality.area([(1, 0.2), (2, 0.5)], 1, 5) == pytest.approx((0.35 * 1 + 0.5 * 3) / 4)
    assert (cost_quality.area([(1, 0.2)], 1, 5) == pytest.approx(0.2)
            and cost_quality.area([(1, 0.2), (9, 1.0)], 1, 5) == pytest.approx(0.2))


def test_the_routing_table_says_what_first_choices_score_and_cost():
    queries = [routed(f"q{i}", "router-cost", "x", {"a": (1.0, 0.002, 0.8), "b": (0.0, 0.001, 0.5 * i)})
               for i in range(2)]
    row = report.model_row("policy", [[Ranking(query=q, order=["b", "a"]) for q in queries]], 0.0)
    header, [line] = cost_quality.table_lines([row], queries)
    assert dict(zip(header, line)) == {"routing": "router-cost: policy", "performance": "0.000", "$ per 1000": "1.000",
                                       "reward": "0.250", "gap to oracle": "0.550", "mean rank": "2.0",
                                       "first in": "0%", "area": "0.000",
                                       "router's tokens": "0", "seconds": "0.000"}


def test_a_router_stands_among_single_models_by_tag():
    """Zooter's MTR and uplift: b is chosen, which is the best under one tag and the third under the other."""
    rewards = {"x": (0.1, 0.9, 0.0), "y": (0.8, 0.3, 0.5)}
    queries = [replace(routed(f"{tag}{i}", "router-balance", "q", dict(zip("abc", ((1.0, 0.001, r) for r in given)))),
                       tags=(tag,)) for tag, given in rewards.items() for i in range(2)]
    pairs = [(q, q.candidates[1]) for q in queries]
    assert cost_quality.standing(pairs) == (2.0, 0.5)  # 1 under x, 3 under y
    assert cost_quality.standing([(replace(q, tags=()), c) for q, c in pairs]) == (1.0, 1.0)  # 0.6, 0.45, 0.25 in all


def test_what_the_router_costs_itself_is_part_of_the_cost():
    queries = [routed("q", "router-cost", "x", {"a": (1.0, 0.002, 0.8), "b": (0.0, 0.001, 0.0)})]
    ranking = Ranking(query=queries[0], order=["b", "a"], prompt_tokens=1000, completion_tokens=100, seconds=0.36)
    row = report.model_row("policy", [[ranking]], 0.0)
    row.prices, row.hourly = (2.0, 10.0), 20.0  # 0.002 + 0.001 for the tokens, 0.002 for the seconds
    header, [line] = cost_quality.table_lines([row], queries)
    found = dict(zip(header, line))
    assert (found["$ per 1000"], found["router's tokens"], found["seconds"]) == ("6.000", "1100", "0.360")


def test_a_budget_is_kept_by_the_lowest_threshold_that_keeps_it():
    rng = random.Random(0)
    queries = [fleet(rng, f"q{i}") for i in range(12)]
    orders = [rng.sample(q.ids, 3) for q in queries]
    for scored in (False, True):
        row = report.model_row("r", [[Ranking(query=q, order=o, scores={c: rng.random() for c in o} if scored else {})
                                      for q, o in zip(queries, orders)]], 0.0)
        price = {name: cost for name, (cost, _) in cost_quality.singles(queries).items()}

        def cost(threshold):
            chosen = [max(r.order, key=lambda c: (r.scores[c] if scored else 1 - r.order.index(c) / 2)
                          - threshold * price[c]) for r in row.rankings]
            return sum(q.candidates[q.ids.index(c)].cost for q, c in zip(queries, chosen)) / len(queries)

        for budget in (1.1, 2.0, 5.0, 11.0, 100.0):
            threshold, pairs = cost_quality.within(row, row.rankings, budget)
            reached = cost_quality.point(pairs)[0]
            assert reached <= budget and reached == pytest.approx(cost(threshold + 1e-12))
            assert threshold == 0 or cost(threshold * (1 - 1e-9)) > budget
        header, [line] = cost_quality.budget_lines([row], 100.0)  # 0.1 a query: less than the cheapest costs
        assert header[0] == "within $100 per 1000" and line[-1] == "none keeps it"
        assert {c.id for _, c in cost_quality.within(row, row.rankings, 0.1)[1]} == {"cheap"}


def test_holm_by_hand():
    assert (stats.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06]) and stats.holm([0.6, 0.9]) == [1.0, 1.0]
            and stats.holm([0.2]) == [0.2])
    with pytest.raises(ValueError):
        stats.holm([0.1, math.nan])


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    def run(module, *arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.argv", [module.__name__, *map(str, arguments)])
        status = exit_status(module.main)
        return status, *capsys.readouterr()
    return run


def test_baselines_need_no_model_and_leave_a_routing_plane(call, tmp_path):
    rng = random.Random(0)
    write_queries(tmp_path / "r.jsonl", [fleet(rng, f"t{i}", task) for i in range(300)
                                         for task in ["router-performance", "router-cost"][i % 2:][:1]])
    status, out, err = call(evaluate, "--data", "r.jsonl", "--baselines", "--orders", 3, "--metrics", "mrr,ndcg@10",
                            "--budget", 4000)
    assert "within $4000 per 1000" in out
    assert status == 0, err
    [folder] = Path("runs/eval-baselines").glob("r-*")
    results = json.loads((folder / "results.json").read_text())
    means = {name: row["repaired"]["mean"]["MRR"] for name, row in results["rows"].items()}
    assert (means["oracle"] == 1 and means["kNN"] > means["best single"] > means["random order"]
            and results["metrics"] == ["MRR", "nDCG@10"])
    assert (results["rows"]["input order"]["spread_over_orders"] > 0.001
            > results["rows"]["cheapest"]["spread_over_orders"])
    assert results["gains"]["kNN"]["all"]["holm"] >= results["gains"]["kNN"]["all"]["p"]
    assert ("On average a positive stands at place" in out and "$ per 1000" in out
            and (folder / "routing.png").stat().st_size > 5000)
    assert "the test split" in out and results["queries"] < 60


def test_two_evaluations_are_compared_query_by_query_and_unlike_ones_refused(call, tmp_path):
    rng = random.Random(0)
    queries = [fleet(rng, f"t{i}") for i in range(200)]
    write_queries(tmp_path / "r.jsonl", queries)
    write_queries(tmp_path / "other.jsonl", queries[:150])
    assert "--data.train=FILE" in call(evaluate, "--data", "r.jsonl", "other.jsonl", "--baselines")[2]
    for name, more in (("one", []), ("two", []), ("shuffled", ["--orders", 2])):
        assert call(evaluate, "--data", "r.jsonl", "--baselines", "--out", name, *more)[0] == 0
    assert call(evaluate, "--data", "other.jsonl", "--baselines", "--out", "other")[0] == 0
    status, out, _ = call(compare, "one", "two/results.json", "--row", "input order", "--row", "kNN")
    assert status == 0 and "one: input order" in out and "two: kNN" in out
    gains = json.loads(Path("one/results.json").read_text())["gains"]["kNN"]["all"]
    assert (f"gain {gains['gain']:+.4f}" in out and f"p = {gains['p']:.4f}" in out
            and f"better {gains['wins']}, same {gains['ties']}" in out)
    status, out, _ = call(compare, "one", *["two"] * 3, *(word for name in ("input order", "kNN", "BM25", "input order")
                                                          for word in ("--row", name)))
    metric = json.loads(Path("one/results.json").read_text())["metrics"][0]
    with open("one/per_query.csv", newline="") as file:
        lines = [line for line in csv.DictReader(file) if line["measure"] == metric]
    order, knn, bm25 = (statistics.fmean(float(line["value"]) for line in lines if line["name"] == name)
                        for name in ("input order", "kNN", "BM25"))
    mean, deviation = statistics.fmean((knn, bm25, order)), statistics.stdev((knn, bm25, order))
    assert status == 0 and re.search(rf"mean of the last 3 \(deviation {deviation:.4f}\) *\| +{mean:.4f}", out)
    assert f"gain {mean - order:+.4f}" in out  # queries are paired with the mean of their three values
    for arguments, words in ((["one"], "name two evaluations, or more"),
                             (["one", "two", "two", "--row", "a", "--row", "b"], "one for each; 2 are named"),
                             (["one", "two", "shuffled"], "differ in their candidate orders"),
                             (["one", "shuffled"], "differ in their candidate orders"),
                             (["one", "other"], "differ in their data"),
                             (["one", "two", "--row", "knn"], "has no row 'knn' (known: BM25"),
                             (["one", "two", "--metric", "P@3"], "no metric 'P@3'"),
                             (["one", "gone"], "gone/results.json")):
        status, _, err = call(compare, *arguments)
        assert status == 2 and words in err and err.count("\n") == 1, arguments
