"""Run folders and checkpoints: a step is saved whole or not at all, and a run goes on where its last checkpoint stands.

Everything random in a run is drawn from (run.seed, step), so adapter, optimizer and step are all there is to restore.
A checkpoint is a PEFT adapter folder with more files: `checkpoint.json` (base model, prompts, data, scores, config, and
notes: what was announced of its run), `optimizer.pt`, `critic.safetensors` where the objective has one and
`reference.safetensors` where a stage has its own reference. `last` and `best` in the run folder are links to them.
"""

import io
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors.torch import load_file, save as to_bytes

from ranker import config as settings, sources
from ranker.errors import UserError
from ranker.files import LOCK, lock, refuse_locked, refuse_read_only, write_bytes, write_text, writing
from ranker.engine.policy import Policy, save_adapter
from ranker.provenance import interpreter
from ranker.templates import changed_prompts, prompt_texts, prompt_versions

RECORD = {"step": int, "base_model": str, "prompts": dict, "scores": dict, "data": dict, "config": dict,
          "notes": list, "state": dict}  # of checkpoint.json
TEMPORARY = ".*.tmp"  # what one that was killed had not finished
# may change between start and resume, as may what is computed at once
SAME_RUN = {"run.dir", "run.save_every", "run.keep", "model.device", "rollout.tokens_per_batch",
            "rollout.tokens_per_prefill", "rollout.tokens_kept", "rollout.graph", "train.tokens_per_batch",
            "model.gradient_checkpointing"}


def inspect_run(config: settings.Config, fresh: bool = False, chat: str = "") -> int | None:
    """The step to resume `run.dir` from (0: a new run), or None when the run is finished. Writes nothing.

    Raises UserError for a folder that belongs to another config, or to something else.
    """
    folder = Path(config.run.dir)
    refuse_read_only(folder)
    if fresh or not folder.exists():
        return 0
    if not folder.is_dir():
        raise UserError(f"run.dir {folder} is a file")
    refuse_locked(folder)
    recorded = folder / "config.yaml"
    if not recorded.is_file():
        if any(path.name != LOCK and not path.match(TEMPORARY) for path in folder.iterdir()):
            raise UserError(f"{folder} is not empty and holds no run; take another run.dir, "
                            "or --fresh to move it aside")
        return 0
    try:
        # settings since added have their defaults
        before = settings.build(settings.parse_yaml(recorded.read_text(encoding="utf-8")), str(recorded))
        settings.resolve(before, str(recorded))
    except UserError as error:  # such as of an older layout
        raise UserError(f"{error}; begin anew with --fresh") from None
    except (OSError, ValueError):
        raise UserError(f"{recorded} is damaged; begin anew with --fresh") from None
    longer = config.train.schedule == "constant" and before.train.steps < config.train.steps
    changed = [key for key in settings.differences(settings.as_dict(before), settings.as_dict(config))
               if key not in SAME_RUN and not (longer and key == "train.steps")]
    if changed:
        raise UserError(f"{folder} holds a run with other settings ({', '.join(changed)}); "
                        "take another run.dir, or --fresh")
    if not (folder / "last").exists():
        if (folder / "last").is_symlink():
            raise UserError(f"{folder}/last points to a checkpoint that is gone; bring it back, "
                            "or begin anew with --fresh")
        return 0
    record = describe(folder / "last")
    best = folder / "best"
    # a later one is made again
    if best.is_symlink() and not best.exists() and step_of(best.readlink()) <= record["step"]:
        raise UserError(f"{best} points to a checkpoint that is gone; bring it back, delete the link, "
                        "or begin anew with --fresh")
    changed = changed_prompts(record["prompts"], chat)
    changed += [name for name, sum_ in record["data"].items() if sources.checksum(name) != sum_]
    if changed:
        raise UserError(f"{folder}: {', '.join(changed)} changed since the last checkpoint; restore it, "
                        "or begin anew with --fresh")
    return None if record["step"] >= config.train.steps else record["step"]


def start_run(config: settings.Config, fresh: bool, record: dict) -> BinaryIO:
    """Make `run.dir` with its resolved config and provenance; with `fresh` an old folder is moved aside, not deleted.

    Returns the lock, which holds as long as the file is open.
    """
    folder = Path(config.run.dir)
    if fresh and folder.exists():
        lock(folder).close()
        with writing(folder.parent):
            folder.rename(next(p for i in range(1, 10**6)
                               if not (p := folder.with_name(f"{folder.name}.{i}")).exists()))
    held = lock(folder)
    write_text(folder / "config.yaml", settings.as_yaml(config))
    write_text(folder / "provenance.json", json.dumps(record, indent=1) + "\n")
    return held


def save(config: settings.Config, policy: Policy, optimizer, step: int, scores: dict, best: bool,
         notes: Sequence[str] = (), state: dict | None = None) -> Path:
    """Write `checkpoints/step_N`, then point `last` (and `best`) at it, then delete older ones beyond `run.keep`."""
    run = Path(config.run.dir)
    target = run / "checkpoints" / f"step_{step}"
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    moments = io.BytesIO()  # torch's own writer does not say why it failed
    torch.save(optimizer.state_dict(), moments)
    try:
        with writing(target):
            temporary.mkdir(parents=True)
            save_adapter(policy, temporary)
            for name, module in policy.own.items():
                write_safetensors(module.state_dict(), temporary / f"{name}.safetensors")
            if policy.frozen is not None:
                write_safetensors(policy.frozen, temporary / "reference.safetensors")
            write_bytes(temporary / "optimizer.pt", moments.getbuffer())
            write_text(temporary / "checkpoint.json", json.dumps({
                "step": step, "base_model": config.model.name,
                "prompts": prompt_versions(policy.prompter.chat.version), "prompt_texts": prompt_texts(),
                "scores": scores, "data": {name: sources.checksum(name) for name in sources.names(config)},
                "config": settings.as_dict(config), "notes": list(notes), "state": state or {}}, indent=1) + "\n")
            for path in temporary.iterdir():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
            shutil.rmtree(target, ignore_errors=True)
            temporary.rename(target)
            if best:  # first, so that a kill in between is made good by the resumed run
                link(run / "best", target)
            link(run / "last", target)
            prune(run, config.run.keep)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def write_safetensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Write tensors to a file that others may read (its library makes one for the owner alone)."""
    write_bytes(path, to_bytes({name: tensor.contiguous() for name, tensor in tensors.items()}))


def link(name: Path, target: Path) -> None:
    temporary = name.with_name(f".{name.name}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(os.path.relpath(target, name.parent))
    temporary.replace(name)


def prune(run: Path, keep: int) -> None:
    linked = {(run / name).resolve() for name in ("last", "best")}
    steps = sorted((path for path in (run / "checkpoints").iterdir() if step_of(path) >= 0), key=step_of)
    for path in steps[:-keep]:
        if path.resolve() not in linked:
            shutil.rmtree(path)


def step_of(path: Path) -> int:
    """Of a checkpoint's folder; -1 for what somebody else put there, such as a copy."""
    name = path.name.removeprefix("step_")
    return int(name) if name.isdecimal() else -1


def restore(folder: Path, policy: Policy, optimizer) -> None:
    """The optimizer's state, the critic's weights and a frozen reference; the adapter is loaded with the policy."""
    try:
        for name, module in policy.own.items():
            module.load_state_dict(load_file(folder / f"{name}.safetensors"))
        if (folder / "reference.safetensors").is_file():
            policy.frozen = load_file(folder / "reference.safetensors", device=str(policy.device))
        optimizer.load_state_dict(torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True))
    except Exception as error:  # whatever torch makes of a damaged file
        raise UserError(f"{folder}: optimizer, critic or reference cannot be read ({type(error).__name__}); "
                        "begin anew with --fresh") from None


def find(path: str | Path) -> Path:
    """The checkpoint folder that `path` means: itself, or the best of a run folder. Raises UserError."""
    path = Path(path)
    for folder in (path, path / "best", path / "last"):
        if (folder / "adapter_config.json").is_file():
            return folder
        if folder.is_symlink() and not folder.exists():
            raise UserError(f"{folder} points to a checkpoint that is gone ({folder.readlink()}); bring it back, "
                            "or name another one")
    if not path.exists():
        near = sorted(str(p.parent.parent) for p in Path("runs").glob("*/last/adapter_config.json"))
        raise UserError(f"there is no checkpoint {path}"
                        + (f"; runs here: {', '.join(near)}" if near else "; train one first:"
                                        f" {interpreter()} train.py configs/iranker.yaml"))
    raise UserError(f"{path} holds no adapter_config.json, so it is neither a checkpoint nor a run with one")


def describe(folder: Path) -> dict:
    """Return the `checkpoint.json` of a checkpoint: step, base_model, prompts, scores, data, config, notes."""
    path = folder / "checkpoint.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; without it nobody knows the base model of this adapter") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: not JSON ({error})") from None
    # a checkpoint from before there were any
    record = {"notes": [], "state": {}} | record if isinstance(record, dict) else record
    for name, kind in RECORD.items():
        if not isinstance(record, dict) or type(record.get(name)) is not kind:
            raise UserError(f"{path} is damaged: '{name}' is missing or no {kind.__name__}")
    config = settings.build(record["config"], str(path))
    settings.resolve(config, str(path))  # settings since added have their defaults
    return record | {"config": settings.as_dict(config)}
