"""Where else the numbers of a run go: the same names, a run that goes on goes on there, mistakes in one line."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from ranker import config as settings, tracker
from ranker.errors import UserError
from test_train import call, train_short  # noqa: F401  a fixture


@pytest.fixture
def wandb(monkeypatch):
    """A stand-in of the package that keeps what it is given."""
    module = ModuleType("wandb")
    module.begun, module.logged = [], []

    def init(**options):
        module.begun.append(options)
        return SimpleNamespace(log=lambda record, step: module.logged.append((step, record)))

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_numbers_have_the_names_of_metrics_jsonl():
    assert tracker.flat({"step": 3, "reward": 0.5, "validation": {"mean": 0.2}, "notes": "x", "kl": None}) == {
        "reward": 0.5, "validation/mean": 0.2}


@pytest.mark.slow
def test_a_run_is_tracked_from_its_first_validation_on(call, wandb):  # noqa: F811
    assert train_short(call, "--run.log=wandb")[0] == 0
    assert [step for step, _ in wandb.logged] == [0, 1, 2, 3, 4]
    assert "baselines/BM25" in wandb.logged[0][1] and "reward/top1_hit" in wandb.logged[4][1]
    assert wandb.begun[0]["config"]["run"]["log"] == "wandb"


def test_a_run_that_goes_on_goes_on_there_and_a_fresh_one_does_not(wandb, tmp_path):
    config = settings.Config(run=settings.Run(log="wandb"))
    for done in (0, 5, 0):
        tracker.tracker(config, tmp_path, done)
    first, again, fresh = (options["id"] for options in wandb.begun)
    assert first == again != fresh

    def refuse(**options):
        raise RuntimeError("api_key not configured")
    wandb.init = refuse
    with pytest.raises(UserError, match="run.log=wandb cannot begin: api_key not configured; WANDB_MODE=offline"):
        tracker.tracker(config, tmp_path, 0)


@pytest.mark.parametrize("name, said", [("wandb", "needs a package: .venv/bin/pip install wandb"),
                                        ("tensorbord", "did you mean 'tensorboard'?")])
def test_a_missing_package_and_a_wrong_name_are_told_at_once(call, monkeypatch, name, said):  # noqa: F811
    monkeypatch.setitem(sys.modules, "wandb", None)
    status, _, err = train_short(call, f"--run.log={name}")
    assert status == 2 and said in err
