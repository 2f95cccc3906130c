"""Rank from Python: every kind of ranker gives the same objects, batches equal single calls, mistakes are one line."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import evaluate
import ranker
from ranker import llms, use, world
from ranker.errors import UserError
from test_train import ROOT, call, finished_run  # noqa: F401  fixtures

HATS = ["wool hat", "rain hat with fleece", "straw hat"]


@pytest.fixture(scope="module")
def tiny():
    return ranker.load("tiny", ranker="elimination", settings_={"rollout.max_new_tokens": 64})


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, ranker; assert not {'torch', 'transformers', 'peft'} & set(sys.modules); ranker.load"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    with pytest.raises(AttributeError):
        ranker.rank


def test_results_say_which_document_stands_where_and_steps_say_why(tiny):
    query = world.query("passage-5", "test", 0)
    found = tiny.rank(query.context, [query.texts[c] for c in query.ids], task="passage-5")
    assert [r.place for r in found] == [1, 2, 3, 4, 5] and sorted(r.index for r in found) == list(range(5))
    assert all(r.text == query.texts[f"c{r.index}"] and r.id == str(r.index) and r.score is None for r in found)
    assert len(found.steps) == 4 and [len(s.pool) for s in found.steps] == [5, 4, 3, 2]
    for step, gone in zip(found.steps, found[:0:-1]):  # who left when, and with which reasoning
        assert step.decision == "eliminate" and (step.status != "ok" or step.named == (gone.id,))
        assert step.text.startswith("<think>") and step.round == found.steps.index(step)
    assert found.failed == sum(step.status != "ok" for step in found.steps) and found.prompt_tokens > 100
    assert str(found).count("\n") == 4 and len(found[:2]) == 2


@pytest.mark.slow
def test_many_queries_at_once_are_ranked_as_one_by_one(tiny):
    queries = [world.query(task, "test", 1) for task in ("passage-5", "passage-7", "passage-5")]
    documents = [[{"id": c, "text": q.texts[c]} for c in q.ids] for q in queries]
    for loaded in (tiny, ranker.load("tiny", ranker="setwise", settings_={"rollout.max_new_tokens": 64})):  # shuffles
        together = loaded.rank([q.context for q in queries], documents)
        for q, d, found in zip(queries[::-1], documents[::-1], together[::-1]):
            alone = loaded.rank(q.context, d)
            assert set(r.id for r in found) == set(q.ids)
            if q is not queries[2]:  # an equal query has a lot of its own
                assert [r.id for r in found] == [r.id for r in alone] and found.steps == alone.steps


@pytest.mark.parametrize("name, scored", [("first", False), ("likelihood", True), ("sliding", False),
                                          ("pointwise", False)])
def test_rerankers_of_every_kind_give_the_same_objects(name, scored):
    found = ranker.load("tiny", ranker=name, settings_={"rollout.max_new_tokens": 64}).rank("warm", HATS, top_n=2)
    assert len(found) == 2 and {r.text for r in found} < set(HATS)
    assert all(isinstance(r.score, float) == scored for r in found)
    if scored:
        assert found[0].score >= found[1].score


def test_a_checkpoint_ranks_as_its_evaluation_does(call, finished_run):  # noqa: F811
    assert call(evaluate, "--ckpt", "runs/iranker/best", "--limit", 2, "--tasks", "passage-5", "--out", "e")[0] == 0
    order: dict[str, list[str]] = {}
    for line in Path("e/run.runs_iranker_best.txt").read_text().splitlines():
        order.setdefault(line.split()[0], []).append(line.split()[2])
    loaded = ranker.load("runs/iranker")
    for i in range(2):
        query = world.query("passage-5", "test", i)
        found = loaded.rank(query.context, [{"id": c, "text": query.texts[c]} for c in query.ids], task="passage-5")
        assert found.failed or [r.id for r in found] == order[query.id]  # where nothing is left to chance


def test_a_history_nothing_one_document_and_ids(tiny):
    assert len(tiny.rank("warm", [])) == 0 and [r.place for r in tiny.rank("warm", ["hat"])] == [1]
    assert len(tiny.rank(["wool hat", "scarf"], HATS, task="rec-movie")) == 3
    assert {r.id for r in tiny.rank("warm", [{"id": "a", "text": "x"}, {"id": 7, "text": "y"}])} == {"a", "7"}


@pytest.mark.parametrize("arguments, said", [
    (("warm", "hats"), "documents must be a list"), (("warm", [3]), "document 0 must be a text"),
    (("warm", [{"id": "a"}]), "document 0 must be a text"), ((7, ["a"]), "a query must be a text"),
    (("warm", [["a"], ["b"]]), "2 lists of documents need as many queries"),
    (("warm", [{"id": 1, "text": "a"}, {"id": "1", "text": "b"}]), "the id '1' stands twice"),
    (("warm", ["a", "b"], 0), "top_n must be"), (("warm", ["a", "b"], None, "nonsense"), "no wording")])
def test_mistakes_are_one_line(tiny, arguments, said):
    with pytest.raises(UserError, match=said):
        tiny.rank(*arguments)


@pytest.mark.parametrize("name, options, said", [
    ("no/such/folder", {}, "no/such/folder"), ("tiny", {"ranker": "elimnation"}, "did you mean 'elimination'"),
    ("tiny", {"settings_": {"rollout.max_new_token": 3}}, "did you mean 'max_new_tokens'")])
def test_what_cannot_be_loaded_is_named(name, options, said):
    with pytest.raises(UserError, match=said):
        ranker.load(name, **options)


def test_a_scripted_model_that_knows_the_order_is_followed():
    config = use.inputs.defaults([])
    config.ranker = {"name": "pointwise", "score": "written"}
    oracle = use.Reranker(config, llms.scripted(
        lambda ask: f"<think>x</think><answer>{len(ask.query.texts[ask.pool[0]])}</answer>"), "oracle")
    found = oracle.rank("q", ["a", "aaa", "aa"])
    assert [r.index for r in found] == [1, 2, 0] and [len(step.text) > 20 for step in found.steps] == [True] * 3


def test_ids_that_are_not_given_are_none_that_are(tiny):
    found = tiny.rank("warm", [{"id": "1", "text": "a"}, "b", {"id": "x", "text": "c"}])
    assert {r.id for r in found} == {"1", "document 1", "x"}


def test_a_name_is_a_name_whatever_it_holds():
    with pytest.raises(UserError, match="model #2"):
        ranker.load("/no/such/model #2")


def test_the_example_of_the_docs_runs_as_printed(finished_run, capsys):  # noqa: F811
    text = (ROOT / "docs/use.md").read_text().split("## From Python\n\n")[1].split("\n\n")[0]
    code = "\n".join(line.removeprefix("    ") for line in text.split("\n"))
    exec(code, {})
    out = capsys.readouterr().out
    assert "rain hat with fleece" in out and "eliminate" in out


@pytest.mark.slow
def test_the_installed_package_ranks_from_any_folder(tmp_path):
    source = tmp_path / "source"  # pip leaves a build folder where it builds
    names = ("ranker", "rewards", "prompts", "pyproject.toml", "requirements.txt", "README.md", "LICENSE")
    source.mkdir()
    for name in names:
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, source / name)
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation",
                    "--disable-pip-version-check", "--target", tmp_path / "site", source], check=True)
    (tmp_path / "elsewhere").mkdir()
    assert not {"rewards", "prompts"} & {path.name for path in (tmp_path / "site").iterdir()}
    code = ("import ranker; assert 'site' in ranker.__file__; from ranker import load;"
            " print(load('tiny', ranker='first').rank('warm', ['wool hat', 'rain hat']).results[0].place)")
    found = subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path / "elsewhere", capture_output=True,
                           text=True, env=os.environ | {"PYTHONPATH": str(tmp_path / "site")})
    assert found.stdout.strip() == "1"
