"""The built-in policy: its file is the one that was built, it reads rightly, decides wrongly, and learns from
reward."""

import random
import re
import sys

import pytest

from ranker import config as settings, plugins, thoughts, tiny, world
from ranker.answers import parse
from ranker.asking import local_model, sample_groups
from ranker.data import Ask
from ranker.drive import load_ranker, run
from ranker.engine import policy as policies, pretrained
from ranker.engine.sampler import Sampler
from ranker.errors import exit_status
from ranker.evaluation import report
from ranker.files import sha256
from ranker.tiny import __main__ as builder, plain, tutor, traces


@pytest.fixture(scope="module")
def sampler():
    return Sampler(policies.load(settings.Model(device="cpu")), settings.Rollout(max_new_tokens=192))


def asks_and_readings(decision, size, count, split="test"):
    rng = random.Random(size)
    tasks = [task for task, n in world.TASKS.items() if n >= size]
    for i in range(count):
        query, reading = world.draw(tasks[i % len(tasks)], split, i)
        members = rng.sample(range(len(query.ids)), size)
        yield Ask(query, tuple(query.ids[m] for m in members), decision), reading, members


def test_the_weights_are_those_that_were_built_and_small():
    weights = pretrained.TINY / "model.safetensors"
    assert sha256(weights) == tiny.SHA256 and weights.stat().st_size <= 8_000_000


@pytest.mark.parametrize("decision, size, parsed", [
    ("eliminate", 5, 0.95), ("eliminate", 20, 0.9), ("pick", 10, 0.9), ("order", 5, 0.8), ("narrow", 8, 0.7),
    ("score", 1, 0.95)])
def test_it_answers_every_decision_in_a_form_that_can_be_read(sampler, decision, size, parsed):
    asks = [ask for ask, _, _ in asks_and_readings(decision, size, 40)]
    groups = sample_groups(sampler, asks, 1, 0.0)
    assert sum(g.completions[0].answer.ok for g in groups) >= parsed * len(asks)


def test_its_traces_state_rightly_what_is_wanted_and_what_fits(sampler):
    cases = list(asks_and_readings("eliminate", 8, 40))
    groups = sample_groups(sampler, [ask for ask, _, _ in cases], 1, 0.0)
    right = total = 0
    for group, (ask, reading, _) in zip(groups, cases):
        written = group.completions[0].text.split()
        expected = tutor.completion(reading, ask, wrong="first sign" in group.completions[0].text).split()[:-1]
        right += sum(a == b for a, b in zip(written, expected))
        total += len(expected)
    assert right / total >= 0.9


def test_its_greedy_decisions_are_the_teachers_error_more_often_than_right_ones(sampler):
    cases = [(ask, reading, members) for ask, reading, members in asks_and_readings("eliminate", 6, 120)]
    groups = sample_groups(sampler, [ask for ask, _, _ in cases], 1, 0.0)
    half = fit = 0
    for group, (ask, reading, _) in zip(groups, cases):
        wrong, right = (tutor.completion(reading, ask, way).split()[-1] for way in (True, False))
        if wrong != right:
            half += group.completions[0].text.endswith(wrong)
            fit += group.completions[0].text.endswith(right)
    assert half > 2 * fit


@pytest.mark.slow
def test_greedy_ranking_leaves_much_to_learn(sampler):
    queries = [q for task in ("rec-music", "passage-9") for q in world.queries(task, "test", 8)]
    rankings = run(load_ranker({"name": "elimination"}), queries, local_model(sampler))
    row = report.model_row("base", [rankings], 0.0)
    assert row.mean("MRR") < 0.6 and row.mean("MRR", strict=True) > 0.8 * row.mean("MRR")


def test_text_of_any_kind_can_be_encoded_and_read(sampler):
    tokenizer = sampler.policy.tokenizer
    for text in ("Amélie (2001)", "七人の侍", "🙂 \x07 tab\t", "x" * 3000):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    rng = random.Random(0)
    asks = [Ask(query, query.ids, "eliminate") for query, _ in (plain.draw(rng, 8) for _ in range(20))]
    assert sum(g.completions[0].answer.ok for g in sample_groups(sampler, asks, 1, 0.0)) >= 16


@pytest.mark.parametrize("decision", sorted(tutor.SHARES))
def test_the_teacher_is_right_about_signs_and_wrong_about_decisions(decision):
    differ = 0
    size = 1 if decision == "score" else 8 if decision != "narrow" else 7
    for ask, reading, members in asks_and_readings(decision, size, 60, "train"):
        best = max(reading.fit)
        for member in members:
            assert (reading.fit[member] == best) == (ask.query.rel[ask.query.ids[member]] == max(ask.query.relevance))
        answers = {tutor.answer(ask, {k: values[m] for k, m in enumerate(members, 1)}, max(values))
                   for values in (reading.half, reading.fit)}
        differ += len(answers) == 2
    assert differ > 10


@pytest.mark.slow
def test_the_builder_is_deterministic_and_its_examples_never_leave_the_training_split(tmp_path, monkeypatch):
    seen = []
    draw = world.draw
    monkeypatch.setattr(world, "draw", lambda task, split, *rest: seen.append(split) or draw(task, split, *rest))
    for name in ("a", "b"):
        monkeypatch.setattr("sys.argv", ["tiny", "--out", str(tmp_path / name), "--steps", "2"])
        builder.main()
    a, b = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("a", "b"))
    assert a == b and set(seen) == {"train"}


@pytest.mark.parametrize("options, most",
                         [([], 1), (["--ranker.drop=3"], 3), (["--ranker.drop=2", "--ranker.pool=append"], 2)])
def test_traces_of_the_teacher_name_as_many_as_may_go_and_write_of_those_that_are_left(
        tmp_path, monkeypatch, options, most):
    monkeypatch.setattr(sys, "argv", ["traces.py", "--out", str(tmp_path / "t.jsonl"), "--count", "60", *options])
    assert exit_status(traces.main) == 0
    read = thoughts.read(tmp_path / "t.jsonl")
    assert (len(read) == 60 and {ask.query.task for ask, _ in read} == set(world.TASKS)
            and max(ask.drop for ask, _ in read) == most)
    for ask, text in read:
        answer, written = parse(text, ask), re.findall(r"\[(\d+)\]", text.partition("</think>")[0])
        assert answer.ok and len(answer.value) == ask.drop and ".train." in ask.query.id
        assert [ask.pool[int(k) - 1] for k in written] == [c for c in ask.left for _ in range(2)]
        assert (ask.out is None) == ("--ranker.pool=append" not in options)


@pytest.mark.parametrize("name, decisions", [("valued", {"values", "order"}), ("orderchain", {"range"})])
def test_the_teacher_shows_decisions_that_the_policy_was_never_asked_for(tmp_path, monkeypatch, name, decisions):
    monkeypatch.setattr(sys, "argv", ["traces.py", "--out", str(tmp_path / "t.jsonl"), "--count", "60",
                                      f"--ranker.name={name}"])
    assert exit_status(traces.main) == 0
    read, right = thoughts.read(tmp_path / "t.jsonl"), 0
    for ask, text in read:
        assert parse(text, ask).ok
        right += text.endswith(f"<answer>{plugins.module('decision', ask.decision).right(ask)}</answer>")
    assert {ask.decision for ask, _ in read} == decisions and 0 < right < 60


def test_the_teachers_traces_take_no_option_that_would_have_no_effect(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["traces.py", "--out", str(tmp_path / "t.jsonl"), "--data.seed=5"])
    assert (exit_status(traces.main) == 2 and "unknown option --data.seed=5" in capsys.readouterr().err
            and not list(tmp_path.iterdir()))
