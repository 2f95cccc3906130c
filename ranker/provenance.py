"""The provenance of a number, with which it can be computed again: versions, device, code, prompts, data."""

import importlib.metadata
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from ranker import config as settings, sources
from ranker.templates import prompt_versions

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "numpy")


def provenance(config: settings.Config, device: torch.device, data: Sequence[str], chat: str = "") -> dict:
    """Return the provenance that stands in a run's provenance.json and in results.json.

    `data`: names of files, or `world`; `chat`: the version of the chat template.
    """
    return {
        "command": " ".join(sys.argv), "git": git_commit(), "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads",
        "prompts": prompt_versions(chat), "data": {name: sources.checksum(name) for name in data},
        "config": settings.as_dict(config)}


def git_commit() -> str | None:
    """Return the commit of this code, or None where there is no git or no repository."""
    try:
        git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True)
    except OSError:
        return None
    return git.stdout.strip() or None


def interpreter() -> str:
    """Return how to call this Python again: `.venv/bin/python` if it lies below the current folder, else `python`."""
    path, here = Path(sys.executable), Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else "python"
