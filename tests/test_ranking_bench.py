"""Rows as the authors' scripts write them are taken apart into context, candidates and relevance; whatever does not fit
is named."""

import argparse
import gzip
import json
import sys
from collections import Counter
from types import SimpleNamespace

import pytest

from ranker import templates
from ranker.data import read_queries
from ranker.errors import UserError
from ranker.prepare import __main__ as command, ranking_bench

NAMES = ("Rec-Movie", "Rec-Music", "Rec-Game", "Router-Performance", "Router-Balance", "Router-Cost", "Passage-5",
         "Passage-7", "Passage-9")
HISTORY = ["Ocean's Eleven (2001)", 'The "Burbs" (1989)', "Babe, 'Pig' in the City (1998)", "Fast &amp; Loose"]
SHOWN = ("Ocean's Eleven (2001)", 'The "Burbs" (1989)', "Babe, 'Pig' in the City (1998)", "Fast & Loose")
MODELS = {"Small (8b)": "Each token price is 0.2. Short: good at chat.",
          "Small (8b)-Turbo": "Each token price is 0.3. Fast.", "Big": "Each token price is 0.9."}
TEXTS = {"passage 0": "Fleas: a year.", "passage 1": "Dogs bark.", "passage 2": "Please think step by step about cats."}


def pasted(titles) -> str:
    """The authors' list: quotes inside the titles are left as they are."""
    return "[" + ", ".join(f"'{i}. {title}'" for i, title in enumerate(titles)) + "]"


def rec(history=HISTORY, candidates=("Heat (1995)", "Alien &amp; Co", "Big (1988)"), gt="Big (1988)", task="Rec-Movie",
        listed=pasted):
    problem = (f"I've watched the following items in the past, in order:\n{listed(history)}\n\n"
               f"Now there are {len(candidates)} candidate items that I might like next:\n"
               f"{pasted(candidates)}\n\nPlease rank them.")
    return {"task_name": task, "problem": problem, "candidates": list(candidates), "gt": gt, "user_id": "7"}


def router(question="What is 2 + 2?", candidates=tuple(MODELS), gt="Small (8b)", task="Router-Cost"):
    lines = "".join(f"    # {name}: {text} \n" for name, text in MODELS.items())
    problem = (f"# The LLM names and their discriptions are: \n{lines}"
               f"    ## Here is a query: {question} and LLM condidates: {list(candidates)}. "
               "Please think step by step and select the least likely LLM from the LLM condidates.\n    ")
    return {"task_name": task, "problem": problem, "candidates": list(candidates), "gt": gt}


def passage(texts=TEXTS, gt="passage 2", task="Passage-5", candidates=None):
    listed = "\n".join(f"{i}: {text}" for i, text in texts.items())
    problem = (f"## Here is a query: how long do fleas live and candidate passages:\n{listed}\n\n"
               "Please think step by step about each. "
               "Return the passage IDs in order (e.g.,\npassage 1\npassage 3). You MUST rank all passages.\n    ")
    return {"task_name": task, "problem": problem,
            "candidates": list(texts.values()) if candidates is None else candidates, "gt": gt}


def write(path, rows):
    with gzip.open(path, "wt") if path.suffix == ".gz" else path.open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def prepare(*words):
    parser = argparse.ArgumentParser()
    ranking_bench.arguments(parser)
    return list(ranking_bench.prepare(parser.parse_args([str(word) for word in words]), Counter()))


def query(row):
    return ranking_bench.query(row, "x")


def complaint(*words) -> str:
    with pytest.raises(UserError) as caught:
        prepare(*words)
    return str(caught.value)


@pytest.fixture
def no_datasets(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)


@pytest.fixture
def loaded(monkeypatch):
    """A stand-in for the package: what it was asked for; `rows` is what it gives."""
    asked = SimpleNamespace(rows=[], options=None)

    def load_dataset(**options):
        asked.options = options
        return iter(asked.rows)

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    return asked


def test_the_nine_tasks_have_the_names_of_our_wordings():
    makers = {"Rec": rec, "Router": router, "Passage": passage}
    found = [query(makers[name.split("-")[0]](task=name)).task for name in NAMES]
    assert found == [name.lower() for name in NAMES] and sorted(found) == sorted(templates.wordings().keys() - {"rank"})


def python_list(titles) -> str:
    return str([f"{i}. {title}" for i, title in enumerate(titles)])


@pytest.mark.parametrize("listed", [pasted, python_list])
def test_a_history_is_read_whatever_quotes_its_titles_hold(listed):
    found = query(rec(listed=listed))
    assert found.context == SHOWN and found.positives == ("c3",)
    assert found.texts == {"c1": "Heat (1995)", "c2": "Alien & Co", "c3": "Big (1988)"}


def test_the_positive_is_found_by_its_raw_title_and_equal_titles_are_all_positive():
    assert query(rec(gt="Alien &amp; Co ")).relevance == (0.0, 1.0, 0.0)
    assert query(rec(candidates=("A", "B", "A"), gt="A")).relevance == (1.0, 0.0, 1.0)


def test_numbered_titles_keep_numbers_of_their_own():
    assert (query(rec(history=["7. Sinn", "10 Things, '2. Act'", "3. 4. 5"])).context
            == ("7. Sinn", "10 Things, '2. Act'", "3. 4. 5"))


def test_a_model_is_shown_with_its_description_and_found_by_its_full_name():
    found = query(router())
    assert found.context == "What is 2 + 2?" and found.positives == ("c1",)
    assert found.texts == {"c1": "Small (8b): Each token price is 0.2. Short: good at chat.",
                           "c2": "Small (8b)-Turbo: Each token price is 0.3. Fast.",
                           "c3": "Big: Each token price is 0.9."}
    assert query(router(candidates=("Other", "Big"), gt="Other")).texts["c1"] == "Other"


def test_a_question_to_route_may_look_like_a_prompt():
    question = "Explain:\n# Big: a heading\nHere is a query: 1 and LLM condidates: 2"
    found = query(router(question))
    assert found.context == question and found.texts["c3"] == "Big: Each token price is 0.9."


def test_passages_are_found_by_the_ids_of_the_problem_in_the_order_listed():
    found = query(passage())
    assert (found.context == "how long do fleas live" and found.positives == ("c3",)
            and list(found.texts.values()) == list(TEXTS.values()))
    # as in the iterative subset
    found = query(passage({"passage 4": "d", "passage 0": "two\nlines", "passage 2": "c"}, gt="passage 0"))
    assert found.texts == {"c1": "d", "c2": "two\nlines", "c3": "c"} and found.positives == ("c2",)
    assert query(passage(candidates=list(TEXTS))) == query(passage())
    texts = {f"passage {i}": f"text {i}" for i in range(12)}
    assert (query(passage(texts, gt="passage 1")).positives == ("c2",)
            and query(passage(texts, gt="passage 11")).positives == ("c12",))


def test_a_file_of_rows_needs_no_package_and_becomes_a_file_that_trains(tmp_path, monkeypatch, no_datasets):
    rows = [rec(), router(), passage()]
    for name in ("my rows.jsonl", "my rows.jsonl.gz"):
        queries = prepare(write(tmp_path / name, rows))
        assert [q.id for q in queries] == [f"ranking-bench.my-rows.{i}" for i in (1, 2, 3)]
    monkeypatch.setattr("sys.argv", ["prepare", "ranking-bench", str(tmp_path / name), "--out",
                                     str(tmp_path / "out.jsonl")])
    command.main()
    assert read_queries(tmp_path / "out.jsonl") == queries


def test_pools_of_one_query_stay_in_one_split(tmp_path, monkeypatch):
    rows = ([router(task=task, candidates=list(MODELS)[:n]) for task in NAMES[3:6] for n in (2, 3)]
            + [router("Name a flower")])
    path = write(tmp_path / "rows.jsonl", rows)
    monkeypatch.setattr("sys.argv", ["prepare", "ranking-bench", str(path), "--out", str(tmp_path / "out.jsonl")])
    command.main()
    groups = [q.group or q.id for q in read_queries(tmp_path / "out.jsonl")]
    assert len(set(groups[:6])) == 1 and groups[6] != groups[0]


def test_a_name_of_the_hub_or_a_folder_is_read_through_the_package(tmp_path, loaded):
    loaded.rows = [rec(), passage()]
    assert [q.id for q in prepare()] == ["ranking-bench.direct.train.1", "ranking-bench.direct.train.2"]
    assert loaded.options == {"path": "ulab-ai/Ranking-bench", "name": "direct", "split": "train", "streaming": True}
    queries = prepare(tmp_path, "--subset", "iterative", "--split", "test")
    assert [q.id for q in queries] == ["ranking-bench.iterative.test.1", "ranking-bench.iterative.test.2"]
    assert loaded.options == {"path": str(tmp_path), "name": "iterative", "split": "test", "streaming": True}


def test_a_parquet_file_is_read_through_the_package(tmp_path, loaded):
    loaded.rows = [rec()]
    (tmp_path / "rows.parquet").touch()
    assert [q.id for q in prepare(tmp_path / "rows.parquet")] == ["ranking-bench.rows.1"]
    assert loaded.options == {"path": "parquet", "data_files": str(tmp_path / "rows.parquet"), "split": "train",
                              "streaming": True}
    assert complaint(tmp_path / "gone.parquet") == f"there is no file {tmp_path / 'gone.parquet'}"


def test_without_the_package_the_user_is_told_to_install_it(no_datasets):
    assert complaint() == "ulab-ai/Ranking-bench is read with a package that is not installed: pip install datasets"


def test_what_the_package_can_not_load_is_told_in_one_line(monkeypatch, loaded):
    def broken():
        yield rec()
        raise ConnectionError("the hub does not answer")
    loaded.rows = broken()
    assert (complaint() == "ulab-ai/Ranking-bench (direct.train) could not be loaded: ConnectionError: "
            "the hub does not answer")


def test_a_row_that_does_not_fit_is_named_with_its_number_and_fields(tmp_path, loaded):
    row = {"prompt": "x", "gt": "a"}
    tail = "no text in 'task_name'; the row has prompt, gt, expected are task_name, problem, candidates, gt"
    loaded.rows = [rec(), row]
    assert complaint() == f"ulab-ai/Ranking-bench (direct.train) row 2: {tail}"
    path = write(tmp_path / "rows.jsonl", [rec(), router(), row])
    assert complaint(path) == f"{path}:3: {tail}"


@pytest.mark.parametrize("row, words", [
    (dict(rec(), task_name="Rec-Book"), "unknown task_name 'Rec-Book' (did you mean 'rec-movie'?)"),
    (dict(rec(), task_name=None), "no text in 'task_name'"),
    (dict(rec(), candidates="Heat"), "no list in 'candidates'"),
    (dict(rec(), candidates=["Heat", 3]), "'candidates' must be at least two texts"),
    (dict(rec(), candidates=["Big (1988)"]), "'candidates' must be at least two texts"),
    (dict(rec(), gt="Big"), "gt 'Big' is none of the candidates"),
    (dict(rec(), candidates=["Big (1988)", "\ud83d"]), "surrogates not allowed"),
    (dict(rec(), problem="Rank these."), "its problem has no history between 'in order:' and 'Now there are'"),
    (rec(listed=lambda titles: str(titles)), "its history is no list of numbered titles"),
    (rec(history=[]), "its history is no list of numbered titles"),
    (rec(listed=lambda titles: "['0. A', '2. B']"), "its history is no list of numbered titles"),
    (dict(router(), problem=rec()["problem"]), "its problem has no query before 'and LLM condidates:'"),
    (router(gt="Small"), "gt 'Small' is none of the candidates"),
    (dict(passage(), problem="## Here is a query: x"), "its problem has no passages between"),
    (passage(candidates=["Fleas: a year.", "Dogs bark.", "another"]),
     "the passages in its problem are not its candidates"),
    (passage(candidates=["Fleas: a year.", "Dogs bark."]), "the passages in its problem are not its candidates"),
    (passage(gt="passage 3"), "gt 'passage 3' is none of the candidates"),
    (passage(gt="Dogs bark."), "gt 'Dogs bark.' is none of the candidates"),
])
def test_nothing_is_guessed(row, words):
    with pytest.raises(ValueError) as caught:
        query(row)
    assert words in str(caught.value)


def test_rows_without_a_usable_label_or_text_are_dropped_and_counted(tmp_path):
    path = write(tmp_path / "rows.jsonl", [rec(), rec(gt="Big"), rec(candidates=("Heat", " ", "Big (1988)")),
                                           passage(gt="passage 7")])
    dropped = Counter()
    parser = argparse.ArgumentParser()
    ranking_bench.arguments(parser)
    assert len(list(ranking_bench.prepare(parser.parse_args([str(path)]), dropped))) == 1
    assert dropped == {"rows whose gt is none of their candidates": 2, "rows with a candidate without a text": 1}


def test_a_broken_file_is_named_with_its_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(rec()) + '\n{"task_name": "Rec-\n')
    assert complaint(path).startswith(f"{path}:2: not JSON")
    packed = write(tmp_path / "rows.jsonl.gz", [rec()] * 50)
    packed.write_bytes(packed.read_bytes()[:-20])
    assert complaint(packed).startswith(f"{packed}: the gzip file is cut short")
    assert complaint(tmp_path / "gone.jsonl").startswith(f"{tmp_path / 'gone.jsonl'}: cannot be read")
