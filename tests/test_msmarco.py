"""Rows of MS MARCO become pools by the paper's filter, whatever their layout; judged passages of a track become pools
of one relevant passage, or of graded ones. No place and no id tells the answer. Broken files are named."""

import gzip
import json
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from conftest import prepared

from ranker import templates
from ranker.data import read_queries
from ranker.errors import UserError
from ranker.prepare import __main__ as command, msmarco
from ranker.sources import split_of

REAL = Path(__file__).parents[2] / "shared/data"
SAMPLE = REAL / "msmarco_v11_sample"
DL19 = REAL / "trec_dl_bm25"


def row(name, count=5, selected=(0,), length=100, **changes):
    """A row as Python would have it: (flag, text) pairs; the texts are told apart by their first words."""
    pairs = [(int(i in selected), f"{name} passage {i} ".ljust(length, "x")) for i in range(count)]
    return {"query_id": name, "query": f"what is {name}?", "passages": pairs} | changes


def default_rows():
    return [row(i, count, (i % count,), 100) for i, count in enumerate([5, 7, 9, 5, 7, 9])]


def lists(one):
    flags, texts = zip(*one["passages"])
    return one | {"passages": {"is_selected": list(flags), "passage_text": list(texts), "url": ["u"] * len(flags)}}


def objects(one):
    return one | {"passages": [{"is_selected": flag, "url": "u", "passage_text": text}
                               for flag, text in one["passages"]]}


def write(path, records, indent=None):
    with gzip.open(path, "wt") if path.suffix == ".gz" else path.open("w") as file:
        file.writelines(json.dumps(record, indent=indent) + "\n" for record in records)
    return path


def write_columns(path, rows):
    """v2.1 as Microsoft gives it: one object of columns."""
    return write(path, [{name: {str(i): objects(one)[name] for i, one in enumerate(rows)} for name in rows[0]}])


prepare = partial(prepared, msmarco)


def complaint(path, **options) -> str:
    with pytest.raises(UserError) as caught:
        prepare(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_all_layouts_give_the_same_queries(tmp_path):
    rows = default_rows()
    queries, dropped = prepare(write(tmp_path / "lists.jsonl", map(lists, rows)))
    assert len(queries) == 6 and not dropped
    assert prepare(write(tmp_path / "objects.jsonl.gz", map(objects, rows))) == (queries, dropped)
    assert prepare(write_columns(tmp_path / "columns.json", rows)) == (queries, dropped)


def test_parquet_gives_the_same_queries(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="no pyarrow")
    import pyarrow.parquet
    rows = default_rows() * 300
    rows = [lists(one) | {"query_id": i} for i, one in enumerate(rows)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "x.parquet", row_group_size=700)
    assert prepare(tmp_path / "x.parquet") == prepare(write(tmp_path / "x.jsonl", rows))
    rows[1500]["query_id"] = None
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "x.parquet")
    assert complaint(tmp_path / "x.parquet").startswith(f"{tmp_path / 'x.parquet'}:1501: 'query_id' must be an id")
    (tmp_path / "x.parquet").write_bytes(b"PAR1 no parquet")
    assert complaint(tmp_path / "x.parquet").startswith(f"{tmp_path / 'x.parquet'}: cannot be read")


def test_parquet_without_pyarrow_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    assert complaint(tmp_path / "x.parquet").startswith(f"{tmp_path / 'x.parquet'}: "
                                                        "parquet needs pyarrow (pip install pyarrow)")


def test_a_query_holds_all_passages_and_the_selected_one_is_its_positive(tmp_path):
    rows = default_rows()
    queries, _ = prepare(write(tmp_path / "x.jsonl", map(lists, rows)))
    for one, query in zip(rows, queries):
        assert query.id == f"msmarco.{one['query_id']}" and query.context == one["query"]
        assert query.task == f"passage-{len(one['passages'])}" in templates.wordings()
        assert query.ids == tuple(f"p{i}" for i in range(1, len(query.ids) + 1))
        assert sorted(query.texts.values()) == sorted(text for _, text in one["passages"])
        assert [query.texts[c] for c in query.positives] == [text for flag, text in one["passages"] if flag]
        assert sorted(query.relevance) == [0.0] * (len(query.ids) - 1) + [1.0]


def test_the_papers_filter_and_what_it_drops(tmp_path):
    rows = [row("edge", 5, length=520), row("long", 5, length=521), row("none", 5, ()), row("two", 5, (1, 2)),
            row("four", 4), row("six", 6), row("eight", 8), row("nine", 9), row("ten", 10)]
    path = write(tmp_path / "x.jsonl", map(lists, rows))
    queries, dropped = prepare(path)
    assert [q.id for q in queries] == ["msmarco.edge", "msmarco.nine"]
    assert dropped == {"rows with more than 2600 characters of passages": 1, "rows with no selected passages": 1,
                       "rows with several selected passages": 1, "rows whose number of passages is not 5 or 7 or 9": 4}
    assert [q.id for q in prepare(path, sizes="5", max_characters=3000)[0]] == ["msmarco.edge", "msmarco.long"]
    assert complaint(path, sizes="5,6").startswith("no wording for task 'passage-6'")


def test_the_positive_stands_anywhere(tmp_path):
    path = write(tmp_path / "x.jsonl", (lists(row(i)) for i in range(500)))  # always the first of five
    queries, _ = prepare(path)
    places = Counter(q.ids.index(q.positives[0]) for q in queries)
    assert sorted(places) == [0, 1, 2, 3, 4] and all(70 < n < 130 for n in places.values())  # 100 expected, sd 8.9
    assert Counter(int(q.positives[0][1:]) - 1 for q in queries) == places  # and its id says no more than its place
    assert prepare(path) == (queries, {}) and prepare(path, seed=1)[0] != queries


@pytest.mark.parametrize("record, words", [
    (row(1, passages={"is_selected": [0, 1], "passage_text": ["a", "b", "c"]}), "3 passage_text for 2 is_selected"),
    (row(1, passages={"is_selected": [0, 1], "text": ["a", "b"]}),
     "'passages': no field 'passage_text' (found: is_selected, text); name it: --columns passage_text="),
    (row(1, passages="text"), "'passages' must have is_selected and passage_text"),
    (row(1, passages=[{"is_selected": 1, "passage_text": "a"}, "b"]), "'passages' must have is_selected and"),
    (lists(row("a b")), "'query_id' must be an id without spaces, got 'a b'"),
    (lists(row(None)), "'query_id' must be an id without spaces, got None"),
    ({"query_idx": 1, "query": "what?"},
     "no field 'query_id' (found: query_idx, query); name it: --columns query_id=query_idx"),
    (lists(row(0)), "query_id 0 stood in "),
])
def test_a_broken_row_is_named_with_its_line(tmp_path, record, words):
    path = write(tmp_path / "x.jsonl", [lists(row(0)), record])
    assert complaint(path).startswith(f"{path}:2: {words}")


@pytest.mark.parametrize("flags", [[-1] * 5, [1, None, 0, 0, 0], [0, 2, 0, 0, 0], [1, "", 0, 0, 0], None])
@pytest.mark.parametrize("layout", [dict, list])
def test_a_row_without_a_usable_label_is_dropped_and_counted(tmp_path, flags, layout):
    texts = [f"text {i}" for i in range(5)]
    found = {"passage_text": texts} | ({"is_selected": flags} if flags else {})
    if layout is list:
        found = [{name: values[i] for name, values in found.items()} for i in range(5)]
    path = write(tmp_path / "x.jsonl", [lists(row(0)), row(1, passages=found), lists(row(2))])
    queries, dropped = prepare(path)
    assert [q.id for q in queries] == ["msmarco.0", "msmarco.2"]
    assert dropped == {"rows without a usable label (is_selected is not 0 or 1)": 1}


def test_labels_may_be_written_as_text(tmp_path):
    rows = [row(i, passages={"is_selected": flags, "passage_text": [f"text {k}" for k in range(5)]})
            for i, flags in enumerate([[0, 1, 0, 0, 0], ["0", "1", "0", "0", "0"], [False, True, False, False, False]])]
    queries, dropped = prepare(write(tmp_path / "x.jsonl", rows))
    assert len(queries) == 3 and not dropped and all(q.texts[q.positives[0]] == "text 1" for q in queries)


@pytest.mark.parametrize("text", ["", "  \n", None, "\ud800"])
def test_a_passage_without_a_text_is_left_out_and_counted(tmp_path, text):
    one, two, three = (lists(row(i, 6)) for i in range(3))
    one["passages"]["passage_text"][5] = text  # five are left
    two["passages"]["passage_text"][0] = text  # the selected one
    queries, dropped = prepare(write(tmp_path / "x.jsonl", [one, two, three]))
    assert [q.id for q in queries] == ["msmarco.0"] and len(queries[0].ids) == 5
    assert dropped == {"passages without a text": 2, "rows with no selected passages": 1,
                       "rows whose number of passages is not 5 or 7 or 9": 1}


@pytest.mark.parametrize("question", ["", " ", None, 7])
def test_a_row_without_a_question_is_dropped_and_counted(tmp_path, question):
    queries, dropped = prepare(write(tmp_path / "x.jsonl", [lists(row(0)), lists(row(1, query=question))]))
    assert [q.id for q in queries] == ["msmarco.0"] and dropped == {"rows without a question": 1}


def test_fields_of_other_names_are_read_when_they_are_named(tmp_path):
    rows = default_rows()
    expected = prepare(write(tmp_path / "x.jsonl", map(lists, rows)))
    text = (tmp_path / "x.jsonl").read_text()
    for ours, theirs in (("query_id", "query_idx"), ("query", "question"), ("passage_text", "body")):
        text = text.replace(f'"{ours}":', f'"{theirs}":')
    (tmp_path / "x.jsonl").write_text(text)
    assert prepare(tmp_path / "x.jsonl", columns="query_id=query_idx,query=question,passage_text=body") == expected


def test_equal_passages_of_a_row_are_avoided_on_demand(tmp_path):
    same = lists(row(1))
    same["passages"]["passage_text"][3] = same["passages"]["passage_text"][2]
    path = write(tmp_path / "x.jsonl", [lists(row(0)), same])
    assert len(prepare(path)[0]) == 2
    queries, dropped = prepare(path, distinct=True)
    assert [q.id for q in queries] == ["msmarco.0"] and dropped == {"rows with equal passages": 1}


def test_a_broken_file_is_named(tmp_path):
    path = write(tmp_path / "x.jsonl", [lists(row(0))])
    path.write_text(path.read_text() + '{"query_id": \n')
    assert complaint(path).startswith(f"{path}:2: not JSON")
    packed = write(tmp_path / "x.jsonl.gz", [lists(row(0))])
    packed.write_bytes(packed.read_bytes()[:-9])
    assert complaint(packed) == f"{packed}: the gzip file is cut short; download it again"
    columns = write_columns(tmp_path / "columns.json", default_rows())
    columns.write_text(columns.read_text().replace('"4": [{', '"5": 7, "4": [7, {'))
    assert complaint(columns).startswith(f"{columns}:1: row '4': 'passages' must have")
    assert complaint(tmp_path / "gone.jsonl").startswith(f"{tmp_path / 'gone.jsonl'}: cannot be read")


GRADES = [3, 2, 1, 1, -1, *[0] * 10]  # of the passages of a question; those after them are not judged


def write_track(folder, questions=3, grades=GRADES, hits=20, found=20):
    """(retrieved passages, judgements, run): question q has the passages q-0, q-1, ..., of which a run may find
    fewer."""
    retrieved = [{"query": f"what is {q}?",
                  "hits": [{"content": f"text {q}-{i}", "qid": q, "docid": f"{q}-{i}", "rank": i + 1}
                           for i in range(hits)]} for q in range(questions)]
    write(folder / "hits.json", [retrieved], 1)
    (folder / "qrels").write_text("".join(f"{q} 0 {q}-{i} {grade}\n" for q in range(questions)
                                          for i, grade in enumerate(grades)))
    (folder / "run").write_text("".join(f"{q} Q0 {q}-{i} {i} {9 - i // 2} tag\n" for q in range(questions)
                                        for i in reversed(range(found))))
    return folder / "hits.json", {"qrels": folder / "qrels"}


def grade(document):
    return dict(enumerate(GRADES)).get(int(document.split("-")[1]))


def test_a_pool_has_one_relevant_passage_and_others_judged_0(tmp_path):
    path, options = write_track(tmp_path)
    queries, dropped = prepare(path, **options)
    assert [q.id for q in queries] == [f"msmarco.{q}.{size}" for q in range(3) for size in (5, 7, 9)] and not dropped
    for seed in range(20):
        for query in prepare(path, seed=seed, **options)[0]:
            size = int(query.id.rsplit(".")[-1])
            assert query.task == f"passage-{size}" and len(set(query.ids)) == size
            assert query.context == f"what is {query.id.split('.')[1]}?"
            assert [grade(c) >= 2 for c in query.ids] == [r == 1 for r in query.relevance] and len(query.positives) == 1
            assert {grade(c) for c in query.ids if c not in query.positives} <= {0, -1}  # neither 1 nor unjudged
            assert all(query.texts[c] == f"text {c}" for c in query.ids)


def test_graded_pools_take_any_judged_passages_with_their_grades(tmp_path):
    path, options = write_track(tmp_path)
    seen = set()
    for seed in range(20):
        for query in prepare(path, seed=seed, graded=True, **options)[0]:
            assert (query.relevance == tuple(max(grade(c), 0) for c in query.ids)
                    and max(query.relevance) > min(query.relevance))
            seen |= set(query.relevance)
    assert seen == {0, 1, 2, 3}


def test_relevant_passages_are_drawn_alike_and_stand_anywhere(tmp_path):
    path, options = write_track(tmp_path, questions=400)
    queries, _ = prepare(path, sizes="5", **options)
    places = Counter(q.ids.index(q.positives[0]) for q in queries)
    assert sorted(places) == [0, 1, 2, 3, 4] and all(50 < n < 110 for n in places.values())  # 80 expected, sd 8
    assert all(150 < n < 250 for n in Counter(grade(q.positives[0]) for q in queries).values())
    # 145
    assert all(90 < n < 210
               for n in Counter(c.split("-")[1] for q in queries for c in q.ids if c not in q.positives).values())
    assert prepare(path, sizes="5", **options)[0] == queries != prepare(path, seed=1, sizes="5", **options)[0]


def test_only_passages_of_the_run_are_drawn(tmp_path):
    path, options = write_track(tmp_path, found=10)  # six of them count as judged 0
    queries, dropped = prepare(path, run=tmp_path / "run", **options)
    assert ({int(c.split("-")[1]) for q in queries for c in q.ids} <= set(range(10))
            and [len(q.ids) for q in queries] == [5, 7] * 3)
    assert dropped == {"pools of 9: too few passages of the grades needed": 3}


@pytest.mark.parametrize("grades, options", [([1, *[0] * 12], {}), ([2, 1, 1, 1, 0, 0, 0], {}),
                                             ([0] * 12, {"graded": True}), ([2, 0, 0, 0], {"graded": True})])
def test_questions_without_the_grades_are_counted(tmp_path, grades, options):
    path, files = write_track(tmp_path, grades=grades)
    assert prepare(path, **files, **options) == ([], {f"pools of {n}: too few passages of the grades needed": 3
                                                      for n in (5, 7, 9)})


def test_the_pools_of_a_question_stand_in_one_split(tmp_path, monkeypatch):
    path, options = write_track(tmp_path, questions=60)
    hits = json.loads(path.read_text())
    for i, entry in enumerate(hits):
        entry["query"] = " ".join(f"w{i}x{k}" for k in range(6))  # no near-duplicates
    write(path, [hits])
    out = tmp_path / "out.jsonl"
    monkeypatch.setattr(sys, "argv", ["prepare", "msmarco", str(path), "--qrels", str(options["qrels"]), "--out",
                                      str(out)])
    command.main()
    splits = {}
    for query in read_queries(out):
        splits.setdefault(query.id.split(".")[1], set()).add(split_of(query.group, 0))
    assert (len(splits) == 60 and all(len(found) == 1 for found in splits.values())
            and len(set.union(*splits.values())) == 3)


def test_of_a_tracks_equal_passages_one_is_drawn_on_demand_and_those_without_a_text_never(tmp_path):
    path, options = write_track(tmp_path)
    hits = json.loads(path.read_text())
    for entry in hits:
        for i, hit in enumerate(entry["hits"]):
            hit["content"] = " " if i == 14 else "the same" if i in (0, 5, 6) else hit["content"]
    write(path, [hits])
    for seed in range(5):
        queries, dropped = prepare(path, seed=seed, distinct=True, **options)
        assert all(len(set(q.texts.values())) == len(q.ids) for q in queries)
        assert all(c.split("-")[1] not in ("5", "6", "14") for q in queries for c in q.ids)  # 0 has a higher grade
        assert len(queries) == 9 and dropped == {"passages without a text": 3}


@pytest.mark.parametrize("content, words", [
    ("[{]", ":1: not JSON"),
    ('[\n{"query": "x",, "hits": []}]', ":2: not JSON"),
    ('{"query": "x"}', ": question 1: expected {query, hits: [{content, qid, docid}, ...]}"),
    ('[{"query": "x", "hits": []}]', ": question 1: expected {query, hits:"),
    ('[{"query": "x", "hits": [{"content": "a", "docid": "d"}]}]',
     ": question 1: 'qid' must be an id without spaces, got None"),
    ('[{"query": "x", "hits": [{"content": "a", "qid": 1, "docid": 1}, {"content": "b", "qid": 1, "docid": 1}]}]',
     ": question 1: passage '1' had another text before"),
    ('[{"query": "x", "hits": [{"content": "a", "qid": 1, "docid": "d"}, {"content": "a", "qid": 2, "docid": "e"}]}]',
     ": question 1: its hits must share a qid that no other question has, got 1, 2"),
    ('[{"query": "x", "hits": [{"content": "a", "qid": 1, "docid": 1}]}, '
     '{"query": "y", "hits": [{"content": "a", "qid": 1, "docid": 2}]}]',
     ": question 2: its hits must share a qid that no other question has, got 1"),
])
def test_a_broken_file_of_retrieved_passages_is_named(tmp_path, content, words):
    path, options = write_track(tmp_path)
    path.write_text(content)
    assert complaint(path, **options).startswith(f"{path}{words}")


def test_broken_judgements_are_named_and_needed(tmp_path):
    path, options = write_track(tmp_path)
    for option in ({"run": tmp_path / "run"}, {"graded": True}):
        assert complaint(path, **option) == "--run and --graded need the judgements: --qrels FILE"
    options["qrels"].write_text("0 0 0-0 2\n0 0 0-1 high\n")
    assert complaint(path, **options).startswith(f"{tmp_path / 'qrels'}:2: the grade 'high'")


@pytest.mark.skipif(not SAMPLE.is_dir(), reason="no ../shared/data/msmarco_v11_sample beside the repository")
def test_27_rows_of_the_real_sample_pass_the_papers_filter():
    path = SAMPLE / "ms_marco_v1.1_train_sample200.jsonl.gz"
    queries, dropped = prepare(path)
    assert Counter(q.task for q in queries) == {"passage-5": 9, "passage-7": 15, "passage-9": 3}
    assert dropped == {"rows with no selected passages": 11, "rows with several selected passages": 20,
                       "rows whose number of passages is not 5 or 7 or 9": 73,
                       "rows with more than 2600 characters of passages": 69}
    assert Counter(q.task for q in prepare(path, max_characters=10**6)[0]) == {"passage-5": 9, "passage-7": 22,
                                                                               "passage-9": 65}
    [query], _ = prepare(SAMPLE / "raw_v1.1_layout_example.json")
    raw = json.loads((SAMPLE / "raw_v1.1_layout_example.json").read_text(encoding="utf-8"))
    assert query.task == "passage-7" and query.texts[query.positives[0]] == raw["passages"][2]["passage_text"]


@pytest.mark.skipif(not DL19.is_dir(), reason="no ../shared/data/trec_dl_bm25 beside the repository")
def test_pools_of_the_real_track():
    files = {"qrels": DL19 / "qrels.dl19-passage.txt.gz", "run": DL19 / "run.dl19.bm25_top100.txt.gz"}
    queries, dropped = prepare(DL19 / "retrieve_results_dl19_bm25_top100.json.gz", **files)
    assert (Counter(q.task for q in queries) == {"passage-5": 38, "passage-7": 36, "passage-9": 36}
            and sum(dropped.values()) == 3 * 43 - 110)
    queries, dropped = prepare(DL19 / "retrieve_results_dl19_bm25_top100.json.gz", graded=True, **files)
    assert len(queries) == 3 * 43 and not dropped and {r for q in queries for r in q.relevance} == {0, 1, 2, 3}
    assert len({q.group for q in queries}) == 43
