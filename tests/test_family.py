"""Every ranker on the same real queries: one who knows puts the best first, and each costs the calls and the texts that
its paper says."""

import random
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import correlation, fmean

import pytest

from ranker import drive, llms, plugins, trec_files
from ranker.evaluation import foreign
from ranker.evaluation.baselines import BM25
from ranker.data import Candidate, Query
from ranker.rankers import pointwise
from ranker.reading import json_file

REAL = Path(__file__).parents[2] / "shared/data"
pytestmark = pytest.mark.skipif(not REAL.is_dir(), reason="no ../shared/data beside the repository")

RANKERS = plugins.names("ranker")
SCRIPTED = {"pointwise": {"score": "written"}}  # what a ranker needs where no probabilities are
ORACLE, MUTE = ({role: llms.scripted(write) for role in ("policy", "base")}
                for write in (llms.right_answer, lambda ask: ""))


def loaded(name, **options):
    return drive.load_ranker({"name": name} | SCRIPTED.get(name, {}) | options)


@cache
def queries(name) -> tuple[Query, ...]:
    """DL19: 43 queries, 100 passages of BM25. NovelEval: 21 questions, 20 passages of a search engine. SciFact: 60
    claims, 20 abstracts."""
    if name == "scifact":
        contexts, documents = foreign.read_corpus(REAL / name / "corpus.jsonl.gz", REAL / name / "topics.test.tsv.gz")
        rng, made = random.Random(0), []
        for query, grades in list(trec_files.read_qrels(REAL / name / "qrels.test.txt").items())[:60]:
            ids = [*grades, *rng.sample(sorted(documents.keys() - grades.keys()), 20 - len(grades))]
            candidates, relevance = (tuple(Candidate(d, documents[d]) for d in ids),
                                     tuple(float(grades.get(d, 0)) for d in ids))
            made.append(Query(query, "rank", contexts[query], candidates, relevance).shuffled(rng))
        return tuple(made)
    corpus, qrels = {"trec_dl_bm25": ("retrieve_results_dl19_bm25_top100.json.gz", "qrels.dl19-passage.txt.gz"),
                     "noveleval": ("data.json.gz", "qrels.txt")}[name]
    run = {str(entry["hits"][0]["qid"]): [str(hit["docid"]) for hit in entry["hits"]]
           for entry in json_file(REAL / name / corpus)}
    return tuple(foreign.queries(run, trec_files.read_qrels(REAL / name / qrels),
                                 foreign.read_corpus(REAL / name / corpus), corpus)[0])


@pytest.mark.parametrize("data, count, candidates", [("trec_dl_bm25", 43, 100), ("noveleval", 21, 20),
                                                     ("scifact", 60, 20)])
@pytest.mark.parametrize("name", RANKERS)
def test_one_who_knows_puts_the_best_ten_first_whatever_the_ranker(name, data, count, candidates):
    assert len(queries(data)) == count and all(len(q.ids) == candidates and max(q.relevance) > 0 for q in queries(data))
    ranker = loaded(name)
    for r in drive.run(ranker, queries(data), ORACLE):
        assert r.gains[:10] == sorted(r.gains, reverse=True)[:10]
        assert r.failed == 0 and 0 < r.calls <= ranker.calls(candidates)


@pytest.mark.parametrize("name", RANKERS)
def test_who_says_nothing_leaves_a_permutation_and_every_failure_counted(name):
    for r in drive.run(loaded(name), queries("noveleval"), MUTE):
        assert (sorted(r.order) == sorted(r.query.ids) and r.failed == r.calls > 0
                and r.statuses == Counter(missing_answer=r.calls))


def told_apart() -> list[Query]:
    """DL19 in random order, as if no two passages were equally relevant."""
    made = []
    for query in queries("trec_dl_bm25"):
        rng = random.Random(query.id)
        shuffled = query.shuffled(rng)
        made.append(replace(shuffled, relevance=tuple(map(float, rng.sample(range(100), 100)))))
    return made


@pytest.mark.parametrize("name, options, calls, texts", [
    ("elimination", {}, 99, 5049), ("listwise", {}, 1, 100), ("setwise", {}, 23.4, 446), ("sliding", {}, 9, 180),
    ("pointwise", {}, 100, 100), ("elimination", {"drop": 10}, 10, 550), ("setwise", {"children": 9}, 31.4, None),
    ("sliding", {"window": 10, "step": 5}, 19, 190)])
def test_a_hundred_candidates_cost_the_calls_and_texts_of_the_papers(name, options, calls, texts):
    read: Counter = Counter()
    rankings = drive.run(loaded(name, **options), told_apart(), ORACLE,
                         on_ask=lambda ask, *_: read.update({ask.query.id: len(ask.left)}))
    assert len(read) == 43
    near = 0.02 if name == "setwise" else 0  # heapsort's number depends on the order
    assert fmean(r.calls for r in rankings) == pytest.approx(calls, rel=near)
    assert texts is None or fmean(read.values()) == pytest.approx(texts, rel=near)


def test_the_order_given_stands_in_for_the_scores_of_its_first_stage_better_than_the_words_of_the_pool():
    hits = [hit for entry in json_file(REAL / "trec_dl_bm25/retrieve_results_dl19_bm25_top100.json.gz")
            for hit in entry["hits"]]
    scores = {(str(hit["qid"]), str(hit["docid"])): hit["score"] for hit in hits}
    for stand_in, like in ((pointwise.places, 0.975), (lambda q: BM25(q.texts).scores(q.context), 0.286)):
        found = [correlation(list(stand_in(q).values()), [scores[q.id, c] for c in q.ids])
                 for q in queries("trec_dl_bm25")]
        assert fmean(found) == pytest.approx(like, abs=0.001)
