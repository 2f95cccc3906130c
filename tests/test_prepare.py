"""What all preparations share: groups that never split, near-duplicates found exactly, files written whole or not at
all; TREC and request files."""

import itertools
import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from ranker import config as settings, sources, trec_files, world
from ranker.data import Candidate, Query, read_queries, write_queries
from ranker.errors import UserError, exit_status
from ranker.evaluation.baselines import tokens
from ranker.prepare import __main__ as prepare, _groups

WORDS = [f"w{i}" for i in range(40)]


def jaccard(a, b) -> float:
    a, b = set(tokens(a)), set(tokens(b))
    return len(a & b) / len(a | b)


def contexts(rng, count):
    """Texts of 4 to 14 words, a third of them near or exact copies of earlier ones."""
    made = []
    for _ in range(count):
        if made and rng.random() < 0.35:
            words = made[rng.randrange(len(made))].split()
            if rng.random() < 0.7:
                words[rng.randrange(len(words))] = rng.choice(WORDS)
            rng.shuffle(words)
        else:
            words = rng.choices(WORDS, k=rng.randint(4, 14))
        made.append(" ".join(words))
    return made


@pytest.mark.parametrize("alike", [0.5, 0.8, 1.0])
def test_near_duplicates_end_in_one_group_and_nothing_else_does(alike):
    for seed in range(20):
        texts = contexts(random.Random(seed), 60)
        groups = _groups.merged([f"g{i}" for i in range(60)], texts, alike)
        parent = list(range(60))  # the plain way: every pair

        def find(i):
            return i if parent[i] == i else find(parent[i])
        for i, j in itertools.combinations(range(60), 2):
            if jaccard(texts[i], texts[j]) >= alike:
                parent[max(find(i), find(j))] = min(find(i), find(j))
        assert groups == [f"g{find(i)}" for i in range(60)]


def test_groups_that_were_given_are_joined_by_their_members():
    texts = ["a b c d e", "x y z v w", "e d c b a", "one two three four five", "x y z v w"]
    assert _groups.merged(["u", "v", "w", "w", "t"], texts) == ["u", "v", "u", "u", "v"]


def query(name, context, group="") -> Query:
    return Query(name, "rank", context, (Candidate("a", "x"), Candidate("b", "y")), (1.0, 0.0), group)


def run_prepare(monkeypatch, queries, *arguments):
    """`python -m ranker.prepare movielens` with other queries behind it."""
    from ranker.prepare import movielens
    monkeypatch.setattr(movielens, "prepare",
                        lambda args, dropped: (dropped.update({"short ones": 3}), iter(queries))[1])
    monkeypatch.setattr("sys.argv", ["prepare", "movielens", "folder", *map(str, arguments)])
    return exit_status(prepare.main)


def test_no_group_and_no_near_duplicate_context_stands_in_two_splits(tmp_path, monkeypatch, capsys):
    rng = random.Random(0)
    texts = contexts(rng, 400)
    queries = [query(f"q{i}", text, f"user{i % 300}") for i, text in enumerate(texts)]
    assert run_prepare(monkeypatch, queries, "--out", tmp_path / "q.jsonl") == 0
    split = {}
    for name in ("train", "validation", "test"):
        for q in sources.held_out(settings.Data(train=str(tmp_path / "q.jsonl")), name):
            split[q.id] = name
    assert len(split) == 400 and min(Counter(split.values()).values()) > 5
    for i, j in itertools.combinations(range(400), 2):
        if i % 300 == j % 300 or jaccard(texts[i], texts[j]) >= 0.8:
            assert split[f"q{i}"] == split[f"q{j}"], (texts[i], texts[j])
    out = capsys.readouterr().out
    counts = Counter(split.values())
    assert (f"{counts['train']} training, {counts['validation']} validation, {counts['test']} test" in out
            and "dropped 3: short ones" in out)


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch, capsys):
    def broken():
        yield query("q1", "x")
        raise UserError("raw.csv:7: broken")
    (tmp_path / "q.jsonl").write_text("before")
    assert run_prepare(monkeypatch, broken(), "--out", tmp_path / "q.jsonl") == 2
    assert [p.name for p in tmp_path.iterdir()] == ["q.jsonl"] and (tmp_path / "q.jsonl").read_text() == "before"
    assert run_prepare(monkeypatch, [], "--out", tmp_path / "q.jsonl") == 2
    assert ("no query came out of it; dropped: 3 short ones" in capsys.readouterr().err
            and (tmp_path / "q.jsonl").read_text() == "before")


@pytest.mark.parametrize("arguments, words", [
    ([], "name a data set"), (["movilens"], "did you mean 'movielens'"), (["movielens"], "--help"),
    (["movielens", "nowhere", "--out", "x.jsonl"], "there is no folder nowhere")])
def test_a_wrong_command_ends_with_one_line(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["prepare", *arguments])
    assert exit_status(prepare.main) == 2 and words in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_held_out_file_may_not_share_a_group_with_training(tmp_path):
    write_queries(tmp_path / "train.jsonl", [query(f"q{i}", f"text {i}", f"user{i}") for i in range(50)])
    data = settings.Data(train=str(tmp_path / "train.jsonl"))
    trained = sources.held_out(data, "train")[0]
    write_queries(tmp_path / "test.jsonl", [query("new", "another", trained.group)])
    with pytest.raises(UserError, match="1 of its 1 queries are trained on"):
        sources.held_out(replace(data, test=str(tmp_path / "test.jsonl")), "test")


@pytest.fixture
def run_and_qrels(tmp_path):
    (tmp_path / "run").write_text("1 Q0 a 1 3.0 t\n1 Q0 b 2 2.5 t\n1 Q0 c 3 1 t\n2 Q0 a 1 1 t\n"
                                  "2 Q0 c 2 0 t\n3 Q0 a 1 1 t\n3 Q0 b 1 0 t\n")
    (tmp_path / "qrels").write_text("1 0 b 2\n1 0 c -1\n2 0 b 1\n4 0 a 1\n")
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps({"_id": d, "title": d.upper(), "text": f"text {d}"})
                                                   + "\n" for d in "abc"))
    (tmp_path / "topics.tsv").write_text("1\tfirst\n2\tsecond\n3\tthird\n")
    return ([str(tmp_path / name) for name in ("run", "qrels", "corpus.jsonl")]
            + ["--topics", str(tmp_path / "topics.tsv")])


def test_a_trec_run_becomes_queries_in_its_order(run_and_qrels, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["prepare", "trec", *run_and_qrels, "--out", str(tmp_path / "q.jsonl"),
                                     "--requests_out", str(tmp_path / "r.jsonl")])
    assert exit_status(prepare.main) == 0
    [q] = read_queries(tmp_path / "q.jsonl")
    assert (q.id, q.context, q.ids, q.relevance, q.texts["b"]) == ("1", "first", ("a", "b", "c"), (0, 2, 0), "B text b")
    out = capsys.readouterr().out
    for words in ("dropped 1: queries of the run without judgements", "dropped 1: queries without a relevant document",
                  "dropped 1: judged queries with fewer"):
        assert words in out
    request = json.loads((tmp_path / "r.jsonl").read_text())
    assert (request["query"] == {"text": "first", "qid": "1"}
            and [c["docid"] for c in request["candidates"]] == ["a", "b", "c"])
    monkeypatch.setattr("sys.argv", ["prepare", "requests", str(tmp_path / "r.jsonl"), run_and_qrels[1], "--out",
                                     str(tmp_path / "again.jsonl")])
    assert exit_status(prepare.main) == 0 and read_queries(tmp_path / "again.jsonl") == [q]


@pytest.mark.parametrize("name, text, words", [
    ("run", "1 Q0 a 1 3.0 t\n1 Q0 b 2 3.0 t\n",
     "documents of query '1' have equal scores; say how to order them: --ties"),
    ("run", "1 Q0 a 1 x t\n", "run:1: the score 'x' is no number"),
    ("run", "1 Q0 a 1\n", "run:1: 4 columns, expected 3 or 6"),
    ("run", "1 Q0 a 1 3 t\n1 Q0 a 2 2 t\n", "run:2: document 'a' of query '1' stands twice"),
    ("run", "\n", "no rows"),
    ("qrels", "1 0 a 99999999999999999999\n", "qrels:1: the grade '99999999999999999999' is no whole number"),
    ("qrels", "1 0 a 1.5\n", "qrels:1: the grade '1.5'"),
    ("qrels", "1 0 a 1\n1 0 a 0\n", "qrels:2: document 'a' of query '1' is judged twice"),
    ("corpus.jsonl", '{"_id": "a", "text": 3}\n', "corpus.jsonl:1: a document needs"),
    ("corpus.jsonl", '{"_id": "a"\n', "corpus.jsonl:1: not JSON"),
])
def test_a_broken_trec_file_is_named_with_its_line(run_and_qrels, tmp_path, monkeypatch, capsys, name, text, words):
    (tmp_path / name).write_text(text)
    monkeypatch.setattr("sys.argv", ["prepare", "trec", *run_and_qrels, "--out", str(tmp_path / "q.jsonl")])
    assert exit_status(prepare.main) == 2
    err = capsys.readouterr().err
    assert words in err and err.strip().count("\n") == 0 and not (tmp_path / "q.jsonl").exists()


def run_trec(run_and_qrels, tmp_path, monkeypatch, *words) -> int:
    monkeypatch.setattr("sys.argv", ["prepare", "trec", *run_and_qrels, "--out", str(tmp_path / "q.jsonl"), *words])
    return exit_status(prepare.main)


@pytest.mark.parametrize("line", ["", '{"_id": "c", "text": " "}\n', '{"_id": "c", "text": null}\n'])
def test_a_document_without_a_text_is_left_out_and_counted(run_and_qrels, tmp_path, monkeypatch, capsys, line):
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(text for text in path.open() if '"c"' not in text) + line)
    assert run_trec(run_and_qrels, tmp_path, monkeypatch) == 0
    [q] = read_queries(tmp_path / "q.jsonl")
    assert q.ids == ("a", "b")
    assert f"dropped 2: documents of a query without a text in {path}" in capsys.readouterr().out


def test_a_query_without_a_text_is_dropped_and_counted(run_and_qrels, tmp_path, monkeypatch, capsys):
    (tmp_path / "qrels").write_text("1 0 b 2\n2 0 a 1\n2 0 c 1\n")
    (tmp_path / "topics.tsv").write_text("1\tfirst\n2\t \n3\tthird\n")
    assert run_trec(run_and_qrels, tmp_path, monkeypatch) == 0
    assert [q.id for q in read_queries(tmp_path / "q.jsonl")] == ["1"]
    assert f"dropped 1: queries without a text in {tmp_path / 'topics.tsv'}" in capsys.readouterr().out


@pytest.mark.parametrize("name, text, words", [
    ("corpus.jsonl", '{"_id": "a", "text": "other"}\n', "corpus.jsonl:4: document 'a' had another text before"),
    ("topics.tsv", "1\tother\n", "topics.tsv:4: query '1' had another text before")])
def test_two_texts_of_one_id_are_refused_and_the_same_text_twice_is_not(run_and_qrels, tmp_path, monkeypatch, capsys,
                                                                       name, text, words):
    path = tmp_path / name
    before = path.read_text()
    path.write_text(before + text)
    assert run_trec(run_and_qrels, tmp_path, monkeypatch) == 2 and words in capsys.readouterr().err
    path.write_text(before * 2)
    assert run_trec(run_and_qrels, tmp_path, monkeypatch) == 0


def test_an_unknown_task_is_refused(run_and_qrels, tmp_path, monkeypatch, capsys):
    assert run_trec(run_and_qrels, tmp_path, monkeypatch, "--task", "passage-6") == 2
    assert "no wording for task 'passage-6'" in capsys.readouterr().err and not (tmp_path / "q.jsonl").exists()


def test_equal_documents_are_counted_and_on_demand_the_most_relevant_is_left(run_and_qrels, tmp_path, monkeypatch,
                                                                             capsys):
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps({"_id": d, "text": "same" if d != "c" else "other"})
                                                   + "\n" for d in "abc"))
    assert run_trec(run_and_qrels, tmp_path, monkeypatch) == 0
    assert "1 queries show two candidates of equal text (--distinct avoids that)" in capsys.readouterr().out
    assert run_trec(run_and_qrels, tmp_path, monkeypatch, "--distinct") == 0
    [q] = read_queries(tmp_path / "q.jsonl")
    assert q.ids == ("b", "c") and q.relevance == (2, 0)
    assert "dropped 1: candidates that repeat the text of another" in capsys.readouterr().out


@pytest.mark.parametrize("made, words", [
    ([query("a b", "x")], "query 'a b': the id 'a b' is empty or holds spaces"),
    ([query("q", "x"), query("q", "y")], "two queries have the id 'q'"),
    ([replace(query("q", "x"), candidates=(Candidate("a", "x"), Candidate("a", "y")))],
     "query 'q': two of its candidates have one id"),
    ([replace(query("q", "x"), relevance=(2e9, 0.0))], "query 'q': a relevance is not from 0 to 1e9")])
def test_what_can_not_be_written_is_told_by_its_query_and_not_by_a_temporary_file(tmp_path, monkeypatch, capsys, made,
                                                                                 words):
    assert run_prepare(monkeypatch, made, "--out", tmp_path / "q.jsonl") == 2
    err = capsys.readouterr().err
    assert words in err and "ungrouped" not in err and not list(tmp_path.iterdir())


def request(name, *candidates, text="x") -> str:
    return json.dumps({"query": {"text": text, "qid": name},
                       "candidates": [{"docid": i, "doc": doc} for i, doc in candidates]}) + "\n"


def test_requests_and_candidates_without_a_text_are_left_out_and_counted(tmp_path, monkeypatch, capsys):
    good = [("a", "x"), ("b", {"title": "t", "text": "y"})]
    (tmp_path / "r.jsonl").write_text(request(1, *good, ("c", None), ("d", {"text": " ", "title": "t"}), ("a", "z"))
                                      + request(2, *good, text=" ") + request(3, *good))
    (tmp_path / "qrels").write_text("1 0 a 1\n2 0 a 1\n3 0 b 1\n")
    monkeypatch.setattr("sys.argv", ["prepare", "requests", str(tmp_path / "r.jsonl"), str(tmp_path / "qrels"), "--out",
                                     str(tmp_path / "q.jsonl")])
    assert exit_status(prepare.main) == 0
    one, three = read_queries(tmp_path / "q.jsonl")
    assert (one.id, three.id) == ("1", "3") and one.texts == three.texts == {"a": "x", "b": "t y"}
    out = capsys.readouterr().out
    for words in ("dropped 2: candidates without a text", "dropped 1: requests without a question",
                  "dropped 1: candidates whose id stood before in their request"):
        assert words in out


def test_retrieved_passages_are_requests_in_their_order_cut_at_the_depth(tmp_path, monkeypatch, capsys):
    hits = [{"content": text, "qid": 7, "docid": d} for d, text in (("b", "y"), ("c", " "), ("a", "x"), ("d", "z"))]
    (tmp_path / "r.json").write_text(json.dumps([{"query": "what", "hits": hits},
                                                 {"query": " ", "hits": [hits[0] | {"qid": 8}]}]))
    (tmp_path / "qrels").write_text("7 0 a 2\n7 0 d 1\n8 0 b 1\n")
    monkeypatch.setattr("sys.argv", ["prepare", "requests", str(tmp_path / "r.json"), str(tmp_path / "qrels"),
                                     "--depth", "2", "--out", str(tmp_path / "q.jsonl")])
    assert exit_status(prepare.main) == 0
    [query] = read_queries(tmp_path / "q.jsonl")
    assert (query.id, query.context, query.ids, query.relevance) == ("7", "what", ("b", "a"), (0, 2))
    out = capsys.readouterr().out
    assert "dropped 1: passages without a text" in out and "dropped 1: questions without a text" in out


@pytest.mark.parametrize("text, words", [
    ("[1]\n", "question 1: expected {query, hits"), ("1\n", "expected a JSON object"),
    ('{"query": "x"}\n', ":1: a request needs"),
    (request(1, ("a", "x")) + request(1, ("a", "x")), "r.jsonl:2: qid '1' stood in"),
    (request("a b", ("a", "x")), "r.jsonl:1: 'qid' must be an id without spaces"),
    (request(1, ("a b", "x")), "r.jsonl:1: candidate 1: 'docid' must be an id without spaces"),
    ('{"query": {"text": "x", "qid": 1}, "candidates": [{"docid": 1}]}\n', ":1: candidate 1 needs 'docid' and 'doc'")])
def test_a_broken_request_is_named_with_its_line(tmp_path, monkeypatch, capsys, text, words):
    (tmp_path / "r.jsonl").write_text(text)
    (tmp_path / "qrels").write_text("1 0 a 1\n")
    monkeypatch.setattr("sys.argv", ["prepare", "requests", str(tmp_path / "r.jsonl"), str(tmp_path / "qrels"), "--out",
                                     str(tmp_path / "q.jsonl")])
    assert exit_status(prepare.main) == 2 and words in capsys.readouterr().err


def test_ties_are_broken_as_asked(tmp_path):
    (tmp_path / "run").write_text("1 b 2\n1 a 2\n1 c 2.00000001\n1 d 9\n")
    qrels = {"1": {"d": 1, "b": 1}}
    assert trec_files.read_run(tmp_path / "run", "trec")["1"] == ["d", "c", "b", "a"]  # in single precision c ties too
    assert trec_files.read_run(tmp_path / "run", "input")["1"] == ["d", "c", "b", "a"]
    assert trec_files.read_run(tmp_path / "run", "pessimistic", qrels)["1"] == ["d", "c", "a", "b"]
    (tmp_path / "run").write_text("1 a 1\n1 c 1\n1 b 1.00000001\n")
    assert (trec_files.read_run(tmp_path / "run", "trec")["1"] == ["c", "b", "a"]
            and trec_files.read_run(tmp_path / "run", "input")["1"] == ["b", "a", "c"])


def test_runs_that_we_write_never_tie_and_come_back(tmp_path):
    orders = {f"q{i}": random.Random(i).sample([f"d{j}" for j in range(1000)], 1000) for i in range(3)}
    trec_files.write_run(tmp_path / "run", orders.items(), "tag")
    assert trec_files.read_run(Path(tmp_path / "run")) == orders == trec_files.read_run(tmp_path / "run", "trec")


def test_the_world_can_be_written_to_a_file(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("sys.argv", ["prepare", "world", "--queries", "2", "--tasks", "passage-5", "rec-movie",
                                     "--out", str(tmp_path / "world.jsonl")])
    assert exit_status(prepare.main) == 0
    expected = [world.query(task, "train", i) for task in ("passage-5", "rec-movie") for i in range(2)]
    assert ([(q.id, q.candidates, q.relevance) for q in read_queries(tmp_path / "world.jsonl")]
            == [(q.id, q.candidates, q.relevance) for q in expected])
    monkeypatch.setattr("sys.argv", ["prepare", "world", "--queries", "0", "--out", str(tmp_path / "none.jsonl")])
    assert exit_status(prepare.main) == 2 and "--queries must be at least 1" in capsys.readouterr().err


def test_what_to_type_next_gives_own_texts_to_a_pretrained_model(tmp_path, monkeypatch, capsys):
    assert run_prepare(monkeypatch, [query("q1", "x")], "--out", tmp_path / "mine.jsonl") == 0
    out = capsys.readouterr().out
    trained = [line for line in out.splitlines() if "train.py" in line]
    mine = f"{tmp_path}/mine.jsonl"
    assert trained and all(f"--data.train={mine}" in line and "--model.name=FOLDER" in line for line in trained)
    assert f"evaluate.py --data {mine} --baselines" in out
    assert "the built-in policy (model.name=tiny) only knows its built-in world" in out
