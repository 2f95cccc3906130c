"""Adapters from and for elsewhere: runs that begin with one, evaluations of one, files others can read, longer runs."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import evaluate
import train
from ranker import plugins, templates
from ranker.engine import policy as policies
from ranker.errors import UserError
from test_train import ROOT, SHORT, call, finished_run, train_short  # noqa: F401  fixtures

CONSTANT = ["--train.schedule=constant", "--train.warmup=0"]
FEW = ["--tasks", "passage-5", "--limit", "2"]


def weights(folder):
    return load_file(Path(folder) / "adapter_model.safetensors")


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def test_a_policy_begins_with_an_adapter_made_elsewhere(make_policy, tmp_path):
    policies.save_adapter(make_policy(), tmp_path / "made")
    begun = make_policy(moved=False, lora=plugins.load("lora", {"name": "lora", "start": str(tmp_path / "made")}))
    # its rank, not 16
    assert [p.shape[0] for name, p in begun.adapter_parameters().items() if "lora_A" in name][0] == 4
    policies.save_adapter(begun, tmp_path / "begun")
    assert same(weights(tmp_path / "made"), weights(tmp_path / "begun"))
    assert all(p.requires_grad and p.dtype == torch.float32 for p in begun.adapter_parameters().values())
    with pytest.raises(UserError, match="no adapter_config.json"):
        make_policy(lora=plugins.load("lora", {"name": "lora", "start": str(tmp_path)}))


def test_all_weights_of_a_checkpoint_can_be_read_by_others(finished_run):  # noqa: F811
    files = list(Path("runs/iranker/last/").glob("*.safetensors"))
    assert files and all(path.stat().st_mode & 0o777 == 0o644 for path in files)


def rows(out):
    return json.loads((Path(out) / "results.json").read_text())["rows"]


@pytest.mark.slow
def test_an_adapter_without_a_record_is_ranked_with_as_a_config_says(finished_run, call):  # noqa: F811
    shutil.copytree("runs/iranker/last/", "foreign")
    for name in ("checkpoint.json", "optimizer.pt"):
        Path("foreign", name).unlink()
    status, _, error = call(evaluate, "--ckpt", "foreign", *FEW)
    assert status == 2 and "checkpoint.json" in error
    assert call(evaluate, "--ckpt", "foreign", "--config", ROOT / "configs/iranker.yaml", *FEW, "--out", "a")[0] == 0
    assert call(evaluate, "--ckpt", "runs/iranker/last", *FEW, "--out", "b")[0] == 0
    assert rows("a")["foreign"]["repaired"] == rows("b")["runs/iranker/last"]["repaired"]


@pytest.mark.slow
def test_a_checkpoint_can_be_ranked_with_the_prompts_it_was_trained_with(finished_run, call, tmp_path,  # noqa: F811
                                                                          monkeypatch, caplog):
    shutil.copytree(templates.FOLDER, tmp_path / "changed")
    (tmp_path / "changed/eliminate.txt").write_text("{context}\nDrop one.\n{pool}\n")
    whole = call(evaluate, "--ckpt", "runs/iranker/last", *FEW, "--out", "whole")
    monkeypatch.setattr(templates, "FOLDER", tmp_path / "changed")
    for words, out, warned in (((), "now", True), (("--prompts", "checkpoint"), "own", False)):
        caplog.clear()
        assert call(evaluate, "--ckpt", "runs/iranker/last", *FEW, *words, "--out", out)[0] == whole[0] == 0
        assert ("eliminate.txt changed since" in caplog.text) == warned
    assert without_seconds(rows("own")) == without_seconds(rows("whole"))
    assert rows("now")["runs/iranker/last"]["cost"] != rows("whole")["runs/iranker/last"]["cost"]
    status, _, error = call(evaluate, "--ckpt", "runs/iranker/last", *FEW, "--prompts", "nowhere")
    assert status == 2 and "nowhere is no folder with prompts" in error
    templates.use(None)


def without_seconds(found):
    if isinstance(found, dict):
        return {key: without_seconds(value) for key, value in found.items() if key != "seconds"}
    return found


@pytest.mark.slow
def test_a_finished_run_goes_on_with_more_steps_as_if_it_had_never_ended(call):  # noqa: F811
    assert train_short(call, *CONSTANT, "--run.dir=whole")[0] == 0
    assert train_short(call, *CONSTANT, "--train.steps=2", "--run.dir=parts")[0] == 0
    status, out, _ = train_short(call, *CONSTANT, "--run.dir=parts")
    assert status == 0 and "resuming parts after step 2" in out
    assert same(weights("whole/last"), weights("parts/last"))
    status, _, error = train_short(call, *CONSTANT, "--train.schedule=cosine", "--train.steps=6", "--run.dir=parts")
    assert status == 2 and "train.schedule, train.steps" in error  # a cosine would have run otherwise


def test_a_run_of_an_older_layout_is_refused_with_the_key_that_moved(finished_run, call):  # noqa: F811
    config = Path("runs/iranker/config.yaml")
    config.write_text("train: {objective: grpo, steps: 4}\n")
    status, _, error = train_short(call)
    assert status == 2 and "unknown key 'train.objective'; it is now objective.name; begin anew with --fresh" in error
    record = Path("runs/iranker/last/checkpoint.json")
    found = json.loads(record.read_text())
    record.write_text(json.dumps(found | {"config": found["config"] | {"rollout": {"states": "sampled"}}}))
    status, _, error = call(evaluate, "--ckpt", "runs/iranker/last")
    assert status == 2 and "unknown key 'rollout.states'; it is now draw.name" in error


def test_an_adapter_of_the_last_layers_leaves_the_others_without_gradients(make_policy):
    policy = make_policy(lora=plugins.load("lora", {"name": "lora", "rank": 4, "layers": 1}))
    assert {name.split("layers.")[1][0] for name in policy.adapter_parameters()} == {"1"}
    hidden = policy.trunk(torch.tensor([[1, 2, 3]]), output_hidden_states=True, use_cache=False).hidden_states
    assert [state.requires_grad for state in hidden] == [False, False, True]
    whole = make_policy(lora=plugins.load("lora", {"name": "lora", "rank": 4, "layers": 9}))
    assert len(whole.adapter_parameters()) == 2 * len(policy.adapter_parameters())
