"""Read what `prompts/` holds: a template for every decision, the wording of every task, and versions of both.

A run reads the folder once. Its checkpoints record the texts, so that they can be used again in the folder's place.
"""

import hashlib
import os
import string
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from ranker.config import parse_yaml
from ranker.errors import UserError, nearest
from ranker.files import shipped

FOLDER = shipped("prompts")
WORDING = ("scenario", "heading", "noun", "nouns", "criterion")
FIELDS = ("context", "count", "half", "drop", "pool", *WORDING)  # fields that every template may have
_TAKEN: dict[str, bytes] = {}  # files that `use` took in the place of those in FOLDER


@cache
def files() -> dict[str, bytes]:
    """Return file name -> content of prompts/, read only once.

    So an edit of a prompt during a run changes neither the run's asks nor the prompts that its checkpoints record.
    """
    paths = (*sorted(FOLDER.glob("[!.]*.txt")), FOLDER / "tasks.yaml")
    return {path.name: path.read_bytes() for path in paths if os.access(path, os.R_OK)} | _TAKEN


def use(where: str | None, records: Sequence[dict] = ()) -> None:
    """Use the prompts of a folder, or (`checkpoint`) the prompts that checkpoints were trained with, over prompts/.

    With None prompts/ is used as it is. `records` are the checkpoints' records. Raise UserError where there are no such
    prompts, or where the checkpoints differ in theirs.
    """
    _TAKEN.clear()
    if where == "checkpoint":
        texts = [record.get("prompt_texts") for record in records]
        if not texts or not all(texts):
            raise UserError("--prompts=checkpoint needs checkpoints that hold their prompts; older ones do not")
        if any(text != texts[0] for text in texts):
            raise UserError("the checkpoints were trained with different prompts; evaluate them one by one")
        _TAKEN.update({name: text.encode() for name, text in texts[0].items()})
    elif where:
        found = [path for path in sorted(Path(where).glob("*")) if path.suffix == ".txt" or path.name == "tasks.yaml"]
        if not found:
            raise UserError(f"--prompts: {where} is no folder with prompts (NAME.txt, tasks.yaml)")
        _TAKEN.update({path.name: path.read_bytes() for path in found})
    for cached in (files, wordings, template):
        cached.cache_clear()


def prompt_texts() -> dict[str, str]:
    """Return file name -> text of the prompts in use, as checkpoints record them."""
    return {name: text.decode() for name, text in files().items()}


@cache
def wordings() -> dict[str, dict[str, str]]:
    """Return task name -> its wording, from prompts/tasks.yaml. Raise UserError for a task without all fields."""
    path = FOLDER / "tasks.yaml"
    try:
        tasks = parse_yaml(_text(path))
    except ValueError as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    if not isinstance(tasks, dict) or not tasks:
        raise UserError(f"{path}: expected task names with their wordings")
    for name, wording in tasks.items():
        for key in WORDING:
            if not isinstance(wording, dict) or not isinstance(wording.get(key), str):
                raise UserError(f"{path}: task '{name}' has no text for '{key}'")
    return tasks


def wording(task: str) -> dict[str, str]:
    """Return the wording of a task. Raise UserError for a task without a wording."""
    if task not in wordings():
        raise UserError(f"no wording for task '{task}' in prompts/tasks.yaml{nearest(task, wordings())}; "
                        "add an entry, or use the task name 'rank'")
    return wordings()[task]


@cache
def template(name: str, told: tuple[str, ...] = (), shows: tuple[str, ...] = ("context", "pool")) -> str:
    """Return the text of prompts/NAME.txt. `told` names fields that are filled beside FIELDS.

    Raise UserError for a field that nothing fills, and for a template that lacks a field that it must show.
    """
    path = FOLDER / f"{name}.txt"
    text = _text(path).strip()
    if name in ("system", "direct", "out", "hint", "example"):
        return text
    try:
        fields = [field for _, field, _, _ in string.Formatter().parse(text) if field is not None]
    except ValueError as error:
        raise UserError(f"{path}: broken field ({error}; known: {', '.join(FIELDS)}); a bracket that is none is "
                        "written twice") from None
    wrong = [f"unknown field '{{{field}}}'" for field in fields if field not in (*FIELDS, *told)]
    wrong += [f"no field '{{{field}}}'" for field in shows if field not in fields]
    if wrong:
        raise UserError(f"{path}: {wrong[0]} (known: {', '.join(FIELDS)})")
    return text


def _text(path: Path) -> str:
    try:
        return files()[path.name].decode()
    except KeyError:
        raise UserError(f"{path}: cannot be read "
                        f"({'no permission' if path.exists() else 'there is no such file'})") from None
    except ValueError:
        raise UserError(f"{path}: cannot be read (not UTF-8 text)") from None


CHAT = "chat template"  # its name among the versions of prompts


def prompt_versions(chat: str = "") -> dict[str, str]:
    """Return name -> short hash of every template and of every task's wording, as checkpoints and results record them.

    The hash `chat` of a chat template, where it is given, is added.
    """
    texts = {name: text for name, text in files().items() if name != "tasks.yaml"}
    texts |= {f"tasks.yaml {task}": repr(sorted(fields.items())).encode() for task, fields in wordings().items()}
    versions = {name: hashlib.sha256(text).hexdigest()[:12] for name, text in texts.items()}
    return versions | ({CHAT: chat} if chat else {})


def changed_prompts(recorded: dict[str, str], chat: str = "") -> list[str]:
    """Return the names of recorded versions (name -> hash) that differ from the prompts in use now.

    A new template or task is no change, nor is the chat template where `chat` is not given.
    """
    now = prompt_versions(chat)
    return [name for name, version in recorded.items() if now.get(name) != version and (chat or name != CHAT)]
