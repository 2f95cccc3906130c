"""Recorded completions of another tool go through our ranker and parser and give back the runs that tool shipped."""

import gzip
import json
import os
import re
import threading
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


def ask(texts=("warm socks", "rain coat", "sun hat"), decision="order") -> Ask:
    query = Query("q", "rank", "", tuple(Candidate(str(k), text) for k, text in enumerate(texts, 1)),
                  (1.0,) + (0.0,) * (len(texts) - 1))
    return Ask(query, query.ids, decision)


@pytest.mark.parametrize("text", [
    "[3] > [1] > [2]", "\n\n[3] > [1] > [2]\n", "1. [3] > [1] > [2]", "1. [3] > 2. [1] > 3. [2]", "[3]\n[1]\n[2]",
    "1. [3] 2. [1] 3. [2]", "[3] sun hat\n[1] warm socks\n[2] rain coat", "```\n[3] > [1] > [2]\n```", "[3, 1, 2]",
    "Sure! Here are the 3 passages, ranked by their relevance:\n\n[3] > [1] > [2]", "**[3] > [1] > [2]**",
    "The final ranking is [3] > [1] > [2].", "[3] > [1] > [2]\n\nPassage [3] names the sun.", "3 > 1 > 2",
    "<think>[1] > [2]?</think>[3] > [1] > [2]", "[THINK]first [1]?[/THINK]\n[3] > [1] > [2]",
    "<answer>[3] > [1] > [2]</answer>", "sun hat\nwarm socks\nrain coat",
    "<|channel|>analysis<|message|>[1]?<|end|><|start|>assistant<|channel|>final<|message|>[3] > [1] > [2]<|return|>",
    "[3] > [1] > [2]</s>[INST] And now?[/INST] [2] > [1] > [3]"])
def test_a_ranking_without_tags_is_read(text):
    answer = answers.parse_recorded(text, ask())
    assert answer.ok and answer.value == ("3", "1", "2") and answer.text == text
    for candidate, (start, end) in zip(answer.value, answer.places):
        assert candidate in text[start:end]


@pytest.mark.parametrize("text", [
    "", " \n", "No words about them.", "I'm sorry, but I cannot order [3], [1], [2].", "[3] > [1]", "[] > []",
    "None of [3], [1], [2] is relevant.", "[3], [1] and [2] are all equally good.", "As an AI I see [3] > [1] > [2].",
    "I will give you 3 passages, each with an identifier.\n[1] warm socks\n[2] rain coat\n[3] sun hat",
    "[1] warm socks\n[2] rain coat\n[3] sun hat", "1. [1] warm socks\n2. [2] rain coat\n3. [3] sun hat",
    "You gave me the passages [1], [2], [3].", "For example:\n[3] > [1] > [2]", "[2] < [1] < [3]", "[3] > [1] = [2]",
    "The output format should be [] > [], e.g., [3] > [1] > [2].", "Let me see:\n[3] > [1] > [2]",
    "<|channel|>analysis<|message|>so [3] > [1] > [2] or", "<thinking>so [3] > [1] > [2]", "◁think▷[3] > [1] > [2]",
    "We need to order them. [3] is about sun. So [3] > [1] > [2]", "[3] > [1] > [2], but wait", "Maybe [3] > [1] > [2]",
    "Worst first: [2], [1], [3]", "Least to most relevant:\n\n[2] > [1] > [3]", "<answer>[3] > [1] > [2]",
    "[2] > [1] > [3]\n\n(in ascending order)", "[3] > [1] > [2]\n\n[1] > [3] > [2]", "[1]: 0.1\n[2]: 0.3\n[3]: 0.9",
    "[3] is about the sun, [1] about warmth, [2] about rain.", "I would wear sun hat, warm socks, rain coat"])
def test_a_completion_without_tags_that_is_no_ranking_fails(text):
    assert not answers.parse_recorded(text, ask()).ok


def recording(tmp_path, *records):
    path = tmp_path / "r.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return llms.replay(path)


def test_completions_left_over_are_refused_like_missing_ones(tmp_path):
    whole = {"qid": "q", "response": "[3] > [1] > [2]"}
    model = recording(tmp_path, whole)
    assert model([ask()])[0][1].answer.ok
    model.finish()
    with pytest.raises(UserError, match=r"r.jsonl: no recorded answer for ask 2 about query 'q' \(1 are there\)"):
        model([ask()])
    model = recording(tmp_path, whole, whole, whole, {"qid": "other", "response": "x"})
    model([ask()])
    with pytest.raises(UserError, match=r"of query 'q' 3 answers are recorded and 1 were asked for, so 2 would be left "
                                        r"over \(3 of 2 queries in all\); do --ranker, --window") as error:
        model.finish()
    assert "\n" not in str(error.value) and len(str(error.value)) - len(str(tmp_path)) < 250
    model([ask(), ask()])
    with pytest.raises(UserError, match="of query 'other' 1 answers are recorded and 0 were asked for, so 1"):
        model.finish()
    model.finish(unranked=["other"])  # nobody judged it, so nobody asked


@pytest.mark.parametrize("record", [{"response": None}, {"response": ""}, {"response": "  "}, {"text": None},
                                    {"response": None, "text": None}])
def test_a_response_of_null_or_nothing_is_a_missing_answer(tmp_path, record):
    model = recording(tmp_path, {"qid": "q"} | record, {"qid": "q", "response": None, "text": "[3] > [1] > [2]"})
    [(_, empty)], [(_, whole)] = model([ask()]), model([ask()])
    assert empty.answer.status == "missing_answer" and empty.answer.value == () and whole.answer.ok


@pytest.mark.parametrize("record", [{"qid": "q"}, {"qid": None, "response": "x"}, {"qid": True, "response": "x"},
                                    {"qid": "q", "response": 3}, {"qid": "q", "response": ["x"]}, {"response": "x"}])
def test_a_broken_record_is_named_by_its_line(tmp_path, record):
    with pytest.raises(UserError, match="r.jsonl:2: a recorded answer needs 'qid' and 'response'"):
        recording(tmp_path, {"qid": "q", "response": "x"}, record)


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
    [path] = Path("runs/eval-run").glob("r.jsonl-*/results.json")
    results = json.loads(path.read_text())["rows"]
    assert results["replay"]["repaired"]["mean"] == pytest.approx({"nDCG@10": 2 / ideal / 2, "Hit@1": 0.5})
    assert results["run.txt"]["repaired"]["mean"] == pytest.approx({"nDCG@10": 2 / 2.321928 / ideal / 2, "Hit@1": 0})


def test_a_null_response_fails_its_query_and_not_the_replay(call):
    status, _, err = call([{"qid": 7, "response": None}])
    assert status == 0, err
    [path] = Path("runs/eval-run").glob("r.jsonl-*/results.json")
    assert json.loads(path.read_text())["rows"]["replay"]["statuses"] == {"missing_answer": 1}


def test_answers_that_fail_are_counted_by_status(call):
    status, out, _ = call([{"query": "7", "text": "[4] > [1]"}])
    [path] = Path("runs/eval-run").glob("r.jsonl-*/results.json")
    results = json.loads(path.read_text())["rows"]
    assert results["replay"]["statuses"] == {"missing_ids": 1} and results["replay, digits"]["statuses"] == {"ok": 1}
    assert results["replay"]["strict"]["mean"]["nDCG@10"] == 0 < results["replay"]["repaired"]["mean"]["nDCG@10"]


@pytest.mark.parametrize("responses, more, words", [
    ([], [], "no recorded answer for ask 1 about query '7'"),
    ([{"qid": 7}], [], "r.jsonl.gz:1: a recorded answer needs 'qid' and 'response'"),
    ([{"qid": 7, "response": "x"}], ["--window", "5", "--step", "5"], "step (5) must be below window (5)"),
    ([{"qid": 7, "response": "x"}] * 2, [], "of query '7' 2 answers are recorded and 1 were asked for"),
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


@pytest.mark.parametrize("corpus, topics, words", [
    ('{"_id": "a", "text": "x"}\n{"_id": "a", "text": "y"}\n', "1\tq\n", "c.jsonl:2: document 'a' had another text"),
    ('{"_id": "a", "text": "x"}\n{"_id": "a", "text": "x"}\n', "1\tq\n1\tr\n", "t.tsv:2: query '1' had another text"),
    ('{"_id": "a"}\n', "1\tq\n", "c.jsonl:1: a document needs an id"),
    ('[{"_id": "a", "text": "x"}, 3]\n', "1\tq\n", "c.jsonl: entry 2 of the list: expected a JSON object, got int"),
])
def test_two_texts_of_one_id_and_other_layouts_are_refused(tmp_path, corpus, topics, words):
    (tmp_path / "c.jsonl").write_text(corpus)
    (tmp_path / "t.tsv").write_text(topics)
    with pytest.raises(UserError, match=re.escape(words)):
        foreign.read_corpus(tmp_path / "c.jsonl", tmp_path / "t.tsv")


@pytest.mark.parametrize("content, texts", [
    (b'{"_id": "a", "text": "x"}\n', ({}, {"a": "x"})),
    (b'[{"query": "what", "hits": [{"qid": 1, "docid": "a", "content": "x"}]}]\n', ({"1": "what"}, {"a": "x"}))])
def test_a_corpus_may_be_a_pipe(tmp_path, content, texts):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=[content])
    writer.start()
    assert foreign.read_corpus(pipe) == texts
    writer.join()
