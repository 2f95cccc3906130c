"""The ablation's table: which numbers stand in which row, their mean and deviation over seeds, and what it does with failures."""

import json
import subprocess
from types import SimpleNamespace

import pytest

from ranker import ablation
from ranker.errors import exit_status


def result(base, trained):
    averages = lambda v: {"scenarios": {"routing": {"MRR": v}, "passages": {"MRR": v + 0.1}}, "mean": {"MRR": v + 0.05}}  # noqa: E731
    row = lambda v, strict=True: {"repaired": averages(v), "strict": averages(v) if strict else None}  # noqa: E731
    return {"rows": {"random order": row(0.0, False), "untrained base": row(base), "runs/x/best": row(trained)}}


def test_each_row_is_its_configs_mean_and_deviation_over_the_seeds():
    configs = dict.fromkeys([*ablation.UNTRAINED.values(), *ablation.TRAINED.values()])
    results = {c: [result(0.2 if c == "dranker" else 0.3, 0.5 + 0.1 * seed) for seed in range(3)] for c in configs}
    lines = ablation.ablation_table(results).splitlines()
    assert [c.strip() for c in lines[0].split("|")[1:-1]] == ["MRR", "routing", "passages", "mean"]
    rows = {line.split("|")[1].strip(): [c.strip() for c in line.split("|")[2:-1]] for line in lines[2:]}
    assert list(rows) == [*ablation.UNTRAINED, *ablation.TRAINED]
    assert rows["base, direct"] == ["0.200 ± 0.000", "0.300 ± 0.000", "0.250 ± 0.000"] and rows["base, iterative"][0] == "0.300 ± 0.000"
    assert rows["IRanker (PPO)"] == ["0.600 ± 0.100", "0.700 ± 0.100", "0.650 ± 0.100"]


def test_every_config_is_trained_and_evaluated_once_per_seed_and_not_again(tmp_path, monkeypatch):
    calls = []

    def pretend(command, **options):
        script, arguments = command[1].name, command[2:]
        calls.append(script)
        if script == "evaluate.py":
            out = tmp_path / arguments[arguments.index("--out") + 1]
            out.mkdir(parents=True)
            (out / "results.json").write_text(json.dumps(result(0.1, 0.2)))
        return SimpleNamespace(returncode=0)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "run", pretend)
    monkeypatch.setattr("sys.argv", ["ablation", "--seeds", "2"])
    assert exit_status(ablation.main) == 0 and calls.count("train.py") == calls.count("evaluate.py") == 2 * 4
    assert "IRanker on-policy" in (tmp_path / "runs/ablation/table.md").read_text()
    assert exit_status(ablation.main) == 0 and calls.count("evaluate.py") == 2 * 4  # train.py knows a finished run itself


@pytest.mark.parametrize("arguments, named", [(["--seeds", "0"], "at least 1"), ([], "ended with status 2")])
def test_a_mistake_ends_with_status_two(tmp_path, monkeypatch, capsys, arguments, named):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "run", lambda command, **options: SimpleNamespace(returncode=2))
    monkeypatch.setattr("sys.argv", ["ablation", *arguments])
    assert exit_status(ablation.main) == 2 and named in capsys.readouterr().err
