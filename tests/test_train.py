"""train.py and evaluate.py from the outside: what they leave behind, resume, refuse and print. On the built-in
policy."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

import evaluate
import train
from ranker import checkpoint, log, passes, world
from ranker.data import write_queries
from ranker.errors import exit_status
from ranker.evaluation import report
from ranker.run import Run
from rewards import top1_hit

ROOT = Path(__file__).resolve().parents[1]
SHORT = ["--train.steps=4", "--rollout.prompts_per_step=4", "--rollout.completions_per_prompt=4", "--eval.every=2",
         "--eval.queries=2", "--data.tasks=passage-5,passage-7", "--run.save_every=1", "--model.device=cpu"]
TIMES = {"seconds", "tokens_per_second", "peak_gb"}


@pytest.fixture
def call(monkeypatch, tmp_path, capsys):
    """Run a script's main in `tmp_path` as from the shell: (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(module, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *map(str, arguments)])
        handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
        try:
            status = exit_status(module.main)
        finally:
            signal.signal(signal.SIGINT, handlers[0]), signal.signal(signal.SIGTERM, handlers[1])
        captured = capsys.readouterr()
        return status, captured.out, captured.err
    return run


def train_short(call, *arguments, config="iranker"):
    return call(train, ROOT / f"configs/{config}.yaml", *SHORT, *arguments)


@pytest.fixture
def finished_run(call, tmp_path_factory):
    """A finished short run in runs/iranker: trained for the first test that wants one, copied for the others."""
    kept = tmp_path_factory.getbasetemp() / "finished_run"
    if kept.exists():
        shutil.copytree(kept, "runs/iranker", symlinks=True)
    else:
        assert train_short(call)[0] == 0
        shutil.copytree("runs/iranker", kept, symlinks=True)


def written(out):
    """Return the folder that an evaluation says it wrote."""
    return Path(out.rpartition("written to ")[2].partition(":")[0])


def records(path):
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in Path(path).read_text().split("\n")
            if line]


def test_a_run_leaves_config_metrics_completions_checkpoints_and_curves(call):
    status, out, _ = train_short(call)
    assert status == 0 and "before training" in out and "python evaluate.py --ckpt runs/iranker/best" in out
    run = Path("runs/iranker")
    steps = records(run / "metrics.jsonl")
    assert ([r["step"] for r in steps] == [0, 1, 2, 3, 4]
            and [("validation" in r) for r in steps] == [True, False, True, False, True])
    completions = records(run / "completions.jsonl")
    assert (len(completions) == 4 * 4 * 4
            and {"query", "text", "status", "reward", "advantage", "pool"} <= completions[0].keys())
    assert (run / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert (run / "last").resolve().name == "step_4" and (run / "best" / "adapter_model.safetensors").is_file()
    checkpoint = json.loads((run / "last" / "checkpoint.json").read_text())
    assert checkpoint["base_model"] == "tiny" and checkpoint["prompts"] and checkpoint["config"]["train"]["steps"] == 4
    assert all(r["sampler_gap_max"] < 1e-3 for r in steps if "sampler_gap_max" in r)
    adapter = load_file(run / "last" / "adapter_model.safetensors")
    assert any(tensor.abs().max() > 0 for name, tensor in adapter.items() if "lora_B" in name)


@pytest.mark.parametrize("config, options", [
    ("iranker", []),
    pytest.param("prilora", ["--lora.interval=2", "--lora.start=1"], marks=pytest.mark.slow),
    pytest.param("iranker_ppo", ["--objective.value_warmup=1", "--train.warmup=1"], marks=pytest.mark.slow)])
def test_a_stopped_run_goes_on_to_exactly_where_it_would_have_ended(call, monkeypatch, config, options):
    assert train_short(call, "--run.dir=whole", *options, config=config)[0] == 0
    show = Run.show

    def stop_in_step_two(run, record, rewards):
        if record["step"] == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        show(run, record, rewards)

    monkeypatch.setattr(Run, "show", stop_in_step_two)
    status, out, _ = train_short(call, "--run.dir=stopped", *options, config=config)
    assert status == 128 + signal.SIGTERM and "stopped after step 2" in out
    monkeypatch.setattr(Run, "show", show)
    with open("stopped/metrics.jsonl", "a") as file:  # what a crash after the last checkpoint may leave
        file.write('{"step": 3, "reward": 9}\n{"step": 4, "rew')
    status, out, _ = train_short(call, "--run.dir=stopped", *options, config=config)
    assert status == 0 and "resuming stopped after step 2" in out
    assert records("stopped/metrics.jsonl") == records("whole/metrics.jsonl")
    assert records("stopped/completions.jsonl") == records("whole/completions.jsonl")
    assert records("stopped/thoughts.jsonl") == records("whole/thoughts.jsonl") != []
    ours, theirs = (load_file(f"{run}/last/adapter_model.safetensors") for run in ("stopped", "whole"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_folder_of_another_run_is_refused_and_fresh_moves_it_aside(call, finished_run):
    status, out, _ = train_short(call)
    assert status == 0 and "is finished" in out
    status, _, err = train_short(call, "--train.lr=3e-3")
    assert status == 2 and "train.lr" in err and len(err.splitlines()) == 1
    status, _, _ = train_short(call, "--train.lr=3e-3", "--train.steps=1", "--train.warmup=0", "--fresh")
    assert (status == 0 and Path("runs/iranker.1/metrics.jsonl").is_file()
            and len(records("runs/iranker/metrics.jsonl")) == 2)


def test_gradients_that_are_not_finite_change_nothing_and_end_a_run_that_is_saved(call, monkeypatch):
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda parameters, limit: torch.tensor(float("nan")))
    # in which some groups teach something
    status, _, err = train_short(call, "--train.max_bad_steps=2", "--eval.every=4", "--rollout.prompts_per_step=12")
    assert status == 2 and "not finite in 2 steps in a row" in err
    steps = records("runs/iranker/metrics.jsonl")[1:]
    assert [r["bad"] for r in steps if r["dead"] < 1] == [1, 1] and steps[-1]["grad_norm"] is None
    weights = load_file("runs/iranker/last/adapter_model.safetensors")
    assert (all(not value.any() for name, value in weights.items() if "lora_B" in name)
            and Path("runs/iranker/last").resolve().name == f"step_{len(steps)}")


def test_two_processes_do_not_write_to_one_run(call, finished_run, monkeypatch):
    Path("runs/iranker/lock").write_text("99999999")  # left by a process that was killed: no lock
    assert train_short(call)[0] == 0
    owner = subprocess.Popen([sys.executable, "-c", "import sys; from pathlib import Path; from ranker import files\n"
                              "held = files.lock(Path('runs/iranker')); print('held', flush=True); sys.stdin.read()"],
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert owner.stdout.readline() == b"held\n"
    try:
        for arguments in ([], ["--fresh"]):
            status, _, err = train_short(call, *arguments)
            assert status == 2 and f"in use by process {owner.pid}" in err and not Path("runs/iranker.1").exists()
    finally:
        owner.communicate(b"")
    assert train_short(call)[0] == 0


def test_a_dry_run_shows_a_prompt_both_rewards_and_estimates_and_leaves_nothing(call, tmp_path):
    status, out, _ = train_short(call, "--dry_run")
    assert status == 0 and list(tmp_path.iterdir()) == []
    for text in ("Which passage below is the least likely", "a right completion", "top1_hit 1", "a wrong completion",
                 "top1_hit 0", "steps      4", "time ", "planned peak", "measured peak"):
        assert text in out


def test_each_decision_of_a_ranker_is_shown_and_must_fit_the_rewards(call):
    config = yaml.safe_load((ROOT / "configs/rarl.yaml").read_text())
    del config["stages"]
    short = [option for option in SHORT if "tasks" not in option]
    Path("valued.yaml").write_text(yaml.safe_dump(config))
    status, out, err = call(train, "valued.yaml", *short, "--dry_run")
    assert status == 0 and out.count("a right completion") == 2 and out.count("another decision") == 1, err
    Path("valued.yaml").write_text(yaml.safe_dump(config | {"reward": {"ndcg": {"weight": 1.0}}}))
    status, _, err = call(train, "valued.yaml", *short)
    assert status == 2 and "reward 'ndcg' judges asks to order two candidates or more" in err


@pytest.mark.slow
def test_out_of_memory_says_what_to_lower_and_the_run_goes_on_with_it(call, monkeypatch):
    update = train.update

    def fails_in_step_two(*arguments):
        if arguments[-1] == 2 and arguments[0].config.train.tokens_per_batch == 4096:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return update(*arguments)

    monkeypatch.setattr(train, "update", fails_in_step_two)
    status, out, err = train_short(call)
    [line] = [line for line in err.splitlines() if line.startswith("error:")]
    lower = re.search(r"--train.tokens_per_batch=\d+", line)[0]
    assert status == 2 and line.startswith("error: out of memory in learning:") and line.count("--") == 3
    status, out, err = train_short(call, lower)
    assert status == 0 and "resuming runs/iranker after step 1" in out and "measured / planned" in out, err
    assert [r["step"] for r in records("runs/iranker/metrics.jsonl")] == [0, 1, 2, 3, 4]


@pytest.mark.slow
def test_several_updates_per_rollout_clip_and_still_end_well(call):
    status, _, _ = train_short(call, "--train.updates_per_rollout=3", "--train.lr=3e-2", "--train.steps=2",
                               "--objective.kl=k3", "--train.warmup=0")
    assert status == 0
    steps = records("runs/iranker/metrics.jsonl")[1:]
    assert sum(r["clip_low"] + r["clip_high"] for r in steps if "clip_low" in r) > 0
    assert all(r["sampler_gap_max"] < 1e-3 for r in steps if "sampler_gap_max" in r)  # of the first update alone


def test_no_reference_pass_at_beta_zero(call, monkeypatch):
    def refuse(*arguments):
        raise AssertionError("a pass without gradients")

    monkeypatch.setattr(passes, "PASSES", dict.fromkeys(passes.PASSES, refuse))
    assert train_short(call, "--objective.beta=0", "--train.steps=1", "--eval.every=1", "--train.warmup=0")[0] == 0


@pytest.mark.slow
def test_ppo_logs_what_it_is_judged_by_and_moves_no_adapter_in_the_warm_up(call):
    status, _, err = train_short(call, "--objective.value_warmup=2", "--train.warmup=0", config="iranker_ppo")
    assert status == 0, err
    steps = records("runs/iranker_ppo/metrics.jsonl")[1:]
    assert steps[0]["adapter_norm"] == steps[1]["adapter_norm"] != steps[3]["adapter_norm"]
    assert all({"explained_variance", "value_loss", "clip_value"} <= r.keys() for r in steps)
    assert "drift" not in steps[1] and {"drift", "clip_low", "kl"} <= steps[3].keys() and steps[0]["dead"] == 0
    critic = load_file("runs/iranker_ppo/last/critic.safetensors")
    assert critic["weight"].abs().max() > 0


@pytest.mark.slow
def test_a_drift_beyond_target_kl_ends_the_passes(call):
    options = ["--data.tasks=router-cost", "--train.updates_per_rollout=4", "--train.steps=1", "--train.warmup=0",
               "--eval.every=1", "--train.lr=3e-2"]
    for name, target in (("free", "0"), ("held", "1e-9")):
        assert train_short(call, *options, f"--train.target_kl={target}", f"--run.dir={name}")[0] == 0
    free, held = (records(f"{name}/metrics.jsonl")[-1] for name in ("free", "held"))
    assert held["adapter_norm"] < free["adapter_norm"]  # it stopped at the first look after the first optimizer step


def test_the_list_ranker_trains_and_ranks_in_one_ask(call):
    status, _, err = train_short(call, "--train.steps=1", "--train.warmup=0", "--eval.every=1", config="dranker")
    assert status == 0, err
    assert {r["decision"] for r in records("runs/dranker/completions.jsonl")} == {"order"}
    status, out, _ = call(evaluate, "--ckpt", "runs/dranker/last", "--tasks", "passage-5", "--limit", 2)
    assert status == 0 and len(records(written(out) / "traces.jsonl")) == 2 * 2


@pytest.mark.slow
def test_on_policy_runs_learn_from_whole_episodes(call):
    status, _, err = train_short(call, "--rollout.prompts_per_step=2", "--train.steps=1", "--train.warmup=0",
                                 "--eval.every=1", config="iranker_on_policy")
    assert status == 0, err
    rows = records("runs/iranker_on_policy/completions.jsonl")
    assert len(rows) == 4 * 4 + 4 * 6 and {len(r["pool"]) for r in rows} == {2, 3, 4, 5, 6, 7}


def test_thoughts_of_a_run_are_shown_to_the_base_in_an_evaluation(call, finished_run):
    thoughts = "runs/iranker/thoughts.jsonl"
    status, out, err = call(evaluate, "--ckpt", "runs/iranker", "--thoughts", thoughts, "--tasks", "passage-5",
                            "--limit", 1)
    assert status == 0 and "untrained base + thoughts: passages" in out, err
    status, _, err = call(evaluate, "--ckpt", "runs/iranker", "--thoughts", thoughts, "--tasks", "rec-movie",
                          "--limit", 1)
    assert status == 2 and "none about rec-movie" in err
    test = {q.id for task in world.TASKS for q in world.queries(task, "test", 50)}
    assert not test & {r["query"] for r in records(thoughts)}


def test_a_scenario_that_a_checkpoint_was_not_trained_on_is_called_zero_shot(call, finished_run):
    status, out, _ = call(evaluate, "--ckpt", "runs/iranker/last", "--tasks", "passage-5,router-cost", "--limit", 1)
    assert status == 0 and "runs/iranker/last: routing (zero-shot)" in out and "passages (zero-shot)" not in out


def test_evaluation_prints_what_training_saw_and_writes_every_file(call, finished_run):
    validation = [q for task in ("passage-5", "passage-7") for q in world.queries(task, "validation", 2)]
    write_queries("validation.jsonl", validation)
    status, out, _ = call(evaluate, "--ckpt", "runs/iranker/last", "--data", "validation.jsonl")
    assert status == 0
    folder = written(out)
    assert folder.match("runs/iranker/eval/validation-step_4-*")
    results = json.loads((folder / "results.json").read_text())
    seen = records("runs/iranker/metrics.jsonl")[-1]["validation"]["mean"]
    assert results["rows"]["runs/iranker/last"]["repaired"]["mean"]["MRR"] == pytest.approx(seen, abs=1e-9)
    assert {"random order", "input order", "BM25", "untrained base"} <= results["rows"].keys()
    assert {"command", "packages", "prompts", "data", "config", "device"} <= results.keys()
    traces = records(folder / "traces.jsonl")
    assert len(traces) == 2 * 2 * (4 + 6) and {t["row"] for t in traces} == {"untrained base", "runs/iranker/last"}
    with open(folder / "per_query.csv") as file:
        rows = list(csv.DictReader(file))
    assert {r["measure"] for r in rows} >= {"MRR", "nDCG@10", "MRR strict"} and len({r["qid"] for r in rows}) == 4
    assert (folder / "table.md").read_text().count("untrained base") >= 4 and "95% interval" in out
    for path in folder.glob("run.*.txt"):
        by_query = {}
        for line in path.read_text().splitlines():
            query, _, _, _, score, _ = line.split()
            by_query.setdefault(query, []).append(float(score))
        assert len(by_query) == 4 and all(s == sorted(set(s), reverse=True) for s in by_query.values())


def test_evaluation_of_a_config_of_two_checkpoints_and_of_shuffled_orders(call, finished_run):
    status, out, _ = call(evaluate, "--config", ROOT / "configs/iranker.yaml", "--tasks", "passage-5", "--limit", 2,
                          "--orders", 2)
    assert status == 0 and "untrained base" in out and written(out).parent == Path("runs/eval-iranker")
    rows = json.loads((written(out) / "results.json").read_text())["rows"]
    assert rows["untrained base"]["spread_over_orders"] >= 0
    status, out, _ = call(evaluate, "--ckpt", "runs/iranker/best", "--ckpt", "runs/iranker/last", "--tasks",
                          "passage-5", "--limit", 1)
    assert status == 0 and "runs/iranker/best: passages" in out and "runs/iranker/last: passages" in out


def test_the_papers_scale_runs_on_a_local_qwen2_folder(call, base_folder):
    status, out, err = call(train, ROOT / "configs/iranker-3b.yaml", f"--model.name={base_folder}",
                            "--model.device=cpu", "--train.steps=1", "--train.warmup=0", "--rollout.prompts_per_step=2",
                            "--rollout.max_new_tokens=8", "--eval.queries=1", "--data.tasks=passage-5")
    assert status == 0, err
    status, _, err = call(train, ROOT / "configs/iranker-3b.yaml", "--run.dir=other")
    assert status == 2 and "--model.name=/path/to/Qwen2.5-3B-Instruct" in err


def mistakes(base_folder):
    config = ROOT / "configs/iranker.yaml"
    return [
        (train, [], "config"),
        (train, ["configs/nothing.yaml"], "nothing.yaml"),
        (train, [config, "--train.lrr=1"], "lr"),
        (train, [config, "--train.lr=fast"], "train.lr"),
        (train, [config, "--trian.lr=1"], "train"),
        (train, [config, "--dry-run"], "--dry-run"),
        (train, [config, "--objective.name=ppo"], "'value_lr'"),
        (train, [config, "--ranker.name=listwise"], "'top1_hit' judges asks that name one candidate"),
        (train, [config.with_name("dranker.yaml"), "--reward.ndcg.k=0"], "reward.ndcg.k"),
        (train, [config.with_name("iranker_ppo.yaml"), "--train.steps=4"], "steps in which the adapter waits"),
        (train, [config, "--objective.name=pop"], "did you mean 'ppo'"),
        (train, [config, "--train.kl_in=reward"], "objective.kl_in, an option of ppo"),
        (train, [config, "--objective.kl_in=reward"], "objective 'grpo' has no option 'kl_in'"),
        (train, [config, "--rollout.completions_per_prompt=1"], "at least 2"),
        (train, [config, "--draw.name=onpolicy"], "on_policy"),
        (evaluate, ["--config", config, "--thoughts", "nothing.jsonl"], "nothing.jsonl"),
        (train, [config, "--reward.top1=1"], "top1_hit"),
        (train, [config, "--ranker.name=eliminate"], "elimination"),
        (train, [config, "--data.train=nothing.jsonl"], "nothing.jsonl"),
        (train, [config, "--data.tasks=rec-movies"], "rec-movie"),
        (train, [config, "--model.name=/no/such/folder"], "/no/such/folder"),
        (train, [config, f"--model.name={base_folder}", "--model.max_prompt=5000"], "max_prompt"),
        (evaluate, [], "--ckpt"),
        (evaluate, ["--ckpt", "runs/nothing"], "runs/nothing"),
        (evaluate, ["--config", config, "--limit", "0"], "--limit"),
        (evaluate, ["--config", config, "--tasks", "passage-6"], "did you mean 'passage-"),
        (evaluate, ["--config", config, "--ranker", "eliminatoin"], "elimination"),
    ]


def test_every_mistake_ends_with_one_line_and_status_two_and_leaves_no_run(call, base_folder, tmp_path):
    for module, arguments, named in mistakes(base_folder):
        status, _, err = call(module, *arguments)
        lines = [line for line in err.splitlines() if line.startswith("error:")]
        assert status == 2 and len(lines) == 1 and named in lines[0] and len(lines[0]) <= 400, (arguments, err)
        assert list(tmp_path.iterdir()) == [], arguments


@pytest.fixture
def every_group_teaches(monkeypatch):
    monkeypatch.setattr(top1_hit, "reward", lambda groups, options: [
        [float(k % 2) for k, _ in enumerate(group.completions)] for group in groups])


def stop_after(monkeypatch, step):
    """Let runs end after this step, as by a signal."""
    def show(run, record, rewards):
        if record["step"] == step:
            os.kill(os.getpid(), signal.SIGTERM)
    monkeypatch.setattr(Run, "show", show)


TINY = ["--rollout.prompts_per_step=2", "--rollout.max_new_tokens=64", "--eval.queries=1", "--data.tasks=passage-5"]


@pytest.mark.slow
def test_sampling_that_differs_from_scoring_stops_a_run_until_it_does_not(call, monkeypatch, every_group_teaches):
    score, options = passes.score, ["--train.steps=6", *TINY, "--eval.every=6", "--run.save_every=6"]
    monkeypatch.setattr(passes, "score", lambda *arguments: (score(*arguments)[0] + 0.01, *score(*arguments)[1:]))
    status, out, err = train_short(call, *options)
    words = "sampling and scoring differ (sampler_gap above 0.001)"
    assert status == 2 and out.count(words) == 1 and f"{words} in step 1. Likely causes: " in out
    [line] = [line for line in err.splitlines() if line.startswith("error:")]
    assert f"{words} in 3 steps in a row. Likely causes: " in line and "out); runs/iranker/last is saved" in line
    assert Path("runs/iranker/last").resolve().name == "step_3"
    assert [r["step"] for r in records("runs/iranker/metrics.jsonl")] == [0, 1, 2, 3]
    status, _, err = train_short(call, *options)
    assert status == 2 and "in 4 steps in a row" in err  # it counted on
    assert Path("runs/iranker/last").resolve().name == "step_4"
    monkeypatch.setattr(passes, "score", score)
    status, out, err = train_short(call, *options)
    assert status == 0 and f"\nWARNING {words} in 4 of 6 steps. Likely causes: " in out, err


@pytest.mark.slow
def test_where_nobody_knows_what_was_sampled_there_is_no_gap(call, finished_run):
    """Traces have no log-probabilities, and hinted completions are learned for another prompt than the sampled one."""
    sft = ["--objective.name=sft", "--objective.keep_above=-1", "--train.steps=1", "--train.warmup=0", "--eval.every=1"]
    for draw, more in (("recorded", ["--draw.traces=runs/iranker/thoughts.jsonl"]), ("hinted", [])):
        status, _, err = train_short(call, *sft, *TINY, f"--draw.name={draw}", f"--run.dir={draw}", *more)
        assert status == 0, err
        record = records(f"{draw}/metrics.jsonl")[1]
        assert record["sampler_gap"] is record["sampler_gap_max"] is None and record["nll"] > 0
        assert ("entropy" in record) == (draw == "hinted")


@pytest.mark.slow
def test_best_is_chosen_by_the_strict_mean_by_a_resumed_run_too(call, monkeypatch, every_group_teaches):
    """A policy that says nothing keeps the order it was given, which may be a good one."""
    scores = {0: (0.5, 0.5), 1: (0.9, 0.0), 2: (0.4, 0.4), 3: (0.6, 0.4), 4: (0.95, 0.3)}
    monkeypatch.setattr(train, "validate", lambda *arguments: dict(zip(("mean", "mean_strict"), scores[arguments[-1]])))
    monkeypatch.setattr(log, "curves", lambda folder: None)
    options, show = [*TINY, "--eval.every=1"], Run.show
    stop_after(monkeypatch, 3)
    assert train_short(call, *options)[0] == 128 + signal.SIGTERM
    monkeypatch.setattr(Run, "show", show)
    status, out, _ = train_short(call, *options)
    assert status == 0 and Path("runs/iranker/best").resolve().name == "step_3" and "| best, step 3 " in out


@pytest.mark.slow
def test_a_run_that_learns_nothing_says_so_while_it_runs_at_its_end_and_in_evaluations(call, monkeypatch):
    options, show = ["--train.steps=6", *TINY, "--rollout.max_new_tokens=8", "--eval.every=3"], Run.show
    stop_after(monkeypatch, 3)
    status, out, _ = train_short(call, *options)
    assert status == 128 + signal.SIGTERM and "nothing is learned" not in out
    assert checkpoint.describe(Path("runs/iranker/last"))["notes"] == []
    monkeypatch.setattr(Run, "show", show)
    status, out, _ = train_short(call, *options)  # counts on: the fifth step of the run is the second here
    words, remedy = "nothing is learned: every completion was cut off", "Remedy: more rollout.max_new_tokens, an"
    assert status == 0 and out.count(f"{words} in 5 steps in a row. {remedy}") == 1
    assert out.count(f"\nWARNING {words} in 6 of 6 steps. {remedy}") == out.count("WARNING nothing") == 1
    steps = records("runs/iranker/metrics.jsonl")[1:]
    assert all(r["dead"] == 1 and r["entropy"] > 0 for r in steps)  # logged all the same
    status, out, err = call(evaluate, "--ckpt", "runs/iranker/last", "--tasks", "passage-5", "--limit", "1")
    warning = f"WARNING runs/iranker/last, in training: {words} in 6 of 6 steps. {remedy}"
    assert status == 0 and warning in out
    for row in ("untrained base", "runs/iranker/last"):
        assert f"WARNING {row}: 4 of 4 answers could not be read (4 truncated). Remedy: more rollout.max_new" in out
    folder = written(out)
    assert warning in (folder / "table.md").read_text()
    assert warning in json.loads((folder / "results.json").read_text())["head"]


def test_checkpoints_from_before_there_were_notes_have_none(call, finished_run):
    path = Path("runs/iranker/last/checkpoint.json")
    record = json.loads(path.read_text())
    assert record.pop("notes") == []
    path.write_text(json.dumps(record))
    assert checkpoint.describe(path.parent)["notes"] == []
    status, out, _ = call(evaluate, "--ckpt", "runs/iranker/last", "--tasks", "passage-5", "--limit", "1")
    assert status == 0 and "WARNING" not in out


def test_own_texts_are_not_given_to_the_built_in_policy_without_a_word(call):
    write_queries("mine.jsonl", world.queries("passage-5", "train", 40))
    words = ("the built-in policy (model.name=tiny) only knows its built-in world and will not understand mine.jsonl;"
             " name a pretrained model with --model.name=FOLDER")
    status, out, err = train_short(call, *TINY, "--data.train=mine.jsonl", "--dry_run")
    assert status == 0 and out.startswith(f"{words}\n") and out.count("built-in policy") == 1, err
    assert "built-in" not in train_short(call, *TINY, "--dry_run")[1]
    status, out, _ = call(evaluate, "--config", ROOT / "configs/iranker.yaml", "--limit", "1", "--data", "mine.jsonl")
    assert status == 0 and f"\nWARNING {words}.\n" in out
    status, out, _ = call(evaluate, "--data", "mine.jsonl", "--baselines")
    assert status == 0 and "built-in" not in out
    assert report.strange_texts("tiny", ["world", "a.jsonl"]) == [words.replace("mine", "a")]
    assert report.strange_texts("tiny", ["world", ""]) == report.strange_texts("/models/some", ["a.jsonl"]) == []


def test_other_prompts_than_in_training_are_noticed(call, finished_run):
    record = Path("runs/iranker/last/checkpoint.json")
    written = json.loads(record.read_text())
    written["prompts"]["eliminate.txt"] = "another"
    record.write_text(json.dumps(written | {"step": 0}))
    status, out, _ = call(evaluate, "--ckpt", "runs/iranker/last", "--tasks", "passage-5", "--limit", "1",
                          "--rollout.max_new_tokens=64")
    assert status == 0
    assert "WARNING runs/iranker/last was trained with other prompts: eliminate.txt changed since (--prompts" in out
    status, _, err = train_short(call)
    assert status == 2 and "eliminate.txt changed" in err


@pytest.mark.slow
def test_another_chat_template_is_another_prompt_and_a_resumed_run_and_an_evaluation_say_so(call, finished_run):
    recorded = json.loads(Path("runs/iranker/last/checkpoint.json").read_text())["prompts"]["chat template"]
    assert json.loads(Path("runs/iranker/provenance.json").read_text())["prompts"]["chat template"] == recorded
    Path("mine.jinja").write_text((ROOT / "prompts/chats/plain.jinja").read_text())
    status, out, _ = call(evaluate, "--ckpt", "runs/iranker/last", "--tasks", "passage-5", "--limit", 1,
                          "--rollout.max_new_tokens=8", "--model.chat_template=mine.jinja")
    assert status == 0 and "was trained with other prompts: chat template changed since" in out
    options = ["--run.dir=own", "--model.chat_template=mine.jinja", "--train.warmup=0", "--eval.every=1",
               "--train.steps=1"]
    assert train_short(call, *options)[0] == 0
    Path("mine.jinja").write_text("{{ bos_token or '' }}" + Path("mine.jinja").read_text().replace("User:", "Human:"))
    status, _, err = train_short(call, *options)
    assert status == 2 and "chat template changed since the last checkpoint" in err


def test_identifiers_without_a_token_are_refused_before_the_model_is_loaded(call, monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("the weights were read first")
    monkeypatch.setattr(train, "load_policy", refuse), monkeypatch.setattr("ranker.engine.policy.load", refuse)
    monkeypatch.setattr("ranker.prompting.Prompter.letters", True)
    lots = {"id": "q", "task": "rank", "context": "c", "relevance": [1] + [0] * 29,
            "candidates": [{"id": str(k), "text": f"t{k}"} for k in range(30)]}
    Path("lots.jsonl").write_text("".join(json.dumps(lots | {"id": f"q{i}"}) + "\n" for i in range(40)))
    trained = (ROOT / "configs/first.yaml", "--data.train=lots.jsonl")
    evaluated = ("--config", ROOT / "configs/iranker.yaml", "--data", "lots.jsonl", "--ranker", "first")
    for module, arguments in ((train, trained), (evaluate, evaluated)):
        status, _, err = call(module, *arguments, "--ranker.window=30", "--ranker.step=10")
        assert status == 2 and "ask about at most 20 candidates at a time (ranker.final, or ranker.window)" in err


def test_a_mistake_is_one_line_from_the_shell_too():
    """In a process of its own, where what libraries say at their import stands beside it."""
    ended = subprocess.run([sys.executable, ROOT / "train.py", "configs/irankr.yaml"], cwd=ROOT, capture_output=True,
                           text=True)
    assert ended.returncode == 2 and not ended.stdout
    assert ended.stderr == "error: configs/irankr.yaml: No such file or directory (did you mean 'iranker'?)\n"
