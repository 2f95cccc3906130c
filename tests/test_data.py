"""A data file comes back as it was written, and every defect in one is reported with its file and line. A query belongs
to one split by its id alone, so that train and test never share one, however the file grows."""

import gzip
import json
import os
import threading
from dataclasses import replace

import pytest

from ranker import sources, world
from ranker.config import Data
from ranker.data import Candidate, Query, read_queries, write_queries
from ranker.errors import UserError

GOOD = {"id": "q1", "task": "rank", "context": "warm",
        "candidates": [{"id": "a", "text": "hat"}, {"id": "b", "text": "coat"}], "relevance": [0, 1]}


def query(name, task="rank", context="warm"):
    return Query(name, task, context, (Candidate("a", "hat"), Candidate("b", "coat")), (0.0, 1.0))


def line(**changes) -> str:
    return json.dumps(GOOD | changes)


def without(field) -> str:
    return json.dumps({key: value for key, value in GOOD.items() if key != field})


def candidates(*ids) -> list:
    return [{"id": i, "text": "t"} for i in ids]


def complaint(action, *args) -> str:
    with pytest.raises(UserError) as caught:
        action(*args)
    return str(caught.value)


def test_queries_come_back_as_they_were_written(tmp_path):
    queries = [
        Query("graded", "router-cost", "which model?", (Candidate("m1", "fast, $1"), Candidate("m2", "good, $3")),
              (0.25, 0.8)),
        Query("history", "rec-movie", ("Amélie (2001)", "七人の侍", ""),
              tuple(Candidate(f"c{i}", f"movie {i}") for i in range(20)), (1.0, *[0.0] * 19)),
        Query("odd-text", "rank", "line\nbreak\u2028and\u2029\x85\ttab \"quoted\" \\ 🎬 \u200b\x00",
              (Candidate("東", "e\u0301"), Candidate("a/b:c", "")), (3.0, 2.0)),
    ]
    write_queries(tmp_path / "new" / "data.jsonl", queries)
    assert read_queries(tmp_path / "new" / "data.jsonl") == queries
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["data.jsonl"]  # no temporary file is left


def test_blank_lines_are_skipped_but_counted(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text(f"\n{line()}\n\n  \n{line(id='q2')}", encoding="utf-8")
    assert [q.id for q in read_queries(path)] == ["q1", "q2"]
    path.write_text(f"\n{line()}\n\n{{", encoding="utf-8")
    assert complaint(read_queries, path).startswith(f"{path}:4: not JSON")


DEFECTS = {
    "not JSON": ("{'id': 1}", "not JSON"),
    "half a line": (line()[:40], "not JSON"),
    "nested too deep": ("[" * 100_000, "not JSON"),
    "no object": ("[1, 2]", "expected a JSON object, got list"),
    **{f"no {field}": (without(field), f"missing field '{field}'") for field in GOOD if field != "relevance"},
    "a misspelt field": (without("relevance")[:-1] + ', "relevence": [1, 0]}',
                         "unknown field 'relevence' (did you mean 'relevance'?)"),
    "a misspelt field that is needed": (without("context")[:-1] + ', "contxt": "c"}',
                                        "missing field 'context'; is it 'contxt'?"),
    "id is a fraction": (line(id=7.5), "the query id 7.5 must be a text without spaces"),
    "id is a truth": (line(id=True), "the query id True must be a text"),
    "empty id": (line(id=""), "the query id '' must be a text"),
    "id with a space": (line(id="q 1"), "the query id 'q 1' must be a text without spaces"),
    "id with a line break": (line(id="q1\n"), "must be a text without spaces"),
    "empty task": (line(task=" "), "'task' must be a non-empty string"),
    "context is a number": (line(context=3), "'context' must be a string or a list of strings"),
    "context of numbers": (line(context=["a", 3]), "'context' must be a string or a list of strings"),
    "candidates no list": (line(candidates={"a": "t"}), "'candidates' must be a list"),
    "no candidate": (line(candidates=[], relevance=[]), "at least two"),
    "one candidate": (line(candidates=candidates("a"), relevance=[1]), "1 candidate(s), ranking needs at least two"),
    "candidate is a text": (line(candidates=["hat", "coat"]), "candidate 1 must be"),
    "candidate without text": (line(candidates=[{"id": "a", "text": "t"}, {"id": "b"}]), "candidate 2 must be"),
    "candidate id is a list": (line(candidates=candidates("a", [2])), "the id of candidate 2 [2] must be a text"),
    "candidate id with a space": (line(candidates=candidates("a", "b c")), "the id of candidate 2 'b c' must be"),
    "empty candidate id": (line(candidates=candidates("a", "")), "the id of candidate 2 '' must be"),
    "candidate id twice": (line(candidates=candidates("a", "a")), "candidate id 'a' stands twice"),
    "relevance no list": (line(relevance=1), "'relevance' must be a list of numbers"),
    "relevance of texts": (line(relevance=["0", "1"]), "'relevance' must be a list of numbers"),
    "relevance of truth values": (line(relevance=[False, True]), "'relevance' must be a list of numbers"),
    "relevance with a hole": (line(relevance=[None, 1]), "'relevance' must be a list of numbers"),
    "relevance too short": (line(relevance=[1]), "1 relevance values for 2 candidates"),
    "relevance too long": (line(relevance=[1, 0, 0]), "3 relevance values for 2 candidates"),
    "negative relevance": (line(relevance=[-1, 1]), "from 0 to 1e9"),
    "NaN": (line(relevance=[float("nan"), 1]), "from 0 to 1e9"),
    "infinity": (line(relevance=[float("inf"), 1]), "from 0 to 1e9"),
    "number beyond a float": (line().replace("[0, 1]", "[0, 1e999]"), "from 0 to 1e9"),
    "a whole number beyond a float": (line().replace("[0, 1]", "[0, 1" + "0" * 400 + "]"), "from 0 to 1e9"),
    "a number of 5000 digits": (line().replace("[0, 1]", "[0, " + "7" * 5000 + "]"), "not JSON"),
    "half a surrogate pair": (line(context="\\ud800").replace("\\\\ud800", "\\ud800"), "surrogate"),
    "query id twice": (line(id="first"), "query id 'first' stood in line 1 already"),
}


@pytest.mark.parametrize("text, words", DEFECTS.values(), ids=DEFECTS)
def test_a_defect_is_reported_with_file_and_line(tmp_path, text, words):
    path = tmp_path / "data.jsonl"
    path.write_text(f"{line(id='first')}\n{text}\n{line(id='third')}\n", encoding="utf-8")
    message = complaint(read_queries, path)
    assert message.startswith(f"{path}:2: ") and words in message


@pytest.mark.parametrize("content, words", [
    (b"", "no queries in the file"),
    (b"\n \n", "no queries in the file"),
    (line().encode() + b"\n\xff\xfe", "not UTF-8 text"),
])
def test_a_defect_of_the_whole_file_names_the_file(tmp_path, content, words):
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    message = complaint(read_queries, path)
    assert message.startswith(str(path)) and words in message


def test_what_nothing_uses_is_named_once_and_whole_numbers_are_ids(tmp_path, caplog):
    path = tmp_path / "data.jsonl"
    extra = candidates(3, 4)
    extra[0]["title"] = "t"
    path.write_text(f"{line(id=7, meta={}, candidates=extra)}\n{line(id='8', meta=1)}\n")
    first, second = read_queries(path)
    assert (first.id, first.ids, second.id) == ("7", ("3", "4"), "8")
    assert [record.message for record in caplog.records] == [f"{path}: fields that nothing uses: meta, title"]
    path.write_text(f"{line(id=7)}\n{line(id='7')}\n")
    assert "query id '7' stood in line 1 already" in complaint(read_queries, path)


def test_a_byte_order_mark_gzip_under_any_name_and_a_pipe_are_read(tmp_path):
    plain = f"{line()}\n{line(id='q2')}\n".encode()
    packed = gzip.compress(plain)
    for name, data in {"bom": b"\xef\xbb\xbf" + plain, "a.gz": packed, "gz": packed}.items():
        (tmp_path / name).write_bytes(data)
        assert [q.id for q in read_queries(tmp_path / name)] == ["q1", "q2"]
    (tmp_path / "cut").write_bytes(gzip.compress(plain)[:-12])
    assert complaint(read_queries, tmp_path / "cut").startswith(f"{tmp_path / 'cut'}: the gzip file is cut short")
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(gzip.compress(plain),))
    writer.start()
    assert [q.id for q in read_queries(tmp_path / "pipe")] == ["q1", "q2"]
    writer.join()


def test_a_table_is_answered_with_what_makes_queries_of_it(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("query,title,label\na,b,1\n")
    assert (f"{path}:1: not JSON but a table; make queries of it: python -m ranker.prepare table {path} --query COLUMN"
            in complaint(read_queries, path))


def test_a_query_without_labels_is_read_and_cannot_be_learned_from(tmp_path, caplog):
    path = tmp_path / "data.jsonl"
    lines = [without("relevance"), line(id="zero", relevance=[0, 0.0]), *(line(id=f"q{i}x") for i in range(40))]
    path.write_text("\n".join(lines))
    plain, zero, *labelled = read_queries(path)
    assert not plain.labelled and not zero.labelled and all(q.labelled for q in labelled)
    assert plain.relevance == zero.relevance == (0.0, 0.0)
    write_queries(tmp_path / "again.jsonl", [plain])
    assert read_queries(tmp_path / "again.jsonl") == [plain]
    held = [q for split in ("train", "validation", "test") for q in sources.held_out(Data(train=str(path)), split)]
    unlabelled = {q.id for q in held if not q.labelled}
    assert unlabelled == {q.id for q in sources.held_out(Data(train=str(path)), "test") if not q.labelled}
    path.write_text("\n".join(lines[:2]))
    assert "no query has a relevant candidate" in complaint(sources.labelled, read_queries(path), str(path))


def test_a_file_is_read_once_as_long_as_it_stays_the_same(tmp_path, monkeypatch):
    path, reads = tmp_path / "data.jsonl", []
    path.write_text("\n".join(line(id=f"q{i}") for i in range(60)))
    read = sources.read_queries
    monkeypatch.setattr(sources, "read_queries", lambda given: reads.append(given) or read(given))
    for split in ("train", "validation", "test"):
        sources.held_out(Data(train=str(path)), split)
    assert reads == [str(path)]
    path.write_text("\n".join(line(id=f"other{i}") for i in range(60)))
    assert sources.held_out(Data(train=str(path)), "train")[0].id.startswith("other") and len(reads) == 2


def test_text_that_is_not_utf8_is_reported_with_its_line(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(f"{line(id='first')}\n".encode() + b"\xff\xfe\n")
    assert complaint(read_queries, path) == f"{path}:2: not UTF-8 text"


def test_a_missing_file_or_a_folder_is_named(tmp_path):
    assert complaint(read_queries, tmp_path / "gone.jsonl").startswith(str(tmp_path / "gone.jsonl"))
    assert complaint(read_queries, tmp_path).startswith(str(tmp_path))


def test_ties_at_the_best_grade_are_all_positives():
    tied = Query("q", "rank", "", tuple(Candidate(c, c) for c in "abcd"), (0.5, 0.9, 0.9, 0.0))
    assert tied.positives == ("b", "c")


def splits(path, **settings):
    data = Data(train=str(path), **settings)
    return {split: [q.id for q in sources.held_out(data, split)] for split in world.SPLITS}


def test_the_splits_of_a_file_share_no_query_and_lose_none(tmp_path):
    queries = [query(f"q{i}") for i in range(500)]
    write_queries(tmp_path / "d.jsonl", queries)
    parts = splits(tmp_path / "d.jsonl")
    assert sorted(sum(parts.values(), [])) == sorted(q.id for q in queries)
    assert 25 < len(parts["validation"]) < 80 and 25 < len(parts["test"]) < 80
    trained = sources.training(Data(train=str(tmp_path / "d.jsonl")), seed=0)
    assert {trained[i].id for i in range(len(parts["train"]))} == set(parts["train"])  # one epoch sees each query once


def test_a_query_stays_in_its_split_when_the_file_grows_or_is_shuffled(tmp_path):
    queries = [query(f"q{i}") for i in range(300)]
    write_queries(tmp_path / "small.jsonl", queries[:200])
    write_queries(tmp_path / "large.jsonl", queries[::-1])
    small, large = splits(tmp_path / "small.jsonl"), splits(tmp_path / "large.jsonl")
    assert all(set(small[split]) <= set(large[split]) for split in small)
    assert splits(tmp_path / "small.jsonl", seed=1) != small


def test_a_split_with_its_own_file_takes_nothing_from_the_training_file(tmp_path):
    write_queries(tmp_path / "train.jsonl", [query(f"q{i}") for i in range(300)])
    write_queries(tmp_path / "test.jsonl", [query(f"t{i}") for i in range(5)])
    own = splits(tmp_path / "train.jsonl", test=str(tmp_path / "test.jsonl"))
    shared = splits(tmp_path / "train.jsonl")
    assert own["test"] == [f"t{i}" for i in range(5)]
    assert own["validation"] == shared["validation"] and set(own["train"]) == set(shared["train"]) | set(shared["test"])
    both = splits(tmp_path / "train.jsonl", test=str(tmp_path / "test.jsonl"), validation=str(tmp_path / "test.jsonl"))
    assert len(both["train"]) == 300


def test_a_file_of_its_own_that_shares_queries_with_training_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_queries("all.jsonl", [query(f"q{i}") for i in range(50)])
    write_queries("copy.jsonl", [query(f"q{i}") for i in range(50)])
    for test in ("copy.jsonl", "./all.jsonl"):
        with pytest.raises(UserError, match="of its 50 queries are trained on"):
            sources.held_out(Data(train="all.jsonl", test=test), "test")
    with pytest.raises(UserError, match="data.test"):
        sources.held_out(Data(train="all.jsonl", validation="all.jsonl", test="all.jsonl"), "test")


def test_a_file_too_small_to_hold_anything_out_is_refused(tmp_path):
    write_queries(tmp_path / "d.jsonl", [query("q1")])
    outcomes = []
    for split in world.SPLITS:
        try:
            outcomes.append(len(sources.held_out(Data(train=str(tmp_path / "d.jsonl")), split)))
        except UserError as error:
            assert (str(tmp_path / "d.jsonl") in str(error) and "too small" in str(error)
                    and f"data.{split}" in str(error))
            outcomes.append("refused")
    assert sorted(outcomes, key=str) == [1, "refused", "refused"]


def test_tasks_choose_queries_and_an_absent_or_unworded_one_is_named(tmp_path):
    path = tmp_path / "d.jsonl"
    write_queries(path, [query("a", "rec-movie"), query("b", "rec-game"), query("c", "rec-movie")])
    assert [q.id for q in sources.read_files([path], ["rec-movie"])] == ["a", "c"]
    assert "did you mean 'rec-movie'?" in complaint(sources.read_files, [path], ["rec-movies"])
    write_queries(tmp_path / "odd.jsonl", [query("x", "rec-book")])
    assert "no wording for task 'rec-book'" in complaint(sources.read_files, [tmp_path / "odd.jsonl"])
    assert "query id 'a'" in complaint(sources.read_files, [path, path])


def test_half_of_a_surrogate_pair_can_not_be_written(tmp_path):
    whole, half = query("whole"), replace(query("half"), context="\ud800")
    assert ("query 'half': a text holds half of a surrogate pair"
            in complaint(write_queries, tmp_path / "d.jsonl", [whole, half]))
    assert not list(tmp_path.iterdir())


def test_the_first_queries_of_each_task_are_kept_in_order(tmp_path):
    queries = [query(f"q{i}", ("rec-movie", "rec-game")[i % 3 == 0]) for i in range(12)]
    assert [q.id for q in sources.first_of_each_task(queries, 2)] == ["q0", "q1", "q2", "q3"]


def test_training_on_the_world_takes_tasks_in_turn_and_repeats_itself_for_one_seed():
    data = Data(tasks=["passage-5", "rec-game"])
    one, two = sources.training(data, 0), sources.training(data, 9)
    drawn = [one[i] for i in range(6)]
    assert [q.task for q in drawn] == ["passage-5", "rec-game"] * 3 and len({q.id for q in drawn}) == 6
    assert drawn == [two[i] for i in range(6)]
    assert [q for q in drawn if q.task == "rec-game"] == world.queries("rec-game", "train", 3)  # none is skipped
    assert complaint(sources.training, Data(tasks=["rec-gaem"]), 0).count("did you mean 'rec-game'?")


def test_training_on_a_file_shuffles_each_epoch_anew_and_by_the_seed(tmp_path):
    write_queries(tmp_path / "d.jsonl", [query(f"q{i}") for i in range(60)])
    data = Data(train=str(tmp_path / "d.jsonl"))
    size = len(sources.held_out(data, "train"))

    def epochs(seed):
        draw = sources.training(data, seed)
        return [[draw[epoch * size + i].id for i in range(size)] for epoch in (0, 1)]

    first, second = epochs(0)
    assert first != second and sorted(first) == sorted(second)
    assert epochs(0) == [first, second] and epochs(1)[0] != first


def test_no_world_query_stands_in_two_splits():
    for task in world.TASKS:
        seen = {split: {(str(q.context), tuple(sorted(q.texts.values()))) for q in world.queries(task, split, 60)}
                for split in world.SPLITS}
        assert len(set().union(*seen.values())) == sum(map(len, seen.values())) == 180
        if task.startswith("rec"):  # routing and passages ask a few fixed questions; only their pools are new
            contexts = [context for part in seen.values() for context, _ in part]
            assert len(set(contexts)) == len(contexts)
