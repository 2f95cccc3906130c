"""Scores and costs become queries: a question under every objective, in one split; relevance is utility above the worst
model, by costs that only training questions normalise; of a few-shot prompt the question is left. Broken files are
named."""

import ast
import csv
import gzip
import json
import math
import os
import random
import sys
from collections import Counter
from itertools import islice
from functools import partial
from pathlib import Path

import pytest
from conftest import prepared

from ranker import templates
from ranker.data import read_queries
from ranker.errors import UserError
from ranker.evaluation import cost_quality
from ranker.prepare import __main__ as command, routing
from ranker.prepare._groups import merged
from ranker.sources import split_of

REAL = Path(__file__).parents[2] / "shared/data"
WIDE, LONG = REAL / "routerbench_11llm/routerbench_wide.csv.gz", REAL / "routerbench_11llm/router_long_10llm.csv.gz"
needs_real = pytest.mark.skipif(not WIDE.is_file(), reason="no ../shared/data/routerbench_11llm beside the repository")
MODELS = ("ace", "lab/bee", "cow 7b", "dog")


def measured(*pairs, models=MODELS):
    return dict(zip(models, pairs))


def default_rows():
    """(sample, task, question, model -> (score, cost)) of 60 questions in two tasks, unlike each other, each with one
    best model."""
    rng = random.Random(5)
    return [(f"q.{i}", f"task{i % 2}", " ".join(f"w{i}x{k}" for k in range(6)),
             measured(*((float(m == i % 4), rng.uniform(1e-4, 1e-2)) for m in range(4)))) for i in range(60)]


def in_split(split, prefix="n"):
    """Ids of that split, without end."""
    return (name for name in (f"{prefix}{i}" for i in range(10**6)) if split_of(name, 0) == split)


def write_wide(path, rows, literal=True):
    models = list(rows[0][3])
    with gzip.open(path, "wt", newline="") if path.suffix == ".gz" else path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["sample_id", "eval_name", "split", "prompt", *models, *(f"{m}|total_cost" for m in models),
                      "oracle"])
        for sample, task, text, found in rows:
            scores, costs = zip(*(found[m] for m in models))
            out.writerow([sample, task, "test", repr([text]) if literal else text, *scores, *costs, "?"])
    return path


def write_long(path, rows, column="query"):
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["task_id", "query_id", "llm", "effect", "cost", "cost_usd", *([column] if column else [])])
        out.writerows([task, sample, m, score, 77, cost, *([text] if column else [])]
                      for sample, task, text, found in rows for m, (score, cost) in found.items())
    return path


prepare = partial(prepared, routing)


def finished(path, monkeypatch):
    """What the command writes for the trainer: sample -> its queries."""
    out = path.with_suffix(".jsonl")
    monkeypatch.setattr(sys, "argv", ["prepare", "routing", str(path), "--out", str(out)])
    command.main()
    found = {}
    for query in read_queries(out):
        found.setdefault(query.id.split(".", 2)[2], []).append(query)
    return found


def dearer(rows, samples):
    return [(*row[:3], {m: (score, cost * 1000) for m, (score, cost) in row[3].items()}) if row[0] in samples else row
            for row in rows]


def complaint(path, **options) -> str:
    with pytest.raises(UserError) as caught:
        prepare(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_all_layouts_give_the_same_queries(tmp_path):
    rows = default_rows()
    queries, dropped = prepare(write_wide(tmp_path / "wide.csv", rows))
    assert len(queries) == 180 and not dropped
    prompts = write_wide(tmp_path / "wide.csv.gz", rows)
    assert prepare(prompts) == (queries, dropped)
    assert prepare(write_long(tmp_path / "query.csv", rows)) == (queries, dropped)
    assert prepare(write_long(tmp_path / "prompt.csv", rows, "prompt")) == (queries, dropped)
    assert prepare(write_long(tmp_path / "bare.csv", rows, None), prompts=prompts) == (queries, dropped)


def test_relevance_is_the_utility_above_the_worst_model(tmp_path):
    name = next(in_split("train"))
    rows = [(name, "t", "Why?", measured((1.0, 0.010), (0.0, 0.002), (0.5, 0.004), (1.0, 0.006)))]
    queries, _ = prepare(write_wide(tmp_path / "wide.csv", rows))  # normalised costs 1, 0, 0.25, 0.5
    assert [q.id for q in queries] == [f"routing.{o}.{name}" for o in ("performance", "balance", "cost")]
    assert [q.task for q in queries] == ["router-performance", "router-balance", "router-cost"]
    assert {q.task for q in queries} <= templates.wordings().keys()
    assert all(q.group == name and q.context == "Why?" for q in queries)
    expected = [(1, 0, 0.5, 1), (0, 0, 0.125, 0.25), (0, 0.6, 0.5, 0.4)]  # utilities less 0, 0 and -0.6
    for query, values in zip(queries, expected):
        assert query.rel == pytest.approx(dict(zip(("ace", "lab/bee", "cow_7b", "dog"), values)), abs=1e-9)
        assert {c.id: (c.performance, c.cost) for c in query.candidates} == {"_".join(m.split()): found
                                                                             for m, found in rows[0][3].items()}
    [query], _ = prepare(tmp_path / "wide.csv", objectives="cost", weights="cost=1:0.4")
    assert query.rel == pytest.approx(dict(zip(("ace", "lab/bee", "cow_7b", "dog"), (0.6, 0, 0.4, 0.8))), abs=1e-9)


def test_equal_models_share_a_grade_and_where_all_are_equal_nothing_is_asked(tmp_path):
    first, second = (name for _, name in zip(range(2), in_split("train")))
    # 0.1 + 0.2 is more than 0.3
    rows = [(first, "t", "one", measured((0.3, 0.02), (0.1 + 0.2, 0.02), (0.0, 0.01), (0.3, 0.03))),
            (second, "t", "two", measured((1, 0.01), (1, 0.02), (1, 0.03), (1, 0.04)))]
    queries, dropped = prepare(write_wide(tmp_path / "wide.csv", rows))
    by_id = {q.id: q for q in queries}
    assert set(by_id[f"routing.performance.{first}"].positives) == {"ace", "lab/bee", "dog"}
    assert all(by_id[f"routing.{o}.{first}"].rel["ace"] == by_id[f"routing.{o}.{first}"].rel["lab/bee"]
               for o in routing_objectives())
    assert f"routing.performance.{second}" not in by_id and len(queries) == 5
    assert dropped == {"performance: all models are equal": 1}


def routing_objectives():
    return ("performance", "balance", "cost")


def test_the_order_of_the_table_decides_nothing(tmp_path):
    rows = default_rows()
    turned = [(*row[:3], dict(reversed(row[3].items()))) for row in reversed(rows)]
    here, there = (prepare(write_wide(tmp_path / "wide.csv", r))[0] for r in (rows, turned))
    assert {q.id: (q.rel, set(q.positives)) for q in here} == {q.id: (q.rel, set(q.positives)) for q in there}


def test_a_question_stands_in_one_split_under_all_objectives(tmp_path, monkeypatch):
    found = finished(write_wide(tmp_path / "wide.csv", default_rows()), monkeypatch)
    splits = [{split_of(q.group or q.id, 0) for q in queries} for queries in found.values()]
    assert len(found) == 60 and all(len(queries) == 3 for queries in found.values())
    assert all(len(split) == 1 for split in splits) and set.union(*splits) == {"train", "validation", "test"}
    # by their ids they would be torn apart
    assert any(len({split_of(q.id, 0) for q in queries}) > 1 for queries in found.values())


def test_costs_of_questions_outside_training_change_no_training_relevance(tmp_path, monkeypatch):
    """A near-duplicate of a test question belongs to the test, whatever split its own id would have."""
    rows = default_rows()
    test, twin = next(in_split("test", "t")), next(in_split("train", "t"))
    rows += [(test, "task0", "how long is the river Velm", rows[0][3]),
             (twin, "task0", "How long is the river Velm?", rows[1][3])]
    before = finished(write_wide(tmp_path / "wide.csv", rows), monkeypatch)
    held = {sample for sample, queries in before.items() if split_of(queries[0].group, 0) != "train"}
    assert {test, twin} <= held and len(held) > 4
    after = finished(write_wide(tmp_path / "wide.csv", dearer(rows, held)), monkeypatch)
    for sample in before:
        relevance = [[q.relevance for q in found[sample]] for found in (before, after)]
        assert (relevance[0] == relevance[1]) is (sample not in held)
    for sample in held:
        for query in after[sample]:  # above the range all are as dear as can be, and only scores differ
            assert query.task == "router-performance" or len(set(query.relevance)) == 2
    one, other = [row[0] for row in rows if row[0] not in held and row[1] == "task0"][:2]
    moved = finished(write_wide(tmp_path / "wide.csv", dearer(rows, {one})), monkeypatch)
    assert moved[other][-1].rel != before[other][-1].rel  # the same change to a training question does count


def test_costs_are_normalised_within_a_task(tmp_path):
    first, second = (name for _, name in zip(range(2), in_split("train")))
    costs = (0.01, 0.02, 0.03, 0.05)
    rows = [(first, "dear", "one", measured(*((0, 100 * c) for c in costs))),
            (second, "cheap", "two", measured(*((0, c) for c in costs)))]
    (one, two), _ = prepare(write_wide(tmp_path / "wide.csv", rows), objectives="cost")
    assert one.rel == pytest.approx(two.rel) and max(one.relevance) == pytest.approx(0.8)


def test_a_task_without_training_questions_has_no_costs_to_compare(tmp_path):
    rows = [(next(in_split("test")), "t", "one", measured((1, 1), (0, 2), (0, 3), (0, 4)))]
    queries, dropped = prepare(write_wide(tmp_path / "wide.csv", rows))
    assert [q.task for q in queries] == ["router-performance"] and sum(dropped.values()) == 2


EXAMPLES = "".join(f"Choose a letter.\n\nIs {n} odd?\nA) yes\nB) no\nAnswer:\n{'BA'[n % 2]}\n\n" for n in range(5))


@pytest.mark.parametrize("prompt, question", [
    (EXAMPLES + "Which is the\n\nlongest?\nA) this\nAnswer:", "Which is the\n\nlongest?\nA) this\nAnswer:"),
    (EXAMPLES + "Choose a letter.\n\nIs 9 odd? Answer:", "Choose a letter.\n\nIs 9 odd? Answer:"),
    ("Is 9 odd?\nAnswer:", "Is 9 odd?\nAnswer:"),
    # the prompt does not end as examples do
    ("Explain this log:\nAnswer:\n42\n\nWhy 42?", "Explain this log:\nAnswer:\n42\n\nWhy 42?"),
], ids=["blank line inside", "instruction kept", "no examples", "no few-shot prompt"])
def test_of_a_prompt_with_worked_examples_the_whole_question_is_left(tmp_path, prompt, question):
    rows = [(next(in_split("train")), "t", prompt, default_rows()[0][3])]
    for path in (write_wide(tmp_path / "wide.csv", rows), write_long(tmp_path / "long.csv", rows)):
        assert {q.context for q in prepare(path)[0]} == {question}


def test_questions_behind_the_same_examples_are_not_near_duplicates(tmp_path, monkeypatch):
    rows = [(sample, task, f"{EXAMPLES}{text}\nAnswer:", found) for sample, task, text, found in default_rows()]
    found = finished(write_wide(tmp_path / "wide.csv", rows), monkeypatch)
    assert len({queries[0].group for queries in found.values()}) == 60


def test_the_best_model_stands_anywhere(tmp_path):
    rows = [(f"s{i}", "t", f"question {i}", measured((1, 1), (0, 2), (0, 3), (0, 4))) for i in range(400)]
    path = write_wide(tmp_path / "wide.csv", rows)
    queries, _ = prepare(path)
    for objective in routing_objectives():
        places = Counter(q.ids.index("ace") for q in queries if q.task == f"router-{objective}")
        assert sorted(places) == [0, 1, 2, 3] and all(65 < n < 135 for n in places.values())  # 100 expected, sd 8.7
    assert prepare(path) == (queries, {}) and prepare(path, seed=1)[0] != queries


def test_models_are_described_by_their_exact_names_and_priced_by_the_fields(tmp_path, caplog):
    models = ("LLaMA-3 (8b)", "LLaMA-3-Turbo (8b)", "LLaMA-3 (70b)", "LLaMA-3")
    rows = [(next(in_split("train")), "t", "one", measured((1, 1), (0, 2), (0, 3), (0, 4), models=models))]
    described = {"LLaMA-3-Turbo (8b)": {"feature": "Costs 0.8,\nit says.", "input_price": 0.9, "output_price": 2},
                 "other": {},
                 "LLaMA-3 (8b)": {"feature": "Small.", "input_price": 0.2, "output_price": 0.2, "model": "x"}}
    (tmp_path / "models.json").write_text(json.dumps(described))
    (query, *_), _ = prepare(write_wide(tmp_path / "wide.csv", rows), models=tmp_path / "models.json")
    assert query.texts == {
        "LLaMA-3_(8b)": "LLaMA-3 (8b): Small. USD per million tokens: 0.2 for input, 0.2 for output.",
        "LLaMA-3-Turbo_(8b)": "LLaMA-3-Turbo (8b): Costs 0.8, it says. "
                              "USD per million tokens: 0.9 for input, 2 for output.",
        "LLaMA-3_(70b)": "Language model LLaMA-3 (70b)", "LLaMA-3": "Language model LLaMA-3"}
    assert "describes none of LLaMA-3 (70b), LLaMA-3;" in caplog.text


@pytest.mark.parametrize("content, words", [
    ('{"ace": {"feature": "x",\n "input_price": 1,,', ":2: not JSON"),
    ("[1]", ":1: expected {name: {feature, input_price, output_price}}"),
    ('{"ace": {"feature": "x", "input_price": 1}}', ": 'ace': 'output_price' None is no number"),
    ('{"ace": {"feature": 3, "input_price": 1, "output_price": 1}}', ": 'ace': 'feature' must be a text, got 3"),
    ('{"ace": {"feature": "\\ud800", "input_price": 1, "output_price": 1}}',
     ": 'ace': 'feature' holds half of a surrogate pair"),
])
def test_a_broken_description_is_named(tmp_path, content, words):
    (tmp_path / "models.json").write_text(content)
    path = write_wide(tmp_path / "wide.csv", default_rows())
    assert complaint(path, models=tmp_path / "models.json").startswith(f"{tmp_path / 'models.json'}{words}")


def test_names_that_would_share_an_id_are_refused(tmp_path):
    name = next(in_split("train"))
    for rows in ([(name, "t", "one", {"a b": (1, 1), "a_b": (0, 1)})],
                 [("a b", "t", "one", {"m": (1, 1), "n": (0, 1)}), ("a_b", "t", "two", {"m": (1, 1), "n": (0, 1)})]):
        assert (complaint(write_wide(tmp_path / "wide.csv", rows))
                == f"{tmp_path / 'wide.csv'}: the names 'a b' and 'a_b' would have one id")


HEAD = "sample_id,eval_name,prompt,m,m|total_cost\n"


@pytest.mark.parametrize("text, words", [
    ("sample_id,prompt,m,m|total_cost\n", ":1: no column 'eval_name' (found: sample_id, prompt, m, m|total_cost)"),
    ("sample_id,eval_name,prompt,m|total_cost\n", ":1: no column 'm' "),
    ("", ":1: no column 'query' or 'prompt'"),
    (HEAD + "a,t,['x'],1,1\nb,t,['x,1,1\n", ":3: the prompt is no Python list of one string; it begins with \"['x\""),
    (HEAD + "a,t,\"['x', 'y']\",1,1\n", ":2: the prompt is no Python list"),
    (HEAD + "a,t,{'x': 1},1,1\n", ":2: the prompt is no Python list"),
    (HEAD + "a,t,[3],1,1\n", ":2: the prompt must be a text, got 3"),
    (HEAD + "a,t,['x'],1,1\na,t,['x'],1,1\n", ":3: 'a' had a score of 'm' in an earlier row"),
    (HEAD + "a,t,['x'],1\n", ":2: 4 columns, expected 5"),
    # a record of two lines before it
    (HEAD + "a,t,\"['x',\n]\",1,1\nb,t,y,1,1\n", ":4: the prompt is no Python list"),
    ("task_id,query_id,llm,cost,query\n", ":1: no column 'effect'"),
    ("task_id,query_id,llm,effect,query\n", ":1: no column 'cost'"),
    ("task_id,query_id,llm,effect,cost\n",
     ":1: no column 'query' or 'prompt' (found: task_id, query_id, llm, effect, cost)"),
    ("task_id,query_id,llm,effect,cost,query\nt,a,m,1,1,\"x\ny\"\nt,a,n,1,1,z\n",
     ":4: 'a' had another task or question in an earlier row"),
    ("task_id,query_id,llm,effect,cost,query\nt,a,m,1,1,x\nu,a,n,1,1,x\n",
     ":3: 'a' had another task or question in an earlier row"),
    ("task_id,query_id,llm,effect,cost,query\nt,a,m,1,1,x\nt,a,m,1,1,x\n",
     ":3: 'a' had a score of 'm' in an earlier row"),
    ("task_id,query_idx,llm,effect,cost,query\nt,a,m,1,1,x\n",
     ":1: no column 'query_id' (found: task_id, query_idx, llm, effect, cost, query); "
     "name it: --columns query_id=query_idx"),
])
def test_a_broken_table_is_named_with_its_line(tmp_path, text, words):
    (tmp_path / "x.csv").write_text(text, encoding="utf-8", newline="")
    assert complaint(tmp_path / "x.csv").startswith(f"{tmp_path / 'x.csv'}{words}")


def test_questions_without_a_prompt_are_dropped_and_a_broken_table_of_prompts_is_refused(tmp_path):
    rows = default_rows()
    prompts = write_wide(tmp_path / "wide.csv", rows[:-1])
    path = write_long(tmp_path / "long.csv", rows, None)
    queries, dropped = prepare(path, prompts=prompts)
    assert len(queries) == 177 and dropped == {f"rows without a question in {prompts}": 4}
    bad = write_wide(tmp_path / "bad.csv", rows, literal=False)
    assert complaint(path, prompts=bad).startswith(f"{bad}:2: the prompt is no Python list")
    assert complaint(prompts, prompts=prompts) == f"--prompts is for a long table; {prompts} has its own"


def test_a_gzip_file_that_is_cut_short_is_named(tmp_path):
    path = write_wide(tmp_path / "wide.csv.gz", default_rows())
    path.write_bytes(path.read_bytes()[:-20])
    assert complaint(path) == f"{path}: the gzip file is cut short; download it again"


def test_objectives_without_a_wording_or_weights_are_refused(tmp_path, monkeypatch):
    path = write_wide(tmp_path / "wide.csv", default_rows())
    assert complaint(path, objectives="frugal").startswith("no wording for task 'router-frugal'")
    assert complaint(path, weights="cost=1:1").startswith("--weights has none for the objective 'performance'")
    for weights in ("cost", "cost=1", "cost=1:2:3", "cost=1:-1", "cost=1:nan", "cost=x:1"):
        monkeypatch.setattr(sys, "argv", ["prepare", "routing", str(path), "--out", "x", "--weights", weights])
        with pytest.raises(UserError, match="invalid weights value"):
            command.main()


@pytest.mark.parametrize("value", ["", "good", "?", "nan", "None", "1e12"])
@pytest.mark.parametrize("place", [0, 1], ids=["score", "cost"])
def test_a_model_without_a_score_or_a_cost_is_left_out_of_that_question(tmp_path, value, place):
    rows = default_rows()
    pair = tuple(value if i == place else 0.5 for i in range(2))
    rows[8] = (*rows[8][:3], rows[8][3] | {"dog": pair})
    rows[9] = (*rows[9][:3], rows[9][3] | {model: pair for model in MODELS[1:]})
    for path in (write_wide(tmp_path / "wide.csv", rows), write_long(tmp_path / "long.csv", rows)):
        queries, dropped = prepare(path)
        assert {len(q.ids) for q in queries if q.group == "q.8"} == {3} and not [q for q in queries if q.group == "q.9"]
        what = ["score", "cost"][place]
        assert dropped == {f"questions for model 'lab/bee', whose {what} is missing or no number": 1,
                           f"questions for model 'cow 7b', whose {what} is missing or no number": 1,
                           f"questions for model 'dog', whose {what} is missing or no number": 2,
                           "questions with fewer than two measured models": 1}


@pytest.mark.parametrize("missing, words", [
    ("cow 7b|total_cost", "questions for 'cow 7b', a column of numbers without costs (no column 'cow 7b|total_cost')"),
    ("cow 7b", "questions for model 'cow 7b', which has no scores (no column 'cow 7b')")])
def test_a_model_without_costs_or_scores_is_named_in_the_summary(tmp_path, monkeypatch, capsys, missing, words):
    path = write_wide(tmp_path / "wide.csv", default_rows())
    lines = [line.split(",") for line in path.read_text().splitlines()]
    head = lines[0]
    drop = head.index(missing)
    path.write_text("\n".join(",".join(line[:drop] + line[drop + 1:]) for line in lines))
    found = finished(path, monkeypatch)
    assert all("cow_7b" not in q.ids for queries in found.values() for q in queries)
    out = capsys.readouterr().out
    assert f"dropped 60: {words}" in out
    assert "'split'" not in out and "'oracle'" not in out  # columns that hold no numbers


def test_columns_of_other_names_are_read_when_they_are_named(tmp_path):
    expected = prepare(write_long(tmp_path / "long.csv", default_rows()))
    text = (tmp_path / "long.csv").read_text().replace("query_id", "query_idx").replace(",effect,", ",score,")
    (tmp_path / "long.csv").write_text(text)
    assert prepare(tmp_path / "long.csv", columns="query_id=query_idx,effect=score") == expected


def test_a_table_between_tabs_or_behind_a_pipe_is_read(tmp_path):
    rows = default_rows()
    expected = prepare(write_wide(tmp_path / "wide.csv", rows))
    lines = csv.reader((tmp_path / "wide.csv").read_text().splitlines())
    (tmp_path / "wide.tsv").write_text("\n".join(map("\t".join, lines)))
    assert prepare(tmp_path / "wide.tsv") == expected
    out, into = os.pipe()
    os.write(into, (tmp_path / "wide.csv").read_bytes())
    os.close(into)
    assert prepare(Path(f"/dev/fd/{out}")) == expected
    os.close(out)


def test_questions_without_a_text_are_dropped_and_counted(tmp_path):
    rows = default_rows()
    rows[3] = (*rows[3][:2], "", rows[3][3])
    for path, count in ((write_wide(tmp_path / "wide.csv", rows), 1), (write_long(tmp_path / "long.csv", rows), 4)):
        queries, dropped = prepare(path)
        assert len({q.group for q in queries}) == 59 and dropped == {"rows without a question": count}


def test_a_point_as_dear_as_the_dearest_model_up_to_rounding_counts(tmp_path):
    """A router that always takes the dearest model has its cost, summed in another order."""
    for cost in (math.nextafter(5.0, 6), 5.0, math.nextafter(5.0, 4)):
        assert cost_quality.area([(1.0, 0.2), (cost, 0.9)], 1.0, 5.0) == pytest.approx(0.55)
    assert cost_quality.area([(1.0, 0.2), (5.1, 0.9)], 1.0, 5.0) == pytest.approx(0.2)


def test_what_is_cheaper_than_the_cheapest_model_adds_no_area_of_its_own():
    assert cost_quality.area([(0.0, 0.1), (2.0, 0.5)], 1.0, 2.0) == pytest.approx(0.4)


@pytest.fixture(scope="module")
def real():
    return prepare(WIDE)


@needs_real
def test_the_real_table_gives_a_query_per_question_and_objective(real):
    queries, dropped = real
    count = Counter(q.task for q in queries)
    assert count == {"router-performance": 3150 - 597, "router-balance": 3150, "router-cost": 3150}
    assert dropped == {"performance: all models are equal": 597}
    assert all(len(q.ids) == 11 and min(q.relevance) == 0 for q in queries)
    assert (sum(len(q.positives) > 1 for q in queries if q.task == "router-performance") + 597
            == pytest.approx(0.983 * 3150, abs=2))
    assert sum(len(q.positives) > 1 for q in queries if q.task != "router-performance") < 20
    assert len({q.context for q in queries}) == 3148  # two MBPP questions stand there twice


@needs_real
def test_the_cheapest_positive_of_the_real_table_is_its_oracle(real):
    with gzip.open(WIDE, "rt", newline="") as file:
        rows = {row["sample_id"]: row for row in csv.DictReader(file)}
    for query in real[0]:
        row = rows[query.group]
        assert (ast.literal_eval(row["prompt"])[0].endswith(query.context)
                and query.context.count("Answer:") == (row["eval_name"] != "mbpp"))
        if query.task == "router-performance":
            assert (min((c for c in query.candidates if c.id in query.positives), key=lambda c: c.cost).id
                    == row["oracle_model_to_route_to"])


@needs_real
def test_costs_of_the_real_table_are_normalised_over_what_the_trainer_trains_on(real):
    queries = [q for q in real[0] if q.task == "router-cost"]
    groups = merged([q.group for q in queries], [q.context for q in queries])  # as the command joins them at last
    task = [q.group.split(".")[0] for q in queries]
    costs = {}
    for name, group, query in zip(task, groups, queries):
        if split_of(group, 0) == "train":
            costs.setdefault(name, []).extend(c.cost for c in query.candidates)
    ranges = {name: (min(found), max(found)) for name, found in costs.items()}
    for name, query in zip(task, queries):
        low, high = ranges[name]
        utility = [0.2 * c.performance - 0.8 * min(max((c.cost - low) / (high - low), 0), 1) for c in query.candidates]
        assert all(abs(r - (u - min(utility))) < 1e-8 for r, u in zip(query.relevance, utility))


@needs_real
def test_the_real_long_table_holds_the_same_scores_and_costs(real, tmp_path):
    for path, count in ((LONG, 2000), (WIDE, 200)):  # the first 200 questions of both, to save time
        with (gzip.open(path, "rt", encoding="utf-8", newline="") as file,
              (tmp_path / path.stem).open("w", encoding="utf-8") as cut):
            csv.writer(cut).writerows(islice(csv.reader(file), 1 + count))
    queries, dropped = prepare(tmp_path / LONG.stem, prompts=tmp_path / WIDE.stem)
    known = {q.id: q for q in real[0]}
    assert len(queries) == 600 - dropped["performance: all models are equal"] > 500
    for query in queries:
        there = {c.id: (c.performance, c.cost) for c in known[query.id].candidates if c.id != "claude-v1"}
        assert ({c.id: (c.performance, c.cost) for c in query.candidates} == there
                and query.context == known[query.id].context)


@pytest.mark.skipif(not (REAL / "graphrouter_meta").is_dir(),
                    reason="no ../shared/data/graphrouter_meta beside the repository")
def test_the_real_descriptions_of_ten_models_are_told_apart():
    path = REAL / "graphrouter_meta/LLM_Descriptions_v1.json"
    names = list(json.loads(path.read_text(encoding="utf-8")))
    texts = routing.described(path, names)
    assert len(texts) == len(set(texts.values())) == 10 and all(texts[name].startswith(f"{name}: ") for name in names)
    assert texts["NousResearch"].endswith("USD per million tokens: 0.9 for input, 0.9 for output.")  # its text says 0.8
