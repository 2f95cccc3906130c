"""Run folders and checkpoints: a step is saved whole or not at all, and a run goes on where its last checkpoint stands.

Everything random in a run is drawn from (run.seed, step), so adapter, optimizer and step are all there is to restore.
A checkpoint is a PEFT adapter folder with two more files: `checkpoint.json` (base model, prompt hash, scores, config)
and `state.pt` (optimizer and schedule). `last` and `best` in the run folder are links to checkpoints.
"""

import json
import os
import shutil
from pathlib import Path

import torch
import yaml

from ranker import config as settings
from ranker.errors import UserError
from ranker.files import write_text
from ranker.policy import Policy, save_adapter
from ranker.prompting import prompt_hash

SAME_RUN = {"run.dir", "run.save_every", "run.keep", "model.device", "eval.batch"}  # may change between start and resume


def open_run(config: settings.Config, fresh: bool = False) -> int | None:
    """Prepare `run.dir`. The step to resume from (0: a new run), or None when the run is finished already.

    Raises UserError for a folder that belongs to another config, or to something else.
    """
    folder = Path(config.run.dir)
    if fresh and folder.exists():
        shelf = next(p for i in range(1, 10**6) if not (p := folder.with_name(f"{folder.name}.{i}")).exists())
        folder.rename(shelf)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        present = any(p.name != "config.yaml" and not p.name.startswith(".") for p in folder.iterdir())
    except OSError as error:
        raise UserError(f"run.dir {folder}: {error.strerror}") from None
    recorded = folder / "config.yaml"
    if recorded.is_file():
        before, now = yaml.safe_load(recorded.read_text(encoding="utf-8")), settings.as_dict(config)
        changed = [key for key in settings.differences(before, now) if key not in SAME_RUN]
        if changed and present:
            raise UserError(f"{folder} holds a run with other settings ({', '.join(changed)}); take another run.dir, or --fresh")
    elif present:
        raise UserError(f"{folder} is not empty and holds no run; take another run.dir, or --fresh to move it aside")
    write_text(recorded, settings.as_yaml(config))
    last = folder / "last"
    if not last.exists():
        return 0
    step = describe(last)["step"]
    return None if step >= config.train.steps else step


def save(config: settings.Config, policy: Policy, optimizer, schedule, step: int, scores: dict, best: bool) -> Path:
    """Write `checkpoints/step_N`, then point `last` (and `best`) at it, then delete older ones beyond `run.keep`."""
    run = Path(config.run.dir)
    target = run / "checkpoints" / f"step_{step}"
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        save_adapter(policy, temporary)
        torch.save({"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}, temporary / "state.pt")
        write_text(temporary / "checkpoint.json", json.dumps({
            "step": step, "base_model": config.model.name, "prompt_hash": prompt_hash(), "scores": scores,
            "config": settings.as_dict(config)}, indent=1) + "\n")
        for path in temporary.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
        link(run / "last", target)
        if best:
            link(run / "best", target)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(f"cannot save checkpoint {target}: {error.strerror or error}; the checkpoints before it are whole") from None
    prune(run, config.run.keep)
    return target


def link(name: Path, target: Path) -> None:
    temporary = name.with_name(f".{name.name}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(os.path.relpath(target, name.parent))
    temporary.replace(name)


def prune(run: Path, keep: int) -> None:
    linked = {(run / name).resolve() for name in ("last", "best")}
    steps = sorted((run / "checkpoints").glob("step_*"), key=lambda p: int(p.name.split("_")[1]))
    for path in steps[:-keep]:
        if path.resolve() not in linked:
            shutil.rmtree(path)


def restore(folder: Path, optimizer, schedule) -> None:
    state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])


def find(path: str | Path) -> Path:
    """The checkpoint folder that `path` means: itself, or the best of a run folder. Raises UserError."""
    path = Path(path)
    if (path / "adapter_config.json").is_file():
        return path
    for name in ("best", "last"):
        if (path / name / "adapter_config.json").is_file():
            return path / name
    if not path.exists():
        near = sorted(str(p.parent.parent) for p in Path("runs").glob("*/last/adapter_config.json"))
        raise UserError(f"there is no checkpoint {path}" + (f"; runs here: {', '.join(near)}" if near else "; train one first:"
                        " python train.py configs/iranker.yaml"))
    raise UserError(f"{path} holds no adapter_config.json, so it is neither a checkpoint nor a run with one")


def describe(folder: Path) -> dict:
    """The `checkpoint.json` of a checkpoint: step, base_model, prompt_hash, scores, config."""
    path = folder / "checkpoint.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        record["config"], record["prompt_hash"], record["step"], record["scores"]
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; without it nobody knows the base model of this adapter") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} is damaged") from None
    return record
