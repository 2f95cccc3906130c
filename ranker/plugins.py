"""Plug-ins: a name in the config is the name of a file, and this is the one loader of all of them.

A plug-in owns its settings: its file holds one dataclass `Options`, whose fields say type, default, range and meaning,
and the functions that the docstring of its folder asks for. The config section of its kind is `name` and those options.
Whatever a plug-in lacks, and whatever an option cannot be, ends with one line (UserError).
"""

import dataclasses
import inspect
import math
import pkgutil
import re
import reprlib
import typing
from dataclasses import MISSING, dataclass, field
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from ranker.errors import UserError, nearest

REWARDS = "ranker.rewards" if find_spec("ranker.rewards") else "rewards"  # installed: inside of the package
FOLDERS = {  # kind, which is also the name of its config section -> package
    "ranker": "ranker.rankers", "decision": "ranker.decisions", "draw": "ranker.draws",
    "objective": "ranker.objectives", "lesson": "ranker.lessons", "lora": "ranker.adapters", "reward": REWARDS}
SECTIONS = ("ranker", "draw", "objective", "lora")  # sections of a config that name one plug-in

_SHORT = reprlib.Repr()  # a few anchors of YAML can stand for more text than memory holds
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 2, 60, 60


def setting(default=MISSING, low=None, high=None, choices=None, file=False):
    """Return a field with its range (inclusive) or its choices; without a default it must be given.

    `file`: its value names a file, whose contents belong to what is learned from.
    """
    metadata = {"low": low, "high": high, "choices": choices, "file": file}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def names(kind: str) -> list[str]:
    """Return the names of all plug-ins of a kind: the files in its folder."""
    found = pkgutil.iter_modules(import_module(FOLDERS[kind]).__path__)
    return sorted(module.name for module in found if not module.name.startswith("_"))


@cache
def module(kind: str, name: str, where: str = "config") -> ModuleType:
    """Import a plug-in and hold it against its contract. Raise UserError for an unknown name or what is missing."""
    if name not in names(kind):
        raise UserError(f"{where}: unknown {kind} '{name}'{nearest(str(name), names(kind))}")
    found, folder = import_module(f"{FOLDERS[kind]}.{name}"), import_module(FOLDERS[kind])
    file = f"{found.__name__.replace('.', '/')}.py"
    for piece, wanted in folder.CONTRACT.items():
        if not hasattr(found, piece):
            if piece in folder.OPTIONAL:
                continue
            raise UserError(f"{file}: every {kind} needs {_described(piece, wanted)}; see {FOLDERS[kind]}/__init__.py")
        value = getattr(found, piece)
        if isinstance(wanted, tuple) and not callable(value):
            raise UserError(f"{file}: {piece} must be a function {_described(piece, wanted)}")
        if isinstance(wanted, tuple) and tuple(inspect.signature(value).parameters) != wanted:
            given = ", ".join(inspect.signature(value).parameters)
            raise UserError(f"{file}: {_described(piece, wanted)} is what every {kind} needs, not {piece}({given})")
        if isinstance(wanted, frozenset) and value not in wanted:
            raise UserError(f"{file}: {piece} must be one of {', '.join(map(str, sorted(wanted)))}, got {value!r}")
    if getattr(folder, "HAS_OPTIONS", True) and not dataclasses.is_dataclass(getattr(found, "Options", None)):
        raise UserError(f"{file}: every {kind} needs a dataclass Options, which may be empty")
    return found


def _described(piece: str, wanted: tuple | frozenset) -> str:
    return (piece if wanted is None else f"{piece}({', '.join(wanted)})" if isinstance(wanted, tuple)
            else f"{piece}, one of {', '.join(map(str, sorted(wanted)))}")


@dataclass(frozen=True)
class Plugin:
    """Hold a plug-in with its options. What its contract names is called without them: `ranker.calls(20)`."""

    kind: str
    name: str
    module: ModuleType
    options: object

    def __getattr__(self, piece: str):
        if piece.startswith("__"):
            raise AttributeError(piece)
        folder = import_module(FOLDERS[self.kind])
        found = getattr(self.module, piece) if hasattr(self.module, piece) else folder.OPTIONAL.get(piece, MISSING)
        if found is MISSING:
            raise AttributeError(f"{self.kind} {self.name} has no {piece}")
        wanted = folder.CONTRACT.get(piece, ())
        return partial(found, options=self.options) if isinstance(wanted, tuple) and "options" in wanted else found


def default(kind: str) -> str:
    """Return the name of the plug-in that a config without that section has."""
    return import_module(FOLDERS[kind]).DEFAULT


def load(kind: str, section: dict, where: str = "config") -> Plugin:
    """Return the plug-in of a config section, its options cast and checked. Raise UserError."""
    name = cast(section.get("name"), str, {}, f"{where}: {kind}.name")
    found = module(kind, name, where)
    prefix = f"reward.{name}" if kind == "reward" else kind
    return Plugin(kind, name, found, options(found, {k: v for k, v in section.items() if k != "name"}, where, prefix))


COMMON = ("weight", "tasks")  # options of every reward: see rewards/__init__.py


def reward_entry(entry: object) -> dict:
    """`top1_hit: 2.0` means `top1_hit: {weight: 2.0}`, and `top1_hit:` its defaults."""
    return entry if isinstance(entry, dict) else {} if entry is None else {"weight": entry}


def resolved_reward(name: str, entry: object, where: str = "config") -> dict:
    """Return the entry of a reward with its weight, its tasks and every option. Raise UserError."""
    entry, prefix = reward_entry(entry), f"{where}: reward.{name}"
    plugin = load("reward", {"name": name} | {k: v for k, v in entry.items() if k not in COMMON}, where)
    weight = cast(entry.get("weight", 1.0), float, {"low": 0.0}, f"{prefix}.weight")
    tasks = cast(entry.get("tasks", []), list[str], {}, f"{prefix}.tasks")
    return {"weight": weight, "tasks": tasks, **dataclasses.asdict(plugin.options)}


def resolved(kind: str, section: dict, where: str = "config") -> dict:
    """Return the section with every option of its plug-in. Raise UserError."""
    plugin = load(kind, section, where)
    return {"name": plugin.name, **dataclasses.asdict(plugin.options)}


def options(module: ModuleType, given: dict, where: str, prefix: str) -> object:
    """Return the `Options` of a plug-in with the values `given` in the section `prefix`. Raise UserError."""
    known = {f.name: f for f in dataclasses.fields(module.Options)}
    hints = typing.get_type_hints(module.Options)
    name = module.__name__.rpartition(".")[2]
    for key in given:
        if key not in known:
            raise UserError(f"{where}: {prefix} '{name}' has no option "
                            f"'{key}'{moved(prefix, str(key)) or nearest(str(key), known)}"
                            if prefix.partition(".")[0] != "reward" else
                            f"{where}: {prefix} has no option '{key}'{nearest(str(key), [*known, 'weight', 'tasks'])}")
    for key, field_ in known.items():
        if key not in given and field_.default is MISSING and field_.default_factory is MISSING:
            raise UserError(f"{where}: {prefix} needs its option '{key}': --{prefix}.{key}=value")
    try:
        return module.Options(**{key: cast(value, hints[key], known[key].metadata, f"{where}: {prefix}.{key}")
                                 for key, value in given.items()})
    except ValueError as error:  # of options that do not go together
        raise UserError(f"{where}: {prefix}: {error}") from None


# keys of older configs -> what they are now
RENAMED = {"train.objective": "objective.name", "rollout.states": "draw.name"}
HOMES = {"train": ("objective",), "rollout": ("draw",)}  # where what stood in a section went


def moved(section: str, key: str) -> str:
    """Return the tail of an error line for a key that is unknown where it stands and an option of a plug-in; else
    ''."""
    if f"{section}.{key}" in RENAMED:
        return f"; it is now {RENAMED[f'{section}.{key}']}"
    if section == "data" and key in names("lesson"):
        return f"; it is now a lesson: --data.lessons.{key}.OPTION=value"
    homes = {kind: [n for n in names(kind) if key in {f.name for f in dataclasses.fields(module(kind, n).Options)}]
             for kind in HOMES.get(section, SECTIONS) if kind != section}
    found = [f"{kind}.{key}, an option of {', '.join(having)}" for kind, having in homes.items() if having]
    return f"; it is now {' and '.join(found)}" if found else ""


def files(section: dict, kind: str) -> list[str]:
    """Return the files that the options of a section name."""
    plugin = load(kind, section)
    values = {f.name: getattr(plugin.options, f.name) for f in dataclasses.fields(plugin.options)
              if f.metadata.get("file")}
    return [value for value in values.values() if value]


def shown(value: object) -> str:
    """Return `value` as an error shows it, cut."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # an int of more digits than Python prints
        return "a huge number"


def cast(value: object, hint: type, limits: typing.Mapping, where: str):
    """Return `value` as type `hint` within `limits` (low, high, choices). Raise UserError."""
    if hint is bool:
        if not isinstance(value, bool):
            raise UserError(f"{where} must be true or false, got {shown(value)}")
    elif hint is str:
        if not isinstance(value, str):
            raise UserError(f"{where} must be text, got {shown(value)} (quote it)")
        unfit = re.search("[\x00-\x1f\x7f\ud800-\udfff]", value)  # the system would refuse it later, and less clearly
        if unfit or any(len(part.encode()) > 255 for part in value.split("/")):
            raise UserError(f"{where} must be a name or a path, got {shown(value)}")
    elif hint is dict:
        if not isinstance(value, dict):
            raise UserError(f"{where} must be a section of keys, got {shown(value)}")
    elif hint is list:
        if not isinstance(value, list):
            raise UserError(f"{where} must be a list, got {shown(value)}")
    elif typing.get_origin(hint) is list:
        value = _list(value, typing.get_args(hint)[0], where)
    else:  # int or float
        value = _number(value, hint, limits, where)
    choices = limits.get("choices")
    if choices and value not in choices:
        raise UserError(f"{where} must be one of {', '.join(filter(None, choices))}, "
                        f"got {shown(value)}{nearest(str(value), choices)}")
    return value


def _list(value: object, of: type, where: str) -> list:
    value = ([part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) and of is str
             else value)
    if not isinstance(value, list) or not all(isinstance(item, of) for item in value):
        raise UserError(f"{where} must be a list of {'names' if of is str else 'sections'}, got {shown(value)}")
    return value


def _number(value: object, hint: type, limits: typing.Mapping, where: str) -> int | float:
    number = value
    try:
        if not isinstance(value, bool):  # PyYAML leaves `1e-5` a string
            number = float(value) if isinstance(value, str) or abs(value) > 2**53 else value
    except (TypeError, ValueError, OverflowError):
        number = None
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
        raise UserError(f"{where} must be a number, got {shown(value)}")
    if hint is int and number != int(number):
        raise UserError(f"{where} must be a whole number, got {shown(value)}")
    number, low, high = hint(number), limits.get("low"), limits.get("high")
    if (low is not None and number < low) or (high is not None and number > high):
        bounds = f"at least {low}" if high is None else f"between {low} and {high}"
        raise UserError(f"{where} must be {bounds}, got {number}")
    return number
