"""Two processes that share a step's queries end where one process with all of them ends."""

import json
import os
import pickle
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import train
from ranker import config as settings, credit
from ranker.data import Answer, Ask, Completion, Group
from ranker.engine import distributed
from ranker.errors import exit_status
from ranker.plugins import load
from ranker.stages import Stage

ROOT = Path(__file__).resolve().parents[1]
SHORT = ["--train.steps=2", "--train.warmup=0", "--rollout.prompts_per_step=2", "--rollout.completions_per_prompt=4",
         "--eval.every=2", "--eval.queries=1", "--data.tasks=passage-5,passage-7", "--model.device=cpu",
         "--rollout.max_new_tokens=64"]


def trained(folder, processes, *arguments):
    script = [str(ROOT / "train.py")] if processes == 1 else [
        "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), str(ROOT / "train.py")]
    return subprocess.run([sys.executable, *script, *SHORT, *map(str, arguments), f"--run.dir={folder}"],
                          capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=240)


@pytest.mark.slow
@pytest.mark.parametrize("config, options", [
    ("iranker", []),
    # In the first of three steps the adapter has no gradient.
    ("iranker_ppo", ["--train.minibatches=1", "--objective.value_warmup=1", "--train.steps=3"])])
def test_two_processes_take_the_steps_of_one(tmp_path, config, options):
    runs = {}
    for processes in (1, 2):
        done = trained(tmp_path / str(processes), processes, ROOT / f"configs/{config}.yaml", *options)
        assert done.returncode == 0, done.stderr[-2000:]
        runs[processes] = tmp_path / str(processes)
        assert done.stdout.count("MRR on the validation queries") == 1  # one of them speaks
    one, two = (load_file(runs[n] / "last/adapter_model.safetensors") for n in (1, 2))
    assert sum((one[k] - two[k]).norm() ** 2 for k in one) ** 0.5 <= 1e-4 * sum(one[k].norm() ** 2 for k in one) ** 0.5
    records = [[json.loads(line) for line in (runs[n] / "metrics.jsonl").open()] for n in (1, 2)]
    steps = 3 if "--train.steps=3" in options else 2
    assert [r["step"] for r in records[1]] == list(range(steps + 1))
    for a, b in zip(*records):
        for name in a.keys() - {"seconds", "tokens_per_second", "peak_gb", "validation", "sampler_gap",
                                "sampler_gap_max", "step"}:
            assert a[name] == pytest.approx(b[name], rel=1e-3, abs=1e-4), name
        assert a.get("validation") == pytest.approx(b.get("validation")) if "validation" in a else "validation" not in b
    texts = [[json.loads(line)["text"] for line in (runs[n] / "completions.jsonl").open()] for n in (1, 2)]
    assert texts[0][:8] == texts[1][:8] and len(texts[1]) == 8 * steps


def test_a_step_that_can_not_be_shared_out_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(distributed, "size", lambda: 2)
    monkeypatch.setattr(sys, "argv", ["train.py", str(ROOT / "configs/iranker.yaml"), "--rollout.prompts_per_step=3",
                                      f"--run.dir={tmp_path / 'run'}"])
    assert exit_status(train.main) == 2
    assert "must be a multiple of the 2 processes" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_what_has_no_gradient_in_any_process_keeps_none(monkeypatch):
    """Adam counts zeros as a step, which one process does not take. The other process is made up: (none, 3 4, none)."""
    parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in range(3)]
    parameters[0].grad = torch.tensor([1.0, 2.0])
    monkeypatch.setattr(distributed, "size", lambda: 2)
    monkeypatch.setattr(distributed, "gather", lambda held: [held, [False, True, False]])
    monkeypatch.setattr(distributed.processes, "all_reduce", lambda flat: flat.add_(torch.tensor([0.0, 0.0, 3.0, 4.0])))
    distributed.sum_gradients(parameters)
    assert [None if p.grad is None else p.grad.tolist() for p in parameters] == [[1, 2], [3, 4], None]
    monkeypatch.setattr(distributed, "gather", lambda held: [held, [False]])
    distributed.sum_gradients(parameters[2:])  # nothing to sum: no message is sent that has no tensor
    assert parameters[2].grad is None


def made(cohorts, following) -> list[Group]:
    """A group of two for each pair of completions, with their cohorts and what follows them (-1: nothing)."""
    found = [Completion([k], [0.0], str(k), True, Answer("ok"), cohort=cohort) for k, cohort in enumerate(cohorts)]
    for c, after in zip(found, following):
        c.next = found[after] if after >= 0 else None
    return [Group(Ask(None, ("a",), "order"), [], found[i:i + 2]) for i in range(0, len(found), 2)]


def test_completions_of_several_processes_keep_their_cohorts_and_episodes_apart(monkeypatch):
    def reward(parts, groups, models):
        for k, c in enumerate(credit.completions(groups)):
            c.rewards = {"task": float(k), "total": float(k)}

    monkeypatch.setattr(train.rewarding, "score", reward)
    stage, sent = Stage(1, settings.Config(), [], load("objective", {"name": "grpo"}), None, None), []
    for process, groups in ((1, made([0, 0], [1, -1])), (0, made([0, 0, 1, 1], [2, 3, -1, -1]))):
        monkeypatch.setattr(train, "_judged", count())  # each process counts for itself
        monkeypatch.setattr(distributed, "rank", lambda process=process: process)
        monkeypatch.setattr(distributed, "gather", lambda item: [item, *sent])
        whole = train.judge(stage, {}, groups)
        sent.append(pickle.loads(pickle.dumps(groups)))  # as it travels
    found = credit.completions(whole)
    assert credit.cohorts(found).tolist() == [0, 0, 1, 1, 2, 2] and [c.text for c in found] == list("012301")
    assert [next((i for i, c in enumerate(found) if c is before.next), -1) for before in found] == [2, 3, -1, -1, 5, -1]
    assert credit.returns(found).tolist() == [2, 4, 2, 3, 9, 5] and all(c.alive for c in found)
    monkeypatch.setattr(distributed, "gather", lambda item: [item])
    again = credit.completions(train.judge(stage, {}, made([0, 0, 1, 1], [-1] * 4)))  # such as a refill
    assert not {c.cohort for c in again} & {c.cohort for c in found[:4]}


def test_an_episode_of_two_hundred_asks_travels():
    episode = made([0] * 200, [*range(1, 200), -1])
    found = credit.completions(pickle.loads(pickle.dumps(episode)))
    assert all(c.next is after for c, after in zip(found, found[1:])) and found[-1].next is None


def test_a_single_process_is_alone():
    assert (distributed.first() and distributed.gather(3) == [3] and distributed.share(5) == range(5)
            and distributed.summed({"a": 1.0}) == {"a": 1.0})


@pytest.mark.parametrize("device, cuda, backend", [
    ("auto", False, "gloo"), ("cpu", True, "gloo"), ("auto", True, "nccl"), ("cuda", True, "nccl")])
def test_processes_talk_by_what_their_tensors_are_on(monkeypatch, device, cuda, backend):
    started, placed = [], []
    monkeypatch.setenv("WORLD_SIZE", "2"), monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(distributed.torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(distributed.torch.cuda, "set_device", placed.append)
    monkeypatch.setattr(distributed.processes, "init_process_group", started.append)
    distributed.start(device)
    assert started == [backend] and placed == ([1] if backend == "nccl" else [])
