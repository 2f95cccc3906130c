"""Stages of a run, what supervised fine-tuning imitates, and the three ways of drawing what it learns from."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

import train
from ranker import asking, config as settings, log, plugins, sources, thoughts, world
from ranker.asking import Sample, answer_mask
from ranker.data import Answer, Ask, Candidate, Completion, Group, Query, write_queries
from ranker.drive import load_ranker
from ranker.engine.sampler import Sampler
from ranker.errors import UserError
from ranker.objectives import sft
from ranker.passes import Batch
from ranker.sources import Source
from ranker.stages import Stage
from test_train import ROOT, SHORT, call, records  # noqa: F401  `call` is a fixture

COLD = {"steps": 2, "rollout": {"completions_per_prompt": 2}, "train": {"lr": 1e-3}, "objective": {"name": "sft"},
        "draw": {"refills": 1}, "reward": {"format": 0.5, "relevance": 1.0}}


def staged(*stages, **train_settings):
    config = settings.Config(stages=list(stages), objective={"beta": 0.1})
    for key, value in train_settings.items():
        setattr(config.train, key, value)
    settings.resolve(config, "config")
    return config


def test_a_stage_changes_what_it_names_and_the_rest_is_that_of_the_run():
    config = staged(COLD, steps=5, lr=3e-3)
    (first, cold), (then, main) = settings.stages(config)
    assert (first, then, cold.train.steps, main.train.steps) == (1, 3, 2, 3)
    assert (cold.objective["name"], cold.train.lr, cold.rollout.completions_per_prompt) == ("sft", 1e-3, 2)
    assert (cold.draw, list(cold.reward)) == ({"name": "sampled", "refills": 1}, ["format", "relevance"])
    assert ((main.objective["name"], main.train.lr, main.rollout.completions_per_prompt, main.objective["beta"])
            == ("grpo", 3e-3, 8, 0.1))
    assert config.train.steps == 5 and config.objective["name"] == "grpo" and list(main.reward) == ["top1_hit"]
    assert main.draw["refills"] == 0 and "beta" not in cold.objective  # another objective has other options
    [(_, warmer), _] = settings.stages(staged({"steps": 1, "objective": {"min_spread": 0.5}}, steps=5))
    assert (warmer.objective["beta"], warmer.objective["min_spread"]) == (0.1, 0.5)  # the same one keeps the run's


@pytest.mark.parametrize("stages, message", [
    ({"steps": 2}, "must be a list"), ([3], "must hold steps"), ([{"train": {}}], "needs its number of steps"),
    ([{"steps": 0}], "at least 1"), ([{"steps": 5}], "leave none"),
    ([{"steps": 1, "model": {"name": "x"}}], "'model' cannot change"),
    ([{"steps": 1, "train": {"lrr": 1}}], "unknown key 'train.lrr'.*lr"),
    ([{"steps": 1, "objective": {"beeta": 1}}], "stage 1: objective 'grpo' has no option 'beeta'.*'beta'"),
    ([{"steps": 1, "rollout": 3}], "'rollout' cannot change"),
    ([{"steps": 1, "rollout": {"max_new_tokens": 9}}], "rollout.max_new_tokens cannot change in a stage"),
    ([{"steps": 1, "train": {"weight_decay": 0.1}}], "train.weight_decay cannot change in a stage")])
def test_a_broken_stage_is_refused(stages, message):
    config = settings.Config(stages=stages)
    config.train.steps = 5
    with pytest.raises(UserError, match=message):
        settings.stages(config)


@pytest.mark.parametrize("draw, objective, message", [
    ({"name": "recorded", "traces": "f"}, "grpo", "gives texts, .*grpo learns from samples"),
    ({"name": "identifiers"}, "sft", "gives candidates, .*sft learns from samples or texts"),
    ({}, "ranknet", "gives samples, .*ranknet learns from candidates; draws that give them: candidates, identifiers"),
    ({"name": "recorded"}, "sft", "draw needs its option 'traces'"),
    ({"traces": "f"}, "sft", "draw 'sampled' has no option 'traces'")])
def test_what_is_drawn_and_how_it_is_learned_must_fit(draw, objective, message):
    config = settings.Config(draw=draw, objective={"name": objective})
    with pytest.raises(UserError, match=message):
        settings.check(config, "config")


def test_of_a_group_the_best_completion_is_imitated_if_it_is_good_enough():
    nan = float("nan")
    task, total = (0.2, 0.9, 0.9, 0.3, 0.4, nan, 0.6, nan), (0.2, 0.7, 0.9, 0.3, 0.4, nan, 0.6, nan)
    found = [Completion([1], [0.0], "", True, Answer("ok"), cohort=cohort, returns={"task": a, "total": b})
             for a, b, cohort in zip(task, total, (0, 0, 0, 1, 1, 2, 2, 3))]
    sft.alive([Group(None, [], found)], sft.Options(keep_above=0.5))
    # the better form of two equal ones; none of the second group; NaN never
    assert [i for i, c in enumerate(found) if c.alive] == [2, 6]


def test_a_thought_without_weight_leaves_the_gradient_to_the_answer(make_policy):
    policy = make_policy()
    ids = policy.tokenizer("<think> a [1]</think>\n<answer>[1]</answer>", add_special_tokens=False)["input_ids"]
    mask = answer_mask(policy, ids)
    assert policy.tokenizer.decode([i for i, m in zip(ids, mask) if m]) == "<answer>[1]</answer>"
    assert not answer_mask(policy, ids[:4]).any()
    for weight in (0.0, 0.25, 1.0):
        options, c = sft.Options(thought_weight=weight), Completion(ids, [], "", True, Answer("ok"), alive=True)
        c.signals["answer"] = mask
        sft.targets([Group(None, [], [c])], options)
        assert c.advantage == pytest.approx(torch.where(mask > 0, 1.0, weight).mean().item())
        logprobs = torch.zeros(1, len(ids), requires_grad=True)
        batch = Batch([c], [slice(0, 1)], logprobs, None, torch.ones(1, len(ids), dtype=torch.bool))
        sft.loss(batch, options)[0].backward()
        torch.testing.assert_close(-logprobs.grad[0], torch.where(mask > 0, 1.0, weight))


def test_sft_is_cross_entropy():
    logprobs, mask = torch.randn(2, 4).log_softmax(-1), torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]]).bool()
    taught = [Completion([0] * n, [], "", True, Answer("ok"), signals={"weight": torch.ones(n)}) for n in (3, 1)]
    loss, parts = sft.loss(Batch(taught, [slice(0, 2)], logprobs, None, mask), sft.Options())
    assert sft.UNIT == "token"  # of the sum over the tokens the loop makes their mean
    assert loss.item() == pytest.approx(-(logprobs * mask).sum().item()) and parts["nll"] == pytest.approx(loss.item())


def drawn(name, policy, items, **options):
    """Return the groups that a draw gives for all of `items`, three completions each."""
    rollout = settings.Rollout(prompts_per_step=len(items), completions_per_prompt=3, max_new_tokens=4)
    sample = Sample(Sampler(policy, rollout), load_ranker({"name": "elimination"}), rollout, 0)
    return plugins.load("draw", {"name": name} | options).draw(
        Source("items", item=items.__getitem__), sample, lambda groups, discount=1.0: groups, {})


def test_hinted_completions_saw_the_answer_and_are_learned_without_it(make_policy, monkeypatch):
    policy, seen, queries = make_policy(), [], [world.query("passage-5", "train", 0)]
    encode, fitted = policy.prompter.encode, policy.prompter.fitted
    monkeypatch.setattr(policy.prompter, "fitted", lambda ask: seen.append(ask) or fitted(ask))
    [group] = drawn("hinted", policy, queries)
    assert seen[0].hint and f"The right answer is {seen[0].hint}." in policy.tokenizer.decode(encode(seen[0]))
    assert group.ask == drawn("sampled", policy, queries)[0].ask
    assert (group.prompt == encode(group.ask) and "right answer" not in policy.tokenizer.decode(group.prompt)
            and len(group.completions) == 3)
    for c in group.completions:
        c.returns = {"task": 1.0, "total": 1.0}
    stage = Stage(1, settings.Config(), [], *(plugins.load(kind, {"name": name}) for kind, name in (
        ("objective", "sft"), ("draw", "hinted"))), Source("queries", queries))
    stage.objective.alive([group])
    record = train.update(stage, policy, None, [group], 1)
    assert record["nll"] > 0 and record["sampler_gap"] != record["sampler_gap"]  # sampled for another prompt: no gap


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
    draw = plugins.load("draw", {"name": "recorded", "traces": str(tmp_path / "traces.jsonl")})
    source = draw.source(Source("queries", item=lambda i: query), load_ranker({"name": "elimination"}), 0)
    ask, text = source[0]
    assert source[7] == (ask, text) and ask.query.relevance == query.relevance and ask.decision == "eliminate"
    groups = drawn("recorded", policy, [source[0], source[1]], traces="")
    assert [[c.cohort for c in g.completions] for g in groups] == [[0], [1]]
    assert all(policy.tokenizer.decode(g.completions[0].ids) == text for g in groups)
    assert (groups[0].completions[0].answer.value == (query.ids[1],)
            and groups[0].prompt == policy.prompter.encode(ask))


def test_traces_without_relevance_are_all_right_and_other_decisions_are_refused(tmp_path):
    trace_file(tmp_path / "traces.jsonl", relevance=False)
    ask, _ = thoughts.drawn(tmp_path / "traces.jsonl", {"order"}, 0)[0]
    assert set(ask.query.relevance) == {1.0}
    with pytest.raises(UserError, match="no trace of the decision 'pick'"):
        thoughts.drawn(tmp_path / "traces.jsonl", {"order", "pick"}, 0)


def test_a_ranker_that_asks_two_decisions_imitates_traces_of_both(tmp_path):
    query = world.query("passage-5", "train", 0)
    traces = [thoughts.record(Ask(query, query.ids, decision), "") for decision in ("values", "order", "pick")]
    (tmp_path / "traces.jsonl").write_text("\n".join(map(json.dumps, traces)))
    draw = plugins.load("draw", {"name": "recorded", "traces": str(tmp_path / "traces.jsonl")})
    source = draw.source(Source("queries", item=lambda i: query), load_ranker({"name": "valued"}), 0)
    assert {ask.decision for ask, _ in (source[0], source[1])} == {"values", "order"}


def test_traces_about_queries_for_validation_or_test_are_refused(tmp_path):
    """In the built-in world, in a file that all splits are held out from, and in files of their own."""
    found = {split: world.queries("passage-5", split, 40) for split in ("train", "validation", "test")}
    for split, queries in found.items():
        write_queries(tmp_path / split, [replace(q, group=f"{split}::{q.id}") for q in queries])
    whole, alone = tmp_path / "whole", {split: str(tmp_path / split) for split in found}
    whole.write_text("".join((tmp_path / split).read_text() for split in found))
    draw = plugins.load("draw", {"name": "recorded", "traces": str(tmp_path / "traces.jsonl")})
    ranker = load_ranker({"name": "elimination"})
    for data in (settings.Data(tasks=["passage-5"]), settings.Data(train=str(whole)), settings.Data(**alone),
                 settings.Data(train=alone["train"], validation="world", test="world", tasks=["passage-5"])):
        for split, queries in found.items():
            records = [thoughts.record(Ask(q, q.ids, "eliminate"), "") for q in (*found["train"][:2], queries[-1])]
            (tmp_path / "traces.jsonl").write_text("\n".join(map(json.dumps, records)))
            if split == "train":
                assert draw.source(sources.training(data, 0), ranker, 0)[0]
            else:
                with pytest.raises(UserError, match=rf"1 of its 3 traces are about .* '{queries[-1].id}'; make traces"):
                    draw.source(sources.training(data, 0), ranker, 0)


def test_refills_go_on_until_enough_groups_have_unlike_rewards_or_the_draws_are_spent(monkeypatch):
    """Groups are made up here: those of an even position are all alike."""
    rollout, made = settings.Rollout(prompts_per_step=2, completions_per_prompt=2), []

    def query(i):
        return Query(str(i), "rank", "c", tuple(Candidate(f"c{k}", "t") for k in range(3)), (1.0, 0.0, 0.0))

    def sampled(sampler, asks, counts, temperature, seeds):
        made.append([int(ask.query.id) for ask in asks])
        return [Group(ask, [], [Completion([1], [0.0], "", True, Answer("ok")) for _ in range(counts)]) for ask in asks]

    def score(parts, groups, models):
        for group in groups:
            for c, value in zip(group.completions, (0.0, float(int(group.ask.query.id) % alike == 0))):
                c.rewards = {"task": value, "total": value}

    monkeypatch.setattr(asking, "sample_groups", sampled)
    monkeypatch.setattr(train.rewarding, "score", score)
    sample, source = Sample(None, load_ranker({"name": "elimination"}), rollout, 0), Source("queries", item=query)
    draw = plugins.load("draw", {"name": "sampled", "refills": 2})
    stage = Stage(1, settings.Config(), [], plugins.load("objective", {"name": "grpo"}), draw, source)
    for alike, expected in ((1, [[0, 1]]), (2, [[0, 1], [2, 3]]), (10**6, [[0, 1], [2, 3], [4, 5]])):
        made.clear()
        state = {}
        groups = draw.draw(source, sample, partial(train.judge, stage, {}), state)
        assert made == expected and len(groups) == 2 * len(expected)
        assert all(c.rewards for group in groups for c in group.completions)
        cohorts = [{c.cohort for c in group.completions} for group in groups]
        assert all(len(cohort) == 1 for cohort in cohorts) and len(set.union(*cohorts)) == len(groups)
        assert state == {"queries": 2 * len(expected), "draws": len(expected)}


STAGED = ["--objective.beta=0.1", "--train.warmup=0", "--rollout.temperature=1.5"]


def staged_config(tmp_path):
    path = tmp_path / "staged.yaml"
    path.write_text((ROOT / "configs/iranker.yaml").read_text()
                    + "\nstages:\n  - {steps: 2, objective: {name: sft, keep_above: 0.5},"
                    " train: {lr: 1.0e-4, warmup: 0}}\n")
    return path


@pytest.mark.slow
def test_a_staged_run_stopped_in_its_second_stage_ends_as_one_never_stopped(call, tmp_path, monkeypatch):  # noqa: F811
    config = staged_config(tmp_path)
    whole = call(train, config, *SHORT, *STAGED, "--run.dir=whole")
    assert whole[0] == 0, whole[2]
    took = train.take_step

    def cut(stage, step, *rest, **more):
        if step == 4:
            raise KeyboardInterrupt
        return took(stage, step, *rest, **more)

    monkeypatch.setattr(train, "take_step", cut)
    assert call(train, config, *SHORT, *STAGED, "--run.dir=cut")[0] == 130
    monkeypatch.setattr(train, "take_step", took)
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
    options = ["--draw.name=recorded", f"--draw.traces={tmp_path}/traces.jsonl", "--objective.name=sft",
               "--train.warmup=0", f"--data.tasks={query.task}"]
    short = [option for option in SHORT if "tasks" not in option and "steps=" not in option]
    assert call(train, ROOT / "configs/iranker.yaml", *short, *options, "--train.steps=1")[0] == 0
    config = (tmp_path / "runs/iranker/config.yaml")
    config.write_text(config.read_text().replace("  steps: 1\n", "  steps: 2\n"))
    (tmp_path / "traces.jsonl").write_text((tmp_path / "traces.jsonl").read_text().replace("read", "seen"))
    status, _, error = call(train, ROOT / "configs/iranker.yaml", *short, *options, "--train.steps=2")
    assert status == 2 and "traces.jsonl changed since the last checkpoint" in error
