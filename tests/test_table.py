"""A table of one's own becomes queries: rows of equal queries together, labels as relevance, whatever the form."""

import csv
import gzip
import json
import sys
from collections import Counter
from functools import partial

import pytest
from conftest import prepared

from ranker.data import read_queries
from ranker.errors import UserError, exit_status
from ranker.prepare import __main__ as command, table

HEAD = ["question", "answer", "stars", "key", "topic"]
ROWS = [["warm and dry", "wool hat", "1", "a", "7"], ["warm and dry", "rain coat, lined", "2", "b", "7"],
        ["cold", "ice \"cream\"", "3", "c", "8"], ["warm and dry", "sandals", "0", "d", "7"],
        ["cold", "soup", "0.5", "a", "8"]]
COLUMNS = {"query": "question", "text": "answer", "label": "stars"}
prepare = partial(prepared, table)


def write(path, rows=ROWS, separator=",", encoding="utf-8", head=HEAD):
    with open(path, "w", newline="", encoding=encoding) as file:
        csv.writer(file, delimiter=separator).writerows([head, *rows])
    return path


def complaint(path, **options) -> str:
    with pytest.raises(UserError) as caught:
        prepare(path, **COLUMNS | options)
    return str(caught.value)


def test_rows_of_one_query_are_its_candidates_and_labels_its_relevance(tmp_path):
    (one, two), dropped = prepare(write(tmp_path / "my shop.csv"), **COLUMNS)
    assert not dropped and (one.id, two.id) == ("my_shop.1", "my_shop.2") and one.task == two.task == "rank"
    assert (one.context, two.context) == ("warm and dry", "cold")
    assert {one.texts[c]: r for c, r in one.rel.items()} == {"wool hat": 1, "rain coat, lined": 2, "sandals": 0}
    assert {two.texts[c]: r for c, r in two.rel.items()} == {'ice "cream"': 3, "soup": 0.5}
    assert one.ids == ("p1", "p2", "p3")


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_commas_semicolons_and_tabs_give_the_same_queries(tmp_path, separator, encoding):
    rows = [*ROWS, ["warm and dry", "café crème", "0", "e", "7"]]
    expected = prepare(write(tmp_path / "a.csv", rows), **COLUMNS)
    (tmp_path / "x").mkdir()
    path = write(tmp_path / "x/a.csv", rows, separator, encoding)
    assert prepare(path, **COLUMNS) == expected
    (tmp_path / "x/a.tsv").write_bytes(gzip.compress(path.read_bytes()))
    assert prepare(tmp_path / "x/a.tsv", **COLUMNS) == expected


def test_parquet_gives_the_same_queries(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="no pyarrow")
    import pyarrow.parquet
    path, typed = tmp_path / "a.parquet", [[*row[:2], float(row[2]), row[3], int(row[4])] for row in ROWS]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([dict(zip(HEAD, row)) for row in typed]), path)
    options = COLUMNS | {"id": "key", "query_id": "topic"}
    assert prepare(path, **options) == prepare(write(tmp_path / "a.csv"), **options)
    assert complaint(path, label="star") == (
        f"{path}:1: no column 'star' (found: question, answer, stars, key, topic); name it: --label stars")


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    assert "parquet needs pyarrow (pip install pyarrow)" in complaint(tmp_path / "a.parquet")


def test_ids_are_taken_from_their_columns(tmp_path):
    rows = [[*row[:3], f"key {row[3]}", row[4]] for row in ROWS] + [["warm and dry", "scarf", "1", "key z", "9"],
                                                                    ["warm and dry", "gloves", "0", "key y", "9"]]
    queries, _ = prepare(write(tmp_path / "a.csv", rows), **COLUMNS, id="key", query_id="topic")
    assert [q.id for q in queries] == ["7", "8", "9"] and queries[0].context == queries[2].context
    assert queries[0].texts == {"key_a": "wool hat", "key_b": "rain coat, lined", "key_d": "sandals"}
    rows += [["warm and dry", "x", "0", "key_z", "9"]]
    assert "the names 'key z' and 'key_z' would have one id" in complaint(write(tmp_path / "a.csv", rows), id="key")
    rows[-1] = ["wet", "x", "0", "k", "9"]
    assert complaint(write(tmp_path / "a.csv", rows), query_id="topic") == (
        f"{tmp_path / 'a.csv'}:9: the query '9' had another text in an earlier row")


def test_a_table_sorted_by_label_tells_nothing_by_place_or_id(tmp_path):
    rows = [[f"q{i}", f"text {k}", str(5 - k), "", ""] for i in range(300) for k in range(5)]
    path = write(tmp_path / "a.csv", rows)
    queries, _ = prepare(path, **COLUMNS)
    places = Counter(q.ids.index(q.positives[0]) for q in queries)
    assert sorted(places) == [0, 1, 2, 3, 4] and all(30 < n < 90 for n in places.values())  # 60 expected, sd 7
    assert Counter(int(q.positives[0][1:]) - 1 for q in queries) == places
    assert prepare(path, **COLUMNS)[0] == queries != prepare(path, seed=1, **COLUMNS)[0]
    assert all(q.relevance == (5, 4, 3, 2, 1) for q in prepare(path, keep_order=True, **COLUMNS)[0])


@pytest.mark.parametrize("labels, options, expected", [
    (["true", "False", "yes"], {}, [1, 0, 1]), (["Exact", "partial", "none"], {"grades": "exact=3,Partial=1,none=0"},
                                                [3, 1, 0]),
    (["2", "-1", "1e-1"], {}, [2, 0, 0.1])])
def test_labels_are_numbers_or_words(tmp_path, labels, options, expected):
    rows = [["q", f"text {i}", label, "", ""] for i, label in enumerate(labels)]
    [query], dropped = prepare(write(tmp_path / "a.csv", rows), keep_order=True, **COLUMNS, **options)
    assert list(query.relevance) == expected and not dropped


def test_what_can_not_be_used_is_dropped_and_counted(tmp_path):
    rows = [*ROWS, ["", "x", "1", "e", "7"], ["cold", " ", "1", "f", "8"], ["cold", "x", "", "g", "8"],
            ["cold", "x", "good", "h", "8"], ["cold", "x", "good", "i", "8"], ["cold", "x", "nan", "j", "8"],
            ["cold", "soup", "0.5", "a", "8"], ["cold", "soup", "1", "a", "8"],
            ["alone", "x", "1", "k", "9"], ["nothing", "x", "0", "l", "10"], ["nothing", "y", "-3", "m", "10"]]
    queries, dropped = prepare(write(tmp_path / "a.csv", rows), **COLUMNS, id="key")
    assert queries == prepare(write(tmp_path / "a.csv"), **COLUMNS, id="key")[0]
    assert dropped == {"rows without a query": 1, "rows without a text or its id": 1, "rows that repeat a candidate": 1,
                       "rows that repeat a candidate with another text or label": 1,
                       "rows without a usable label ('good', '', 'nan'; --grades gives words a number)": 4,
                       "queries with fewer than two candidates": 1, "queries without a label above 0": 1}


def test_equal_texts_of_several_ids_are_left_out_on_demand(tmp_path):
    rows = [*ROWS, ["cold", "soup", "2", "z", "8"]]
    assert len(prepare(write(tmp_path / "a.csv", rows), **COLUMNS, id="key")[0][1].ids) == 3
    queries, dropped = prepare(write(tmp_path / "a.csv", rows), **COLUMNS, id="key", distinct=True)
    assert queries[1].rel == {"c": 3, "z": 2} and dropped == {"candidates that repeat the text of another": 1}


@pytest.mark.parametrize("content, options, words", [
    ("question,answer\n1,2\n", {}, ":1: no column 'stars' (found: question, answer); name it: --label COLUMN"),
    ("question,answer,stars\n1,2\n", {}, ":2: 2 columns, expected 3"),
    ("question,answer,stars\nq,\"x\ny\",1\nq,z\n", {}, ":4: 2 columns, expected 3"),
    ("", {}, ":1: no column 'question' (found: )"),
    ('{"question": "a"}\n', {}, ":1: JSON lines, not a table"),
    ("question,answer,stars\n", {"task": "rec-film"}, "no wording for task 'rec-film'")])
def test_a_table_that_does_not_fit_is_named(tmp_path, content, options, words):
    (tmp_path / "a.csv").write_text(content)
    assert words in complaint(tmp_path / "a.csv", **options)


def test_other_encodings_are_declared_and_never_guessed(tmp_path):
    rows = [["вопрос", "первый", "1", "", ""], ["вопрос", "второй", "0", "", ""]]
    path = write(tmp_path / "a.csv", rows, encoding="cp1251")
    assert complaint(path).startswith(f"{path}:2: not UTF-8 text")
    [query], _ = prepare(path, **COLUMNS, encoding="cp1251")
    assert query.context == "вопрос" and set(query.texts.values()) == {"первый", "второй"}


def test_the_command_writes_a_file_that_trains(tmp_path, monkeypatch, capsys):
    path = write(tmp_path / "a.csv")
    words = ["table", str(path), "--out", str(tmp_path / "o.jsonl")]
    words += [word for name, column in COLUMNS.items() for word in (f"--{name}", column)]
    monkeypatch.setattr("sys.argv", ["prepare", *words])
    assert exit_status(command.main) == 0 and "2 queries, 5 candidates, 2 positives" in capsys.readouterr().out
    assert read_queries(tmp_path / "o.jsonl") == prepare(path, **COLUMNS)[0]
    assert json.loads((tmp_path / "o.jsonl").read_text().splitlines()[0])["task"] == "rank"
    monkeypatch.setattr("sys.argv", ["prepare", *words, "--encoding", "x"])
    assert exit_status(command.main) == 2 and "--encoding" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["prepare", *words[:4]])
    assert exit_status(command.main) == 2 and "--query" in capsys.readouterr().err
