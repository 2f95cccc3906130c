"""The ablation's table: which numbers stand in which row, their mean and deviation over seeds, and what it does with
failures."""

import json
import subprocess
from types import SimpleNamespace

import pytest

from ranker import ablation
from ranker.errors import exit_status


def result(base, *trained):
    averages = lambda v: {"scenarios": {"routing": {"MRR": v}, "passages": {"MRR": v + 0.1}},  # noqa: E731
                          "mean": {"MRR": v + 0.05}}
    row = lambda v, strict=True: {"repaired": averages(v), "strict": averages(v) if strict else None}  # noqa: E731
    return {"rows": {"random order": row(0.0, False), "untrained base": row(base)}
            | {f"runs/{i}/best": row(v) for i, v in enumerate(trained)}}


def test_each_row_is_its_configs_mean_and_deviation_over_the_seeds():
    configs = dict.fromkeys([*ablation.UNTRAINED.values(), *ablation.TRAINED.values()])
    results = {c: result(0.2 if c == "dranker" else 0.3, 0.5, 0.6, 0.7) for c in configs}
    lines = ablation.ablation_table(results).splitlines()
    assert [c.strip() for c in lines[0].split("|")[1:-1]] == ["MRR", "routing", "passages", "mean"]
    rows = {line.split("|")[1].strip(): [c.strip() for c in line.split("|")[2:-1]] for line in lines[2:]}
    assert list(rows) == [*ablation.UNTRAINED, *ablation.TRAINED]
    assert rows["base, direct"] == ["0.200", "0.300", "0.250"] and rows["base, iterative"][0] == "0.300"
    assert rows["IRanker (PPO)"] == ["0.600 ± 0.100", "0.700 ± 0.100", "0.650 ± 0.100"]


def test_the_table_of_methods_has_cost_and_gain_of_each_config(tmp_path, monkeypatch):
    def outcome(base, *trained):
        row = lambda v, strict=True: {  # noqa: E731
            "repaired": {"mean": {"MRR": v, "nDCG@10": v + 0.1}},
            "strict": {"mean": {"MRR": v - 0.1}} if strict else None,
            "cost": {"recommendation": {"calls": 10 * v, "prompt_tokens": 1000 * v, "completion_tokens": 100 * v},
                     "routing": {}}}
        return {"rows": {"random order": row(0.0, False), "untrained base": row(base)}
                | {f"runs/{i}/best": row(v) for i, v in enumerate(trained)}}

    lines = ablation.methods_table({"first": outcome(0.2, 0.4, 0.6)}).splitlines()
    assert [c.strip() for c in lines[2].split("|")[1:-1]] == [
        "first", "5.0", "500", "50", "0.200", "0.500 ± 0.141", "0.300", "0.600 ± 0.141", "0.400 ± 0.141"]


def test_an_unknown_config_is_named_with_the_nearest(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["ablation", "--configs", "iranker,fisrt"])
    assert exit_status(ablation.main) == 2 and "configs/fisrt.yaml (did you mean 'first'?)" in capsys.readouterr().err


@pytest.mark.parametrize("jobs", ["1", "3"])
def test_every_seed_is_trained_and_every_config_evaluated_once(tmp_path, monkeypatch, jobs):
    calls = []

    def pretend(command, **options):
        script, arguments = command[1].name, command[2:]
        calls.append((script, options["env"]["OMP_NUM_THREADS"]))
        if script == "evaluate.py":
            out = tmp_path / arguments[arguments.index("--out") + 1]
            out.mkdir(parents=True)
            (out / "results.json").write_text(json.dumps(result(0.1, *[0.2] * arguments.count("--ckpt"))))
        return SimpleNamespace(returncode=0)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "run", pretend)
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    monkeypatch.setattr("sys.argv", ["ablation", "--seeds", "2", "--jobs", jobs])
    assert exit_status(ablation.main) == 0
    threads = str(6 // int(jobs))
    assert sorted(calls) == [("evaluate.py", threads)] * 4 + [("train.py", threads)] * 8
    assert "IRanker on-policy" in (tmp_path / "runs/ablation/table.md").read_text()
    # it knows a finished run itself
    assert exit_status(ablation.main) == 0 and calls[12:] == [("train.py", threads)] * 8


@pytest.mark.parametrize("arguments, named", [(["--seeds", "0"], "at least 1"), (["--jobs", "0"], "at least 1"),
                                              ([], "train.py ended with status 2"), (["--jobs", "2"], "unknown key")])
def test_a_mistake_ends_with_status_two(tmp_path, monkeypatch, capsys, arguments, named):
    def fail(command, stdout, **options):
        stdout.write("loading\nerror: unknown key\n")
        return SimpleNamespace(returncode=2)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "run", fail)
    monkeypatch.setattr("sys.argv", ["ablation", *arguments])
    assert exit_status(ablation.main) == 2 and named in capsys.readouterr().err


def test_what_a_config_is_stands_in_the_comment_that_begins_it():
    text = ablation.ideas(["iranker", "erank", "rankgpt"])
    assert all(len(line) <= 120 for line in text.splitlines())
    first, erank, rankgpt = " ".join(text.split()).removeprefix("- ").split(" - `")
    assert first.startswith("`iranker`: IRanker (arXiv 2506.21638, section 3): drop the least likely candidate")
    assert "Of `elimination`, `top1_hit`, `format`, `grpo`. Ours: GRPO on groups of 8" in first
    assert "`sft`" in erank and "`grpo`" in erank and "Of `sliding`. Ours" in rankgpt
    assert all((ablation.ROOT / "configs" / f"{name}.yaml").is_file() for name in ablation.PAPERS)


def test_what_is_only_prompted_is_evaluated_once_and_never_trained(tmp_path, monkeypatch):
    calls = []

    def pretend(name, found, jobs):
        calls.append((name, [list(map(str, call)) for call in found]))
        for log, *_, out in calls[-1][1] if name == "evaluate" else ():
            row = {"repaired": {"mean": {"MRR": 0.4, "nDCG@10": 0.5}}, "strict": {"mean": {"MRR": 0.3}},
                   "cost": {"rec": {"calls": 1, "prompt_tokens": 2, "completion_tokens": 3}}}
            (tmp_path / out).mkdir(parents=True)
            (tmp_path / out / "results.json").write_text(json.dumps({"rows": {"untrained base": row}}))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ablation, "run_scripts", pretend)
    monkeypatch.setattr("sys.argv", ["ablation", "--configs", "rankgpt"])
    assert exit_status(ablation.main) == 0
    assert calls[0] == ("train", []) and "--ckpt" not in calls[1][1][0]
    assert calls[1][1][0][2:4] == ["--config", str(ablation.ROOT / "configs/rankgpt.yaml")]
    assert "0.400" in (tmp_path / "runs/ablation/table.md").read_text()
