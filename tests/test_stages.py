"""Stages of a run, what supervised fine-tuning imitates, and the three ways of drawing what it learns from."""

import json

import pytest
import torch
from safetensors.torch import load_file

import train
from ranker import config as settings, log, states, thoughts, world
from ranker.data import Answer, Ask, Completion, Group
from ranker.drive import load_ranker
from ranker.errors import UserError
from ranker.objectives import sft
from ranker.engine.sampler import Sampler, answer_mask
from ranker.stages import Stage
from test_train import ROOT, SHORT, call, records  # noqa: F401  `call` is a fixture

COLD = {"steps": 2, "rollout": {"completions_per_prompt": 2}, "train": {"objective": "sft", "lr": 1e-3},
        "reward": {"top1_hit": 1.0}}


def staged(*stages, **train_settings):
    config = settings.Config(stages=list(stages))
    for key, value in train_settings.items():
        setattr(config.train, key, value)
    return config


def test_a_stage_changes_what_it_names_and_the_rest_is_that_of_the_run():
    config = staged(COLD, steps=5, beta=0.1, lr=3e-3)
    (first, cold), (then, main) = settings.stages(config)
    assert (first, then, cold.train.steps, main.train.steps) == (1, 3, 2, 3)
    assert (cold.train.objective, cold.train.lr, cold.rollout.completions_per_prompt) == ("sft", 1e-3, 2)
    assert ((main.train.objective, main.train.lr, main.rollout.completions_per_prompt, main.train.beta)
            == ("grpo", 3e-3, 8, 0.1))
    assert config.train.steps == 5 and config.train.objective == "grpo" and list(main.reward) == ["top1_hit"]


@pytest.mark.parametrize("stages, message", [
    ({"steps": 2}, "must be a list"), ([3], "must hold steps"), ([{"train": {}}], "needs its number of steps"),
    ([{"steps": 0}], "at least 1"), ([{"steps": 5}], "leave none"),
    ([{"steps": 1, "model": {"name": "x"}}], "'model' cannot change"),
    ([{"steps": 1, "train": {"lrr": 1}}], "unknown key 'train.lrr'.*lr"),
    ([{"steps": 1, "rollout": 3}], "'rollout' cannot change"),
    ([{"steps": 1, "rollout": {"max_new_tokens": 9}}], "rollout.max_new_tokens cannot change in a stage")])
def test_a_broken_stage_is_refused(stages, message):
    config = settings.Config(stages=stages)
    config.train.steps = 5
    with pytest.raises(UserError, match=message):
        settings.stages(config)


@pytest.mark.parametrize("states, objective, traces, message", [
    ("recorded", "grpo", "f", "only with sft"), ("identifiers", "sft", "", "only with ranknet"),
    ("sampled", "ranknet", "", "needs rollout.states=identifiers"),
    ("recorded", "sft", "", "rollout.traces names"), ("sampled", "sft", "f", "rollout.traces names")])
def test_what_is_drawn_and_how_it_is_learned_must_fit(states, objective, traces, message):
    config = settings.Config()
    config.rollout.states, config.rollout.traces, config.train.objective = states, traces, objective
    with pytest.raises(UserError, match=message):
        settings.check(config, "config")


def test_of_a_group_the_best_completion_is_imitated_if_it_is_good_enough():
    nan = float("nan")
    task = torch.tensor([0.2, 0.9, 0.9, 0.3, 0.4, nan, 0.6, nan])
    total = torch.tensor([0.2, 0.7, 0.9, 0.3, 0.4, nan, 0.6, nan])
    _, kept = sft.credit(settings.Train(keep_above=0.5), total, task, torch.tensor([0, 0, 0, 1, 1, 2, 2, 3]))
    # the better form of two equal ones; none of the second group; NaN never
    assert kept.nonzero()[:, 0].tolist() == [2, 6]


def test_a_thought_without_weight_leaves_the_gradient_to_the_answer(make_policy):
    policy = make_policy()
    ids = policy.tokenizer("<think> a [1]</think>\n<answer>[1]</answer>", add_special_tokens=False)["input_ids"]
    mask = answer_mask(policy, ids)
    assert policy.tokenizer.decode([i for i, m in zip(ids, mask) if m]) == "<answer>[1]</answer>"
    assert not answer_mask(policy, ids[:4]).any()
    for weight in (0.0, 0.25, 1.0):
        signal, _ = sft.signals(settings.Train(thought_weight=weight), {0: torch.ones(len(ids))}, {"answer": {0: mask}})
        logprobs = torch.zeros(1, len(ids), requires_grad=True)
        sft.loss(settings.Train(), 1, logprobs, None, torch.ones(1, len(ids)),
                 {"advantage": signal["advantage"][0][None]}, len(ids))[0].backward()
        torch.testing.assert_close(logprobs.grad[0] * -len(ids), torch.where(mask > 0, 1.0, weight))


def test_sft_is_cross_entropy():
    logprobs, mask = torch.randn(2, 4).log_softmax(-1), torch.tensor([[1.0, 1, 1, 0], [1, 0, 0, 0]])
    loss, parts = sft.loss(settings.Train(), 1, logprobs, None, mask, {"advantage": torch.ones(2, 4)}, 4)
    assert (loss.item() == pytest.approx(-(logprobs * mask).sum().item() / 4)
            and parts["nll"] == pytest.approx(4 * loss.item()))


def test_hinted_completions_saw_the_answer_and_are_learned_without_it(make_policy, monkeypatch):
    policy, seen = make_policy(), []
    sampler, ranker = Sampler(policy, settings.Rollout(max_new_tokens=4)), load_ranker({"name": "elimination"})
    encode, fitted = policy.prompter.encode, policy.prompter.fitted
    monkeypatch.setattr(policy.prompter, "fitted", lambda ask: seen.append(ask) or fitted(ask))
    experience = states.hinted(sampler, ranker, [world.query("passage-5", "train", 0)], 3, 1.0, 0)
    [group] = experience.groups
    assert seen[0].hint and f"The right answer is {seen[0].hint}." in policy.tokenizer.decode(encode(seen[0]))
    assert group.ask == states.sampled(sampler, ranker, [group.ask.query], 3, 1.0, 0).groups[0].ask
    assert (group.prompt == encode(group.ask) and "right answer" not in policy.tokenizer.decode(group.prompt)
            and len(group.completions) == 3)


def test_the_share_of_lists_that_were_handed_back_unchanged_is_logged(asks):
    ask = Ask(asks[0].query, asks[0].query.ids, "order")
    lists = [ask.pool, ask.pool[::-1], ask.pool, ask.pool[:1]]
    group = Group(ask, [], [Completion([1], [0.0], "", True, Answer("ok", order)) for order in lists])
    assert log.rollout_means([group])["unchanged"] == 0.5
    assert "unchanged" not in log.rollout_means([Group(asks[0], [], group.completions)])


def trace_file(path, relevance=True):
    query = world.query("passage-5", "train", 0)
    record = ({"step": 1, "query": query.id, "task": query.task, "context": query.context,
               "candidates": [[c.id, c.text] for c in query.candidates],
               "decision": "eliminate", "text": "<think> read</think>\n<answer>[2]</answer>"}
              | ({"relevance": list(query.relevance)} if relevance else {}))
    path.write_text(json.dumps(record) + "\n" + json.dumps(record | {"decision": "order"}) + "\n")
    return query


def test_recorded_traces_are_groups_of_one_whose_tokens_are_those_of_the_text(make_policy, tmp_path):
    query, policy = trace_file(tmp_path / "traces.jsonl"), make_policy()
    source = thoughts.drawn(tmp_path / "traces.jsonl", "eliminate", 0)
    ask, text = source(0)
    assert source(7) == (ask, text) and ask.query.relevance == query.relevance and ask.decision == "eliminate"
    experience = states.recorded(Sampler(policy, settings.Rollout(max_new_tokens=4)), None, [source(0), source(1)], 8,
                                 1.0, 0)
    assert (experience.cohorts == [0, 1]
            and all(policy.tokenizer.decode(g.completions[0].ids) == text for g in experience.groups))
    assert (experience.groups[0].completions[0].answer.value == (query.ids[1],)
            and experience.groups[0].prompt == policy.prompter.encode(ask))


def test_traces_without_relevance_are_all_right_and_other_decisions_are_refused(tmp_path):
    trace_file(tmp_path / "traces.jsonl", relevance=False)
    ask, _ = thoughts.drawn(tmp_path / "traces.jsonl", "order", 0)(0)
    assert set(ask.query.relevance) == {1.0}
    with pytest.raises(UserError, match="no trace of the decision 'pick'"):
        thoughts.drawn(tmp_path / "traces.jsonl", "pick", 0)


def test_refills_go_on_until_enough_groups_have_unlike_rewards_or_the_draws_are_spent(monkeypatch, make_policy):
    """Groups are made up here: those of an even position are all alike."""
    config = settings.Config()
    config.rollout.prompts_per_step, config.rollout.refills = 2, 2
    drawn = []

    def made(sampler, ranker, positions, count, temperature, seed, first=0):
        drawn.append(list(positions))
        return states.Experience(list(positions), [g for g in range(len(positions)) for _ in range(2)],
                                 [-1] * (2 * len(positions)))

    monkeypatch.setattr(states, "sampled", made)
    monkeypatch.setattr(train.rewarding, "score",
                        lambda parts, groups: [[{"task": 0.0}, {"task": float(g % alike == 0)}] for g in groups])
    stage = Stage(1, config, [], None, lambda i: i)
    for alike, expected in ((1, [[0, 1]]), (2, [[0, 1], [2, 3]]), (10**6, [[0, 1], [2, 3], [4, 5]])):
        drawn.clear()
        experience, rewards = train.roll_out(stage, None, None, {})
        assert drawn == expected and len(rewards) == len(experience.groups) == 2 * len(expected)
        assert (experience.cohorts == sorted(experience.cohorts)
                and len(set(experience.cohorts)) == len(experience.groups))


STAGED = ["--train.beta=0.1", "--train.warmup=0", "--rollout.temperature=1.5"]


def staged_config(tmp_path):
    path = tmp_path / "staged.yaml"
    path.write_text((ROOT / "configs/iranker.yaml").read_text()
                    + "\nstages:\n  - {steps: 2, train: {objective: sft, keep_above: 0.5, lr: 1.0e-4, warmup: 0}}\n")
    return path


@pytest.mark.slow
def test_a_staged_run_stopped_in_its_second_stage_ends_as_one_never_stopped(call, tmp_path, monkeypatch):  # noqa: F811
    config = staged_config(tmp_path)
    whole = call(train, config, *SHORT, *STAGED, "--run.dir=whole")
    assert whole[0] == 0, whole[2]
    took = train.roll_out

    def cut(stage, sampler, ranker, step):
        if step == 4:
            raise KeyboardInterrupt
        return took(stage, sampler, ranker, step)

    monkeypatch.setattr(train, "roll_out", cut)
    assert call(train, config, *SHORT, *STAGED, "--run.dir=cut")[0] == 130
    monkeypatch.setattr(train, "roll_out", took)
    assert call(train, config, *SHORT, *STAGED, "--run.dir=cut")[0] == 0
    for name in ("adapter_model.safetensors", "reference.safetensors"):
        a, b = (load_file(tmp_path / run / "last" / name) for run in ("whole", "cut"))
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    steps = [r for r in records(tmp_path / "whole/metrics.jsonl") if r["step"]]
    assert (["nll" in r for r in steps] == [True, True, False, False]
            and ["kl" in r for r in steps] == [False, False, True, True])
    assert steps[2]["kl"] == pytest.approx(0, abs=1e-5)  # the second stage begins as its own reference


def test_a_run_does_not_go_on_with_other_traces_than_it_began_with(call, tmp_path):  # noqa: F811
    query = trace_file(tmp_path / "traces.jsonl")
    options = ["--rollout.states=recorded", f"--rollout.traces={tmp_path}/traces.jsonl", "--train.objective=sft",
               "--train.warmup=0", f"--data.tasks={query.task}"]
    short = [option for option in SHORT if "tasks" not in option and "steps=" not in option]
    assert call(train, ROOT / "configs/iranker.yaml", *short, *options, "--train.steps=1")[0] == 0
    config = (tmp_path / "runs/iranker/config.yaml")
    config.write_text(config.read_text().replace("  steps: 1\n", "  steps: 2\n"))
    (tmp_path / "traces.jsonl").write_text((tmp_path / "traces.jsonl").read_text().replace("read", "seen"))
    status, _, error = call(train, ROOT / "configs/iranker.yaml", *short, *options, "--train.steps=2")
    assert status == 2 and "traces.jsonl changed since the last checkpoint" in error
