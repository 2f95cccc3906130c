"""Where else the numbers of a run go (`run.log`): TensorBoard or Weights & Biases, imported only when asked for.

metrics.jsonl and curves.png are always written; a tracker gets the same numbers by the same names.
"""

import importlib
import secrets
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from ranker import config as settings
from ranker.errors import UserError
from ranker.files import write_text


def check(name: str) -> None:
    """Raise UserError where a tracker's package, which has its name, is not installed."""
    if name:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UserError(f"run.log={name} needs a package: .venv/bin/pip install {name} ({error})") from None


def tracker(config: settings.Config, folder: Path, done: int) -> Callable[[dict], None]:
    """Return what a record of metrics.jsonl is given to. A run that goes on after step `done` goes on there too."""
    if config.run.log == "tensorboard":
        from torch.utils.tensorboard import SummaryWriter
        writer = SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1 if done else None)

        def track(record: dict) -> None:
            for name, value in flat(record).items():
                writer.add_scalar(name, value, record["step"])
            writer.flush()  # what a crash leaves is there
        return track
    if config.run.log == "wandb":
        import wandb
        path = folder / "wandb_id"  # a run that goes on goes on there; a fresh one has an id of its own
        name = path.read_text(encoding="utf-8") if done and path.is_file() else secrets.token_hex(6)
        write_text(path, name)
        try:
            run = wandb.init(project="r1-ranker", id=name, name=folder.name, dir=folder, resume="allow",
                             config=asdict(config))
        except Exception as error:  # not logged in, no network: said in many ways
            raise UserError(f"run.log=wandb cannot begin: {error}; WANDB_MODE=offline keeps all here") from None
        return lambda record: run.log(flat(record), step=record["step"])
    return lambda record: None


def flat(record: dict) -> dict[str, float]:
    """Return the numbers of a record, a validation's as `validation/NAME`."""
    found = {}
    for name, value in record.items():
        if isinstance(value, dict):
            found |= {f"{name}/{inner}": number for inner, number in flat(value).items()}
        elif isinstance(value, (int, float)) and name != "step":
            found[name] = value
    return found
