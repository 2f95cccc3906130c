"""evaluate.py on what people have: queries without labels, runs without judgements, files of one name."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

import evaluate
from ranker import config as settings
from ranker.data import Candidate, Query, write_queries
from ranker.errors import UserError
from ranker.evaluation import inputs
from test_train import ROOT, call, finished_run  # noqa: F401  fixtures


def query(name, relevance=(0.0, 0.0, 0.0)):
    return Query(name, "rank", f"context {name}", tuple(Candidate(f"{name}{i}", f"text {i}") for i in range(3)),
                 relevance)


def rankings(folder):
    return [json.loads(line) for line in (Path(folder) / "rankings.jsonl").read_text().splitlines()]


def test_queries_without_labels_are_ranked_and_not_measured(finished_run, call):  # noqa: F811
    write_queries("plain.jsonl", [query("a"), query("b")])
    status, out, _ = call(evaluate, "--ckpt", "runs/iranker/best", "--data", "plain.jsonl", "--out", "plain")
    assert status == 0 and "2 of them have no labels: they are ranked and not measured" in out and "MRR" not in out
    found = rankings("plain")
    assert [(r["row"], r["query"], sorted(r["ids"])) for r in found] == [
        (row, q, [f"{q}{i}" for i in range(3)]) for row in ("untrained base", "runs/iranker/best") for q in "ab"]
    assert json.loads(Path("plain/results.json").read_text())["metrics"] == []
    run = Path("plain/run.runs_iranker_best.txt").read_text().split()
    assert run[2::6] == [c for r in found[2:] for c in r["ids"]] and "seconds" in out

    write_queries("mixed.jsonl", [query("a"), query("c", (1.0, 0.0, 0.0))])
    status, out, _ = call(evaluate, "--ckpt", "runs/iranker/best", "--data", "mixed.jsonl", "--out", "mixed")
    assert status == 0 and "1 of them have no labels" in out and "MRR" in out
    metrics = json.loads(Path("mixed/results.json").read_text())["rows"]
    labelled = (1 + 1 / 2 + 1 / 3) / 3  # the one query with labels, alone
    assert metrics["random order"]["repaired"]["mean"]["MRR"] == pytest.approx(labelled)
    assert Path("mixed/run.runs_iranker_best.txt").read_text().split()[::6] == ["a"] * 3 + ["c"] * 3


def test_a_trained_ranker_ranks_the_run_of_another_tool_with_and_without_judgements(finished_run, call):  # noqa: F811
    Path("run.txt").write_text("q Q0 d1 1 9 t\nq Q0 d2 2 8 t\nq Q0 d3 3 7 t\n")
    Path("qrels.txt").write_text("q 0 d2 1\n")
    Path("corpus.jsonl").write_text("".join(json.dumps({"_id": f"d{i}", "text": f"text {i}"}) + "\n"
                                            for i in (1, 2, 3)))
    Path("topics.tsv").write_text("q\twhat\n")
    words = ["--run", "run.txt", "--corpus", "corpus.jsonl", "--topics", "topics.tsv", "--ckpt", "runs/iranker/best"]
    status, out, _ = call(evaluate, *words, "--qrels", "qrels.txt", "--out", "judged")
    assert status == 0 and "ranked by runs/iranker/best with name=elimination" in out and "| nDCG@10" in out
    status, out, _ = call(evaluate, *words, "--out", "unjudged")
    assert status == 0 and "nothing is measured without --qrels" in out and "nDCG" not in out
    [found] = rankings("unjudged")
    assert (found["query"], sorted(found["ids"])) == ("q", ["d1", "d2", "d3"])
    judged = Path("judged/run.runs_iranker_best.txt").read_text().split()[2::6]
    assert judged == found["ids"]
    status, _, error = call(evaluate, "--run", "run.txt")
    assert status == 2 and "needs --qrels FILE to be judged, or somebody who ranks it again" in error


def test_the_untrained_base_is_asked_once_for_two_evaluations(finished_run, call):  # noqa: F811
    write_queries("two.jsonl", [query("a", (1.0, 0.0, 0.0)), query("b", (0.0, 1.0, 0.0))])
    words = ["--ckpt", "runs/iranker/best", "--data", "two.jsonl"]
    assert call(evaluate, *words, "--out", "first")[0] == 0
    status, out, _ = call(evaluate, *words, "--out", "second", "--base", "first")
    assert status == 0 and "The untrained base was asked in first." in out
    lent, taken = ([r for r in map(json.loads, Path(f"{name}/traces.jsonl").read_text().splitlines())
                    if r["row"] == "untrained base"] for name in ("first", "second"))
    assert taken == lent != []  # the very seconds too
    for words, said in ((["--ranker", "listwise", "--base", "first"], "was made with other ranker"),
                        (["--base", "runs"], "runs is no finished evaluation with a row 'untrained base'")):
        status, _, error = call(evaluate, "--ckpt", "runs/iranker/best", "--data", "two.jsonl", "--out", "third",
                                *words)
        assert status == 2 and said in error and not Path("third").exists()
    status, _, error = call(evaluate, "--baselines", "--data", "two.jsonl", "--base", "first")
    assert status == 2 and "--base goes with --ckpt" in error


def test_two_files_of_one_name_never_share_a_folder_and_nothing_stale_stays(call):  # noqa: F811
    for folder, names in (("x", "abcdefghij"), ("y", "klmnopqrst")):
        write_queries(Path(folder) / "test.jsonl",
                      [query(f"{name}{i}", (1.0, 0.0, 0.0)) for name in names for i in range(9)])

    def evaluated(*words):
        status, out, error = call(evaluate, *words)
        assert status == 0, error
        return out.rpartition("written to ")[2].partition(":")[0]

    one, two = (evaluated("--data", f"{folder}/test.jsonl", "--baselines") for folder in "xy")
    assert one != two and Path(one).parent == Path(two).parent and Path(one).name.startswith("test-")
    assert evaluated("--data", "x/test.jsonl", "--baselines") == one
    assert evaluated("--data", "x/test.jsonl", "--baselines", "--limit", "3") not in (one, two)
    (Path(one) / "run.gone.txt").write_text("")
    (Path(one) / "routing.png").write_text("")
    evaluated("--data", "x/test.jsonl", "--baselines")
    assert not (Path(one) / "run.gone.txt").exists() and not (Path(one) / "routing.png").exists()


def test_a_plain_evaluation_of_the_best_checkpoint_stands_in_test_and_a_changed_one_elsewhere():
    args = dict(data=[], config=None, limit=None, tasks=[], thoughts=None, prompts=None, metrics=None, orders=1,
                budget=None, split="test")
    best, step = (inputs.Checkpoint(name, Path("runs/a") / name) for name in ("best", "checkpoints/step_20"))
    out = lambda found, overrides=(), **changes: inputs.default_out(  # noqa: E731
        found, SimpleNamespace(**args | changes), settings.Config(), overrides)
    names = [out([best]), out([step]), out([best], ["--ranker.name=setwise"]), out([best], orders=3),
             out([best], limit=5)]
    assert names[0] == Path("runs/a/eval/test") and len(set(names)) == 5
    assert names[1].name.startswith("test-step_20-") and names[2].name.startswith("test-setwise-")


def test_checkpoints_may_differ_in_what_was_done_to_training_queries_and_not_in_the_data():
    def trained(name, *overrides):
        config = settings.load(ROOT / "configs/iranker.yaml", ["--data.train=f.jsonl", *overrides])
        return inputs.Checkpoint(name, Path(name), {"config": settings.as_dict(config)})

    one, two = trained("a"), trained("b", "--data.lessons.teacher.run=r.trec", "--data.unlabelled=true")
    assert inputs.agreed([one, two], False).data.lessons == []
    with pytest.raises(UserError, match="b and a differ in data.seed; evaluate them one by one"):
        inputs.agreed([one, trained("b", "--data.seed=3")], False)
