"""Recorded completions of another tool go through our ranker and parser and give back the runs that tool shipped."""

import gzip
import json
from pathlib import Path

import pytest

import evaluate
from ranker import answers, drive, llms, metrics, trec_files
from ranker.data import Ask, Candidate, Query
from ranker.errors import UserError, exit_status
from ranker.evaluation import foreign

REAL = Path(__file__).parents[2] / "shared/data"
FILES = REAL / "trec_dl_bm25/run.dl19.bm25_top100.txt.gz", REAL / "trec_dl_bm25/qrels.dl19-passage.txt.gz", \
    REAL / "trec_dl_bm25/retrieve_results_dl19_bm25_top100.json.gz"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="no ../shared/data beside the repository")


def replayed(pair: str, read, depth: int):
    run_file, qrels_file, corpus = FILES
    run, qrels = trec_files.read_run(run_file), trec_files.read_qrels(qrels_file)
    queries, judged, unjudged = foreign.queries(run, qrels, foreign.read_corpus(corpus), "corpus")
    assert len(queries) == 43 and not unjudged
    ranker = drive.load_ranker({"name": "sliding", "window": 20, "step": 10, "depth": depth})
    [responses] = (REAL / "rankllm_replay").glob(f"{pair}_*.responses.jsonl.gz")
    [shipped] = (REAL / "rankllm_replay").glob(f"{pair}_*.run.txt.gz")
    rankings = drive.run(ranker, queries, llms.replay(responses, read))
    known = [judged[r.query.id] for r in rankings]
    ndcg = metrics.compute(["nDCG@10", "AP"], [r.gains for r in rankings], known, level=1)
    return ({r.query.id: r.order for r in rankings}, trec_files.read_run(shipped, ties="input"),
            {name: v.mean() for name, v in ndcg.items()})


@needs_real
@pytest.mark.parametrize("pair, depth, ndcg", [("A", 100, 0.6682), ("D", 100, 0.5058), ("H", 20, 0.6164),
                                               ("J", 20, 0.6168)])
def test_the_digit_rule_gives_back_the_shipped_runs(pair, depth, ndcg):
    ours, shipped, values = replayed(pair, answers.digits, depth)
    assert ours == shipped and values["nDCG@10"] == pytest.approx(ndcg, abs=5e-5)
    if pair == "A":
        assert values["AP"] == pytest.approx(0.3617, abs=5e-5)


@needs_real
def test_our_parser_reads_what_is_an_identifier_and_nothing_else():
    for pair, depth in (("A", 100), ("H", 20), ("J", 20)):
        ours, shipped, _ = replayed(pair, answers.parse_recorded, depth)
        assert ours == shipped, pair
    ours, shipped, _ = replayed("D", answers.parse_recorded, 100)
    assert sum(ours[q] != shipped[q] for q in ours) == 16  # where a list marker counted as an answer


def test_the_digit_rule_by_hand():
    query = Query("q", "rank", "", tuple(Candidate(c, c) for c in "abcd"), (1, 0, 0, 0))
    read = lambda text: "".join(answers.digits(text, Ask(query, query.ids, "order")).value)  # noqa: E731
    assert read("Here are the 3 passages: [4] > [1]") == "cdab" and read("1. [14] > [15]") == "abcd"
    assert (read("[2] > [2] > [9]") == "bacd" and read("") == "abcd" and read("[12]") == "abcd"
            and read("[0] > [2]") == "bacd")
    assert ("".join(answers.parse_recorded("Here are the 3 passages: [4] > [1]", Ask(query, query.ids, "order")).value)
            == "da")


def write(tmp_path, responses):
    hits = [{"qid": 7, "docid": f"d{i}", "content": f"text {i}"} for i in range(4)]
    (tmp_path / "corpus.json").write_text(json.dumps([{"query": "what", "hits": hits}]))
    (tmp_path / "run.txt").write_text("".join(f"7 Q0 d{i} {i + 1} {4 - i} x\n" for i in range(4)) + "8 Q0 d0 1 1 x\n")
    (tmp_path / "qrels.txt").write_text("7 0 d3 2\n7 0 d9 1\n9 0 d1 1\n")
    with gzip.open(tmp_path / "r.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(r) + "\n" for r in responses)
    return ["evaluate.py", "--run", "run.txt", "--qrels", "qrels.txt", "--corpus", "corpus.json", "--replay",
            "r.jsonl.gz"]


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    def run(responses, *more):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.argv", [*write(tmp_path, responses), *more])
        status = exit_status(evaluate.main)
        return status, *capsys.readouterr()
    return run


def test_a_replay_is_compared_with_its_run_and_what_is_missing_is_said(call):
    status, out, err = call([{"qid": 7, "window": 0, "response": "[4] > [1] > [2] > [3]"}], "--metrics",
                            "ndcg_cut_10,hr@1")
    assert status == 0, err
    assert ("2 judged queries" in out and "1 of them are not in the run and count 0" in out
            and "1 of the run's have no judgements" in out)
    ideal = 2 + 1 / 1.5849625
    results = json.loads(Path("runs/eval-run/r.jsonl/results.json").read_text())["rows"]
    assert results["replay"]["repaired"]["mean"] == pytest.approx({"nDCG@10": 2 / ideal / 2, "Hit@1": 0.5})
    assert results["run.txt"]["repaired"]["mean"] == pytest.approx({"nDCG@10": 2 / 2.321928 / ideal / 2, "Hit@1": 0})


def test_answers_that_fail_are_counted_by_status(call):
    status, out, _ = call([{"query": "7", "text": "[4] > [1]"}])
    results = json.loads(Path("runs/eval-run/r.jsonl/results.json").read_text())["rows"]
    assert results["replay"]["statuses"] == {"missing_ids": 1} and results["replay, digits"]["statuses"] == {"ok": 1}
    assert results["replay"]["strict"]["mean"]["nDCG@10"] == 0 < results["replay"]["repaired"]["mean"]["nDCG@10"]


@pytest.mark.parametrize("responses, more, words", [
    ([], [], "no recorded answer for ask 1 about query '7'"),
    ([{"qid": 7}], [], "r.jsonl.gz:1: a recorded answer needs 'qid' and 'response'"),
    ([{"qid": 7, "response": "x"}], ["--window", "5", "--step", "5"], "step (5) must be below window (5)"),
    ([{"qid": 7, "response": "x"}], ["--corpus", "gone.json"], "gone.json"),
    ([{"qid": 7, "response": "x"}], ["--metrics", "ndgc@10"], "unknown metric 'ndgc@10' (did you mean"),
])
def test_mistakes_end_with_one_line(call, responses, more, words):
    status, _, err = call(responses, *more)
    assert status == 2 and words in err and len(err.strip().splitlines()) == 1


def test_a_document_without_text_is_named(tmp_path):
    write(tmp_path, [])
    run, qrels = trec_files.read_run(tmp_path / "run.txt"), trec_files.read_qrels(tmp_path / "qrels.txt")
    with pytest.raises(UserError, match="no text for document 'd3' of query '7'"):
        foreign.queries(run, qrels, ({"7": "what"}, {"d0": "", "d1": "", "d2": ""}), "corpus.json")


def test_a_corpus_of_json_lines_with_topics(tmp_path):
    (tmp_path / "c.jsonl").write_text('{"_id": "a", "title": "T", "text": "x &amp; y"}\n'
                                      '{"_id": "b", "title": "", "text": "z"}\n')
    (tmp_path / "t.tsv").write_text("1\twhat is\n")
    assert foreign.read_corpus(tmp_path / "c.jsonl", tmp_path / "t.tsv") == ({"1": "what is"},
                                                                             {"a": "T x & y", "b": "z"})
    (tmp_path / "t.tsv").write_text("1 what is\n")
    with pytest.raises(UserError, match="t.tsv:1"):
        foreign.read_corpus(tmp_path / "c.jsonl", tmp_path / "t.tsv")
