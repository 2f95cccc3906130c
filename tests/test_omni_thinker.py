"""Omni-Thinker-style: orders of scenarios by measured transfer, and who is asked when."""

import itertools
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from ranker import answers, config as settings, drive, llms, rewarding, sources, transfer
from ranker.data import Ask, Candidate, Completion, Group, Query, write_queries
from ranker.errors import UserError, exit_status
from ranker.lessons import curriculum
from ranker.lessons.curriculum import Options, Transfer
from ranker.sources import Source
from rewards import reference_judge

TASKS = {"passages": "passage-5", "recommendation": "rec-movie", "routing": "router-cost"}
QUERIES = [Query(f"{task}-{n}", task, "x", (Candidate("a", "A"), Candidate("b", "B")), (1.0, 0.0))
           for task in TASKS.values() for n in range(5)]


def made(base: dict, gains: dict, own: float = 0.5) -> Transfer:
    """Return a matrix of these gains off its diagonal; a scenario's own is `own`."""
    return Transfer(base, {i: {j: own if i == j else base[j] + gains[i, j] for j in base} for i in base})


def drawn(count: int, **options) -> list[str]:
    source = curriculum.lesson(Source("queries", QUERIES, "0"), QUERIES, Options(**options))
    return [source[i].task for i in range(count)]


def test_who_destroys_comes_first():
    found = made({"a": 0.0, "b": 0.0}, {("a", "b"): -0.2, ("b", "a"): 0.0})
    assert found.exact(["a", "b"]) == found.greedy(["a", "b"]) == ("a", "b")
    mean = lambda order: sum(found.predicted(order).values()) / 2  # noqa: E731
    assert mean(("a", "b")) - mean(("b", "a")) == pytest.approx(0.1)
    assert found.predicted(("b", "a")) == pytest.approx({"b": 0.3, "a": 0.5})


def test_exact_is_the_best_of_all_and_greedy_never_better():
    rng = random.Random(0)
    for count in (1, 2, 3, 4, 5):
        names = "abcde"[:count]
        base = {n: rng.random() / 2 for n in names}
        found = made(base, {(i, j): rng.uniform(-0.3, 0.3) for i in names for j in names})
        worth = lambda order: sum(found.predicted(order).values())  # noqa: E731, B023
        best = max(map(worth, itertools.permutations(names)))
        assert worth(found.exact(names)) == pytest.approx(best) and worth(found.greedy(names)) <= best + 1e-9
        shifted = Transfer({j: v + 0.1 * (j == "a") for j, v in found.base.items()},
                           {i: {j: v + 0.1 * (j == "a") for j, v in row.items()} for i, row in found.after.items()})
        assert shifted.exact(names) == found.exact(names)  # a constant in a column changes nothing
    nothing = made({"b": 0.1, "a": 0.2}, dict.fromkeys(itertools.product("ab", "ab"), 0.0))
    assert nothing.exact(["b", "a"]) == ("b", "a")  # ties: the first
    with pytest.raises(UserError, match="take order=greedy"):
        nothing.exact("abcdefghi")


def test_without_the_rule_that_a_stage_saturates_no_order_is_better():
    rng = random.Random(1)
    found = made(dict.fromkeys("abc", 0.0), {(i, j): rng.random() for i in "abc" for j in "abc"})
    plain = lambda order: sum(found.gain(i, j) for i in order for j in order)  # noqa: E731: every gain, always
    assert len({round(plain(order), 9) for order in itertools.permutations("abc")}) == 1
    assert len({round(sum(found.predicted(order).values()), 9) for order in itertools.permutations("abc")}) > 1


@pytest.fixture
def file(tmp_path):
    base = dict.fromkeys(TASKS, 0.1)
    gains = {(i, j): -0.1 if (i, j) == ("routing", "passages") else 0.0 for i in TASKS for j in TASKS}
    (tmp_path / "t.json").write_text(json.dumps(vars(made(base, gains))))
    return str(tmp_path / "t.json")


def test_a_stage_ends_where_it_ends_and_all_give_as_many(file):
    exact = drawn(12, prompts=12, transfer=file)
    assert exact == ["rec-movie"] * 4 + ["router-cost"] * 4 + ["passage-5"] * 4
    assert drawn(12, prompts=12, transfer=file, order="reversed") == exact[::-1]
    assert drawn(12, prompts=12, transfer=file, order="greedy")[-1] == "passage-5"
    fixed = drawn(14, prompts=12, order="fixed", scenarios=["routing", "passages", "recommendation"])
    assert fixed == ["router-cost"] * 4 + ["passage-5"] * 4 + ["rec-movie"] * 6  # beyond the prompts: the last
    joint = drawn(12, prompts=12, order="joint")
    assert joint == ["passage-5", "rec-movie", "router-cost"] * 4
    assert sorted(exact) == sorted(joint)


def test_mistakes_are_named(file, tmp_path):
    with pytest.raises(ValueError, match="needs transfer=FILE"):
        Options(prompts=3)
    with pytest.raises(UserError, match="must name each scenario.*'routing'"):
        drawn(1, prompts=3, order="fixed", scenarios=["passages", "recommendation"])
    record = json.loads(open(file).read())
    del record["after"]["routing"]["passages"]
    (tmp_path / "hole.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="hole.json: not what"):  # never 0
        drawn(1, prompts=3, transfer=str(tmp_path / "hole.json"))


def test_the_matrix_is_a_share_of_the_way_from_chance_to_one(tmp_path):
    row = lambda a, b: {"repaired": {"scenarios": {"a": {"MRR": a}, "b": {"MRR": b}}}}  # noqa: E731
    runs = {"a": tmp_path / "a", "b": tmp_path / "b"}
    found = transfer.matrix({"random order": row(0.2, 0.5), "untrained base": row(0.2, 0.75),
                             f"{runs['a']}/last": row(0.6, 0.5), f"{runs['b']}/last": row(0.2, 1.0)}, ["a", "b"], runs)
    assert found.base == pytest.approx({"a": 0, "b": 0.5})
    assert found.after["a"] == pytest.approx({"a": 0.5, "b": 0}) and found.after["b"] == pytest.approx({"a": 0, "b": 1})
    assert "a > b" in transfer.table(found, ["a", "b"])


PREFERS = {"longer": lambda first, second: "1" if len(first) > len(second) else "2",
           "first": lambda first, second: "1", "nothing": lambda first, second: "neither"}


@pytest.mark.parametrize("judge, earned", [("longer", [1.0, 0.0]), ("first", [0.5, 0.5]), ("nothing", [0.5, 0.5])])
def test_an_answer_is_compared_with_the_reference_in_both_orders(tmp_path, judge, earned):
    (tmp_path / "r.jsonl").write_text(json.dumps({"query": QUERIES[0].id, "text": "<answer>[1] > [2]</answer>"}) + "\n")
    ask = Ask(QUERIES[0], ("a", "b"), "order")
    texts = ["<think>long and good</think><answer>[2] > [1]</answer>", "<answer>[1]>[2]</answer>", "no answer"]
    group = Group(ask, [], [Completion([], [], text, True, answers.parse(text, ask)) for text in texts])
    asked = []

    def write(ask: Ask) -> str:
        asked.append(ask)
        return f"<answer>{PREFERS[judge](*(text for _, text in ask.told))}</answer>"

    options = reference_judge.Options(references=str(tmp_path / "r.jsonl"))
    paid = drive.converse(reference_judge.reward([group], options), {"base": llms.scripted(write)})
    assert paid == [[*earned, 0.0]] and len(asked) == 4  # nobody is asked about what cannot be read
    other = Group(Ask(QUERIES[1], ("a", "b"), "order"), [], group.completions)
    with pytest.raises(UserError, match="no reference answer to query 'passage-5-1'"):
        drive.converse(reference_judge.reward([other], options), {"base": llms.scripted(write)})


def test_a_curriculum_is_as_long_as_the_run_unless_it_says_otherwise():
    source = Source("queries", QUERIES, "0", planned=6)
    found = curriculum.lesson(source, QUERIES, Options(order="fixed", scenarios=["routing", "passages",
                                                                                 "recommendation"]))
    assert [found[i].task for i in range(6)] == ["router-cost"] * 2 + ["passage-5"] * 2 + ["rec-movie"] * 2
    config = settings.Config(train=settings.Train(steps=5), rollout=settings.Rollout(prompts_per_step=4),
                             stages=[{"steps": 2, "rollout": {"prompts_per_step": 8}}])
    assert sources.planned(config, "c") == 2 * 8 + 3 * 4


def test_each_task_is_paid_for_by_one_kind_of_reward():
    """Judges for prompts without labels, readers of labels for the others: both on one task are a mistake."""
    judge = {"references": "f.jsonl", "tasks": ["rec-movie"]}
    check = lambda section, tasks=("rec-movie", "passage-5"), unlabelled=(): rewarding.check(  # noqa: E731
        rewarding.load(section), tasks, unlabelled, "c.yaml")
    good = {"reference_judge": judge, "ndcg": {"tasks": ["passage-5"]}, "format": {"weight": 0.5}}
    check(good)
    check(good, unlabelled=["rec-movie"])
    for section, unlabelled, message in (
            (good | {"ndcg": {}}, (), "'rec-movie' is paid for by reference_judge, which asks a judge, and by ndcg"),
            (good | {"ndcg": {"tasks": ["passage-7"]}}, (), "no task 'passage-7' .did you mean 'passage-5'"),
            ({"ndcg": {"tasks": ["passage-5"]}}, (), "no task reward pays for 'rec-movie'"),
            ({"ndcg": {"weight": 0.4, "tasks": ["passage-5"]}, "top1_hit": {"tasks": ["rec-movie"]},
              "format": {"weight": 0.5}}, (), "for 'passage-5' shaping rewards weigh as much"),
            (good, ["passage-5"], "'passage-5' has queries without labels, which reward.ndcg reads")):
        with pytest.raises(UserError, match=message):
            check(section, unlabelled=unlabelled)


def test_queries_without_labels_are_trained_on_where_that_is_wanted(tmp_path):
    known = [replace(q, id=f"k{i}", relevance=(1.0, *[0.0] * (len(q.ids) - 1)))
             for i, q in enumerate(QUERIES * 9)]
    write_queries(tmp_path / "d.jsonl", [*known, *(replace(q, id=f"u{i}", relevance=(0.0,) * len(q.ids))
                                                   for i, q in enumerate(QUERIES * 9))])
    data = settings.Data(train=str(tmp_path / "d.jsonl"))
    source = sources.training(data, 0)
    assert not source.unlabelled and all(q.labelled for q in source.items) and set(source.tasks) == {
        q.task for q in QUERIES}
    source = sources.training(replace(data, unlabelled=True), 0)
    assert set(source.unlabelled) <= set(source.tasks) and not all(q.labelled for q in source.items)


def test_the_command_trains_each_scenario_evaluates_all_and_writes_the_matrix(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_queries(Path("three.jsonl"), [replace(q, id=f"q{i}", relevance=(1.0, *[0.0] * (len(q.ids) - 1)))
                                        for i, q in enumerate(QUERIES * 12)])
    Path("c.yaml").write_text("data: {train: three.jsonl}\ntrain: {steps: 3}\n")
    calls = []

    def pretend(name, found, jobs):
        calls.append((name, [[str(word) for word in call] for call in found]))
        if name == "evaluate":
            [[_, _, *words]] = found
            row = lambda value: {"repaired": {"scenarios": {j: {"MRR": value} for j in TASKS}}}  # noqa: E731
            rows = {"random order": row(0.2), "untrained base": row(0.3)} | {
                str(word): row(0.6) for before, word in zip(words, words[1:]) if before == "--ckpt"}
            out = Path(words[words.index("--out") + 1])
            out.mkdir(parents=True)
            (out / "results.json").write_text(json.dumps({"rows": rows}))

    monkeypatch.setattr(transfer, "run_scripts", pretend)
    monkeypatch.setattr("sys.argv", ["transfer", "c.yaml", "--dir", "t", "--limit", "7"])
    assert exit_status(transfer.main) == 0
    (_, trained), (_, [evaluated]) = calls
    assert len(trained) == 3 and all("--data.lessons=[]" in call for call in trained)
    assert sorted(call[-1] for call in trained) == [f"--run.dir=t/{name}" for name in sorted(TASKS)]
    assert evaluated.count("--ckpt") == 3 and "validation" in evaluated
    assert "--limit 7 --out t/eval-3-7" in " ".join(evaluated)
    found = json.loads(Path("t/transfer.json").read_text())
    assert found["base"] == pytest.approx(dict.fromkeys(TASKS, 0.125))
    assert found["after"]["routing"] == pytest.approx(dict.fromkeys(TASKS, 0.5))
    assert "next: train.py" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["transfer", "c.yaml", "--limit", "0"])
    assert exit_status(transfer.main) == 2 and "--limit must be at least 1" in capsys.readouterr().err
