"""A full disk, a read-only folder, a kill in the middle of a write, a checkpoint that vanished: one clear line, nothing
damaged, the last checkpoint loads, and the same command, typed again, ends where an undisturbed run ends. Numbers that
are none change no weight and count as no reward. `bench/bench_disk.py` disturbs every single write,
`bench/bench_kill.py` kills at any moment."""

import builtins
import errno
import io
import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import matplotlib.figure
import matplotlib.pyplot
import peft.peft_model
import pytest
import torch
from bench.bench_kill import left_behind
from safetensors import SafetensorError
from safetensors.torch import load_file
from test_train import call, records  # noqa: F401

import evaluate
import train
from ranker import checkpoint, config as settings, files, log, plugins, thoughts
from ranker.data import Answer, Ask, Candidate, Completion, Group, Query
from ranker.engine import policy
from ranker.errors import UserError, exit_status
from ranker.objectives import grpo
from ranker.prepare import __main__ as prepare
from ranker.run import Run
from rewards import top1_hit

ROOT = Path(__file__).resolve().parents[1]
SHORT = [str(ROOT / "configs/iranker.yaml"), "--train.steps=2", "--train.warmup=0", "--rollout.prompts_per_step=4",
         "--rollout.completions_per_prompt=4", "--rollout.max_new_tokens=64", "--eval.every=2",
         "--data.tasks=passage-5", "--run.seed=1", "--run.save_every=1", "--model.device=cpu"]
HOW = {"full": errno.ENOSPC, "read-only": errno.EROFS, "killed": 0, "small": errno.EFBIG}


def start(folder: Path, main: Callable, arguments: list, how: str = "",
          first: int | str = 0) -> tuple[int, str, list[str]]:
    """(exit status, error lines, writes) of a script in a process of its own that writes below `folder`; the status of
    a killed one is -9.

    From its `first` write on, a number or a name, the disk is as `how` says; `small`: no file may have more than
    `first` bytes. Writes are named in their order.
    """
    output, names = (folder.parent / name for name in ("output", "writes"))
    child = os.fork()
    if not child:
        status = 1
        try:
            sys.stdout = sys.stderr = output.open("w")
            sys.argv = ["script.py", *map(str, arguments)]
            torch.set_num_threads(1)  # a forked process has none of its parent's
            # What takes the longest and is always the same.
            matplotlib.figure.Figure.savefig = lambda figure, file, **options: file.write(b"\x89PNG" * 9)
            train.validate = lambda config, sampler, ranker, models, queries, step: {
                "passages": 0.5, "mean": 0.5, "mean_strict": 0.5}
            if how == "small":
                resource.setrlimit(resource.RLIMIT_FSIZE, (first, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
            disturb(folder, how, first, names.open("w"))
            status = exit_status(main)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    text = output.read_text().replace("\r", "\n")
    return (status, text if status == 1 else "\n".join(line for line in text.split("\n") if line.startswith("error:")),
            names.read_text().splitlines())


def disturb(folder: Path, how: str, first: int | str, names) -> None:
    """Count what changes files below `folder`: files opened, written to and flushed, folders, links, names, and what is
    deleted.

    From the `first` on a full disk lets only delete, half of a write goes through, and a read-only one lets nothing.
    """
    before = []

    def write(what: str, path, half: Callable = lambda: None) -> None:
        if not str(path).startswith(str(folder)):
            return
        before.append(f"{what} {str(path).removeprefix(str(folder)).replace(f'.{os.getpid()}.', '.')}")
        names.write(before[-1] + "\n")
        names.flush()
        begun = first in before if isinstance(first, str) else len(before) >= first
        if how in ("", "small") or not begun or how == "full" and what == "delete":
            return
        half()
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(HOW[how], os.strerror(HOW[how]))

    def disturbed(what: str, real: Callable) -> Callable:
        def call(path, *arguments, **options):
            write(what, path)
            return real(path, *arguments, **options)
        return call

    opened = io.open

    def open_(path, mode="r", *arguments, **options):
        if not set(mode) & set("wax+"):
            return opened(path, mode, *arguments, **options)
        write("open", path)
        file = opened(path, mode, *arguments, **options)
        real = file.write

        def write_half(data):
            write("write", path, lambda: (real(data[:len(data) // 2]), file.flush()))
            return real(data)
        file.write = write_half
        return file

    def save_file(tensors, path, **options):
        try:
            write("write", path, lambda: Path(path).write_bytes(b"half"))
        except OSError as error:  # as it comes out of safetensors
            raise SafetensorError("Error while serializing: I/O error: "
                                  f"{error.strerror} (os error {error.errno})") from None
        saved(tensors, path, **options)

    builtins.open = io.open = open_
    saved, peft.peft_model.safe_save_file = peft.peft_model.safe_save_file, save_file
    for what, name in (("mkdir", "mkdir"), ("rename", "rename"), ("rename", "replace"), ("delete", "unlink"),
                       ("delete", "rmdir"), ("delete", "remove")):
        setattr(os, name, disturbed(what, getattr(os, name)))
    symlink = os.symlink
    os.symlink = lambda target, path, *more: (write("link", path), symlink(target, path, *more))


def train_short(run: Path, how: str = "", first: int | str = 0) -> tuple[int, str, list[str]]:
    return start(run, train.main, [*SHORT, f"--run.dir={run}"], how, first)


def survived(run: Path, how: str, status: int, errors: str) -> None:
    """It ended with one line that says what is safe and what to do (or was killed), and if there is a last checkpoint,
    it loads."""
    if how == "killed":
        assert status == -signal.SIGKILL, errors
    else:
        assert status == 2 and errors.count("\n") == 0, errors
        assert ("cannot write" in errors and "what was saved before is whole" in errors
                and "type the same command again" in errors)
        assert os.strerror(HOW[how]) in errors and str(run) in errors
    if (run / "last").is_symlink():
        last = checkpoint.find(run / "last")
        assert checkpoint.describe(last)["step"] == checkpoint.step_of(last.resolve())
        assert load_file(last / "adapter_model.safetensors") and torch.load(last / "optimizer.pt", weights_only=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run that nothing disturbed."""
    # What is imported and read once is there in every child.
    policy.load(settings.Model(device="cpu"), plugins.load("lora", {"name": "lora"}))
    folder = tmp_path_factory.mktemp("whole") / "run"
    status, errors, _ = train_short(folder)
    assert status == 0, errors
    return folder


@pytest.fixture
def quick(call, monkeypatch):  # noqa: F811
    """train.py from the outside as `call` runs it, without what takes the longest: two short steps in runs/iranker, all
    of whose completions teach."""
    monkeypatch.setattr(train, "validate", lambda *arguments: {"passages": 0.5, "mean": 0.5, "mean_strict": 0.5})
    monkeypatch.setattr(log, "curves", lambda folder: None)
    monkeypatch.setattr(top1_hit, "reward", lambda groups, options: [
        [float(k % 2) for k, _ in enumerate(g.completions)] for g in groups])
    return lambda *options: call(train, *SHORT, "--rollout.max_new_tokens=16", "--rollout.prompts_per_step=2", *options)


@pytest.mark.slow
def test_a_run_that_is_disturbed_again_and_again_ends_where_one_ends_that_never_was(whole, tmp_path):
    run, expected = tmp_path / "run", left_behind(whole)
    assert all(record["grad_norm"] > 0 for record in expected["metrics"][1:])  # it learns in both steps
    for how, first in [("killed", "rename /.config.yaml.tmp"),
                       ("full", "write /completions.jsonl"),  # half a line, as in the next
                       ("killed", "write /metrics.jsonl"),
                       # the adapter has more bytes: an error of the system's, not of the test's
                       ("small", 300_000),
                       ("read-only", "rename /checkpoints/.step_1.tmp"), ("killed", "rename /.last.tmp"),
                       ("killed", "write /checkpoints/.step_2.tmp/adapter_model.safetensors"),
                       ("killed", "rename /.last.tmp")]:  # `best` already points at the new checkpoint
        status, errors, writes = train_short(run, how, first)
        assert first in writes or how == "small"
        survived(run, how, status, errors)
    assert (run / "last").resolve().name == "step_1" and (run / "best").resolve().name == "step_2"
    status, errors, _ = train_short(run)
    assert status == 0, errors
    assert left_behind(run) == expected  # no step stands twice, no line is broken
    assert not list(run.rglob("*.tmp"))


def test_what_killed_writers_of_a_file_left_is_cleared_by_the_next_one_and_nothing_else(tmp_path):
    # no process has so high a number
    left, living, other = (tmp_path / name
                           for name in (".x.json.4194305.tmp", f".x.json.{os.getppid()}.tmp", ".y.json.4194305.tmp"))
    for path in (left, living, other):
        path.write_text("half")
    files.write_text(tmp_path / "x.json", "{}")
    assert {path.name for path in tmp_path.iterdir()} == {"x.json", living.name, other.name}


@pytest.mark.parametrize(("redirected", "said"), [(">/dev/full", "No space left on device"),
                                                  (">/dev/full 2>/dev/full", ""), ("| true", "Broken pipe")])
@pytest.mark.parametrize("lines", [1, 9999], ids=["kept back until the end", "more than is kept back"])
def test_an_output_that_cannot_be_written_is_one_line(redirected, said, lines):
    def shell(code):
        code = "import sys, time; from ranker.errors import UserError, exit_status; time.sleep(0.2)\n" + code
        env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        return subprocess.run(["bash", "-c", f'"{sys.executable}" -c "$CODE" {redirected}; exit ${{PIPESTATUS[0]}}'],
                              cwd=ROOT, env=env | {"CODE": code}, capture_output=True, text=True)

    done = shell(f"sys.exit(exit_status(lambda: print('x' * 99 * {lines})))")
    mistake = shell("def main():\n    print('x')\n    raise UserError('a mistake')\nsys.exit(exit_status(main))")
    assert done.returncode == mistake.returncode == 2
    assert mistake.stderr == ("error: a mistake\n" if said else "")
    assert done.stderr == (f"error: cannot write to the standard output or error: {said}; "
                           "what was saved before is whole\n" if said else "")


@pytest.fixture(scope="module")
def run_of_another_tool(tmp_path_factory):
    """The arguments of an evaluation without a model, to the folder `out`."""
    return scripts(tmp_path_factory.mktemp("files"), Path("out"))["evaluation"][1]


def scripts(folder: Path, out: Path) -> dict[str, tuple[Callable, list, Callable]]:
    """Name -> (main, arguments, how to see what it leaves behind in `out`), on small files in `folder`."""
    folder.mkdir(exist_ok=True)
    (folder / "run").write_text("".join(f"q{q} Q0 d{d} {d} {9 - d} tag\n" for q in range(2) for d in range(1, 4)))
    (folder / "qrels").write_text("q0 0 d1 1\nq1 0 d3 1\n")
    (folder / "corpus").write_text("".join(json.dumps({"_id": f"d{d}", "text": f"text {d} \u4e03"}) + "\n"
                                           for d in range(1, 4)))
    (folder / "topics").write_text("q0\tfirst\nq1\tsecond\n")
    (folder / "replay").write_text(
        "".join(json.dumps({"qid": f"q{q}", "response": f"\u4e03\u4eba <answer>[{k}] > [{3 - k}]</answer>"}) + "\n"
                for q in range(2) for k in (1, 2)))
    named = [word for name in ("run", "qrels", "corpus", "topics", "replay") for word in (f"--{name}", folder / name)]
    # results.json states the time
    left = lambda out: {path.name: path.read_bytes() for path in out.iterdir()  # noqa: E731
                        if path.suffix != ".json" and path.name != "lock"}
    return {"run": (train.main, [*SHORT, f"--run.dir={out}"], left_behind),
            "evaluation": (evaluate.main, [*named, "--window", 2, "--step", 1, "--out", out], left),
            "preparation": (prepare.main, ["trec", *named[1:6:2], *named[6:8], "--out", out / "q.jsonl"], left)}


def typed_again(script: tuple[Callable, list, Callable], out: Path, how: str, first: int):
    """What a script leaves behind in `out` that was disturbed at its `first` write and then started again."""
    main, arguments, left = script
    shutil.rmtree(out, ignore_errors=True)
    status, errors, _ = start(out, main, arguments, how, first)
    survived(out, how, status, errors)
    status, errors, _ = start(out, main, arguments)
    assert status == 0, errors
    return left(out)


def places(writes: list[str], how: str) -> list[int]:
    """The writes that can be disturbed: a full disk still deletes."""
    return [place for place in range(1, len(writes) + 1)
            if how != "full" or any(not write.startswith("delete") for write in writes[place - 1:])]


@pytest.mark.parametrize("how", ["full", "read-only", "killed"])
@pytest.mark.parametrize("name", ["evaluation", "preparation"])
def test_a_disturbed_evaluation_or_preparation_ends_where_one_ends_that_nothing_disturbed(tmp_path, name, how):
    out = tmp_path / "out"
    script = scripts(tmp_path / "files", out)[name]
    status, errors, writes = start(out, *script[:2])
    assert status == 0, errors
    expected = script[2](out)
    for first in places(writes, how)[::11 if name == "evaluation" else 5]:
        assert typed_again(script, out, how, first) == expected


def test_a_checkpoint_that_vanished_is_named_and_no_other_is_taken_for_it(whole, call):  # noqa: F811
    run, config = Path("run"), settings.load(SHORT[0], [*SHORT[1:], "--run.dir=run"])
    shutil.copytree(whole, run, symlinks=True)
    (run / "checkpoints/step_2").rename("elsewhere")
    for arguments in ((train, *SHORT, "--run.dir=run"), (evaluate, "--ckpt", run / "last")):
        status, _, err = call(*arguments)
        assert status == 2 and "run/last points to a checkpoint that is gone" in err
    for path in (run, run / "best"):  # `last` is not what was asked for
        status, _, err = call(evaluate, "--ckpt", path)
        assert status == 2 and "run/best points to a checkpoint that is gone (checkpoints/step_2); bring it back" in err
    checkpoint.link(run / "last", run / "checkpoints/step_1")
    assert checkpoint.inspect_run(config) == 1  # a kill may leave it so: step 2 is made again, and `best` with it
    checkpoint.link(run / "best", run / "checkpoints/step_0")
    with pytest.raises(UserError, match="run/best points to a checkpoint that is gone; bring it back, delete the link"):
        checkpoint.inspect_run(config)
    (run / "best").unlink()
    assert checkpoint.inspect_run(config) == 1 and checkpoint.find(run) == run / "last"


def test_copies_that_somebody_put_beside_the_checkpoints_stay(tmp_path):
    for name in ("step_1", "step_1_copy", "step_2", "mine", "step_3"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    checkpoint.link(tmp_path / "best", tmp_path / "checkpoints/step_1")
    checkpoint.link(tmp_path / "last", tmp_path / "checkpoints/step_3")
    checkpoint.prune(tmp_path, 1)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"step_1", "step_1_copy", "mine", "step_3"}


def test_a_folder_that_is_removed_in_the_middle_of_a_run_or_an_evaluation_ends_it_with_one_line(
        quick, call, monkeypatch, run_of_another_tool):  # noqa: F811
    append = log.append
    monkeypatch.setattr(Run, "show", lambda run, record, rewards: shutil.rmtree("runs/iranker"))
    status, _, err = quick()
    assert (status == 2 and "cannot write runs/iranker/completions.jsonl: No such file or directory" in err
            and "Traceback" not in err)
    assert not Path("runs/iranker").exists()
    monkeypatch.setattr(log, "append", lambda path, records: (shutil.rmtree(path.parent), append(path, records)))
    status, _, err = call(evaluate, *run_of_another_tool)
    assert (status == 2 and "cannot write out/traces.jsonl: No such file or directory" in err
            and not Path("out").exists())


def test_a_read_only_place_is_noticed_before_a_model_is_loaded(call, monkeypatch, run_of_another_tool):  # noqa: F811
    def refuse(*arguments, **options):
        raise AssertionError("a model was loaded")
    monkeypatch.setattr(os, "access", lambda path, mode: mode == os.R_OK)
    monkeypatch.setattr(train, "load_policy", refuse), monkeypatch.setattr("ranker.engine.policy.load", refuse)
    for arguments in ((train, ROOT / "configs/iranker.yaml"), (evaluate, "--config", ROOT / "configs/iranker.yaml"),
                      (evaluate, *run_of_another_tool)):
        status, _, err = call(*arguments)
        assert status == 2 and "is read-only" in err and list(Path().iterdir()) == []


def test_a_completion_whose_reward_is_no_number_is_unscored_and_not_worth_0(quick, monkeypatch):
    score = top1_hit.reward
    # a judge that was silent
    monkeypatch.setattr(top1_hit, "reward",
                        lambda groups, options: [[math.nan, *row[1:]] for row in score(groups, options)])
    assert quick("--train.steps=1")[0] == 0
    [record] = records("runs/iranker/metrics.jsonl")[1:]
    completions = records("runs/iranker/completions.jsonl")
    groups = [completions[i:i + 4] for i in range(0, len(completions), 4)]
    scored = [c["reward"]["total"] for _, *others in groups for c in others]
    assert (record["reward"] == pytest.approx(sum(scored) / len(scored)) and record["bad"] == 0
            and record["dead"] == 0)  # others of its group teach
    for first, *others in groups:
        assert (first["reward"]["total"] is first["reward"]["task"] is first["reward"]["top1_hit"] is None
                and first["advantage"] == 0)
        mean = sum(c["reward"]["total"] for c in others) / 3  # of the others, whose advantages it does not move
        assert [c["advantage"] for c in others] == pytest.approx([c["reward"]["total"] - mean for c in others],
                                                                 abs=1e-5)
    monkeypatch.setattr(top1_hit, "reward",
                        lambda groups, options: [[math.nan] * len(g.completions) for g in groups])
    assert quick("--train.steps=1", "--run.dir=silent")[0] == 0
    [record] = records("silent/metrics.jsonl")[1:]
    assert record["reward"] is None and record["dead"] == 1 and record["parse_rate"] >= 0
    assert not any(value.any() for name, value in load_file("silent/last/adapter_model.safetensors").items()
                   if "lora_B" in name)


def test_an_unscored_completion_is_no_thought_to_keep_and_hides_no_other():
    query = Query("q", "rank", "c", (Candidate("a", "x"), Candidate("b", "y")), (0.0, 1.0))
    completions = [Completion([], [], f"<think>{k}</think>\n<answer>[1]</answer>", True, Answer("ok", ("a",)),
                              rewards={"task": value, "total": value}, advantage=advantage)
                   for k, (value, advantage) in enumerate([(math.nan, 0.0), (1.0, 0.5), (0.0, -0.5)])]
    group = Group(Ask(query, query.ids, "eliminate"), [], completions)
    assert [record["text"] for record in thoughts.kept(1, [group])] == [completions[1].text]
    for completion in completions:
        completion.rewards, completion.advantage = completions[0].rewards, 0.0
    assert thoughts.kept(1, [group]) == []


def test_a_loss_that_is_no_number_changes_nothing_is_counted_and_stops_a_run_that_goes_on_later(quick, monkeypatch):
    def broken(batch, options):
        loss, parts = plain(batch, options)
        return loss + batch.logprobs.sum() * {2: math.nan, 3: math.inf}.get(batch.step, 0.0), parts

    plain, options = grpo.loss, ("--train.steps=4", "--train.max_bad_steps=2", "--run.keep=9")
    monkeypatch.setattr(grpo, "loss", broken)
    status, _, err = quick(*options)
    words = "not finite in 2 steps in a row (the last is 3), which changed nothing; runs/iranker/last is saved"
    assert status == 2 and words in err
    folder = Path("runs/iranker/checkpoints")
    weights = {step: load_file(folder / f"step_{step}/adapter_model.safetensors") for step in (1, 2, 3)}
    moments = {step: torch.load(folder / f"step_{step}/optimizer.pt", weights_only=True)["state"] for step in (1, 2, 3)}
    for step in (2, 3):
        assert all(torch.equal(weights[1][name], weights[step][name]) for name in weights[1])
        assert all(torch.equal(moments[1][k]["exp_avg"], moments[step][k]["exp_avg"]) and moments[step][k]["step"] == 1
                   for k in moments[1])
    monkeypatch.setattr(grpo, "loss", plain)
    assert quick(*options)[0] == 0
    assert ([(r["step"], r["bad"], r["loss"] is None) for r in records("runs/iranker/metrics.jsonl")[1:]]
            == [(1, 0, False), (2, 1, True), (3, 1, True), (4, 0, False)])
    assert any(not torch.equal(weights[1][name], value)
               for name, value in load_file("runs/iranker/last/adapter_model.safetensors").items())


def test_a_collapse_is_announced_once_and_best_is_what_remains(quick, monkeypatch):
    rewards, scores, means = iter([0.9] * 5 + [0.2] * 5), iter([0.5, 0.6, 0.9, 0.3, 0.2, 0.1]), log.reward_means
    monkeypatch.setattr(log, "reward_means", lambda rows: means(rows) | {"reward": next(rewards)})
    monkeypatch.setattr(train, "validate",
                        lambda *arguments: dict.fromkeys(("passages", "mean", "mean_strict"), next(scores)))
    status, out, _ = quick("--train.steps=10", "--train.collapse_steps=3", "--run.keep=1")
    message = "collapse: reward was 0.90 and has been below 0.60 for 3 steps. Likely causes: a learning rate too high"
    assert status == 0
    assert out.count(message) == 2 and out.count(f"\nWARNING {message}") == 1  # and once more at the end
    assert checkpoint.describe(Path("runs/iranker/last"))["notes"][0].startswith(message)
    assert ("| best, step 4 " in out
            and {path.name for path in Path("runs/iranker/checkpoints").iterdir()} == {"step_4", "step_10"})
    assert checkpoint.describe(checkpoint.find("runs/iranker"))["scores"]["mean"] == 0.9
