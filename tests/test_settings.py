"""Every setting is printed with its meaning, range and default, from where it is defined."""

import dataclasses
import sys

import pytest

import train
from ranker import config, plugins, settings
from test_train import call  # noqa: F401  a fixture


def test_all_settings_of_all_sections_and_plug_ins_are_there(call):  # noqa: F811
    status, out, _ = call(settings)
    assert status == 0
    for name in ("run.dir", "train.lr", "rollout.temperature", "eval.every", "llm.api"):
        assert f"  {name} = " in out
    for kind in ("ranker", "draw", "objective", "lora", "reward"):
        for name in plugins.names(kind):
            assert f"\n{kind}={name}\n" in out
            for field in dataclasses.fields(plugins.module(kind, name).Options):
                assert f".{field.name} = " in out
    assert max(map(len, out.splitlines())) < 130


def test_a_section_alone_and_a_mistake(call):  # noqa: F811
    status, out, _ = call(settings, "rollout", "objective=grpo")
    assert status == 0
    assert "rollout.temperature = 1.0\n      of sampling and scoring alike (at least 0.01; at most 10)" in out
    assert "objective.advantage = mean" in out and "train.lr" not in out
    status, _, err = call(settings, "rolout")
    assert status == 2 and "did you mean 'rollout'" in err


def test_the_help_of_training_holds_all_settings(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--help"])
    with pytest.raises(SystemExit):
        train.main()
    out = capsys.readouterr().out
    assert "--dry_run" in out and "rollout.temperature = 1.0" in out and "objective.beta" in out


def test_most_settings_say_what_they_mean():
    silent = [name for found in settings.sections().values() for name, _, meaning in found if meaning.startswith("(")]
    every = sum(map(len, settings.sections().values()))
    assert len(silent) < 0.25 * every, silent
    assert settings.comments(config.Rollout)["weights"].startswith("dense: a dequantised copy")
