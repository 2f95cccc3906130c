"""Print every setting with its meaning, range and default: `python -m ranker.settings [SECTION ...]`.

The meaning of a setting is the comment beside it, or above it, where it is defined; there is no other list of them.
"""

import dataclasses
import inspect
import re
import sys
import textwrap
import typing
from dataclasses import MISSING

from ranker import config, plugins
from ranker.errors import Parser, UserError, exit_status, nearest

WIDTH = 110
_FIELD = re.compile(r"\s+(\w+): [^#]*?(?:#\s*(.*))?$")


def comments(kind: type) -> dict[str, str]:
    """Return field -> the comment beside it, behind those above it, in the source of a dataclass."""
    found, above = {}, []
    for line in inspect.getsource(kind).splitlines():
        if line.lstrip().startswith("#"):
            above.append(line.lstrip("# "))
        elif match := _FIELD.fullmatch(line):
            found[match[1]] = " ".join([*above, match[2] or ""]).strip()
            above = []
        elif line.strip():
            above = []
    return found


def lines(kind: type, prefix: str) -> list[tuple[str, str, str]]:
    """Return (name, default, meaning and range) of each setting of a dataclass."""
    said, found, hints = comments(kind), [], typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        default = ("must be given" if field.default is MISSING and field.default_factory is MISSING else
                   plugins.shown(field.default if field.default is not MISSING else field.default_factory()).strip("'"))
        limits = [f"at least {field.metadata['low']:g}" if field.metadata.get("low") is not None else "",
                  f"at most {field.metadata['high']:g}" if field.metadata.get("high") is not None else "",
                  ", ".join(field.metadata.get("choices") or ())]
        limit = "; ".join(filter(None, limits)) or getattr(hints[field.name], "__name__", "")
        meaning = said.get(field.name, "")
        found.append((f"{prefix}{field.name}", default, f"{meaning} ({limit})" if meaning else f"({limit})"))
    return found


def sections() -> dict[str, list[tuple[str, str, str]]]:
    """Return section -> its settings; those of a plug-in stand under its kind and name."""
    found = {}
    for field in dataclasses.fields(config.Config):
        kind = typing.get_type_hints(config.Config)[field.name]
        if dataclasses.is_dataclass(kind):
            found[field.name] = lines(kind, f"{field.name}.")
        elif field.name in plugins.SECTIONS or field.name == "reward":
            for name in plugins.names(field.name):
                options = plugins.module(field.name, name).Options
                prefix = f"reward.{name}." if field.name == "reward" else f"{field.name}."
                found[f"{field.name}={name}"] = lines(options, prefix)
    found["roles"] = lines(config.Role, "roles.NAME.")
    found["stages"] = [("stages", "[]", "a list, the first steps of a run: each entry has `steps` and the sections that"
                        " differ from the config's, of draw, reward, objective, rollout and train (in the file)")]
    for name in plugins.names("lesson"):
        found[f"lesson={name}"] = lines(plugins.module("lesson", name).Options, f"data.lessons.{name}.")
    return found


def text(wanted: typing.Sequence[str] = ()) -> str:
    """Return the table of some sections, or of all. Raise UserError for a section that is none."""
    known, parts = sections(), []
    for name in wanted:
        if name not in {n.split("=")[0] for n in known} | known.keys():
            raise UserError(f"no section '{name}'{nearest(name, {n.split('=')[0] for n in known})}")
    for name, found in known.items():
        if not wanted or name in wanted or name.split("=")[0] in wanted:
            parts.append(f"{name}\n" + "".join(map(entry, found) if found else ["  no settings\n"]))
    return "\n".join(parts)


def entry(setting: tuple[str, str, str]) -> str:
    name, default, meaning = setting
    indent = " " * 6
    return f"  {name} = {default}\n" + textwrap.fill(meaning, WIDTH, initial_indent=indent,
                                                     subsequent_indent=indent) + "\n"


def main() -> None:
    parser = Parser(prog="python -m ranker.settings", description=__doc__)
    parser.add_argument("sections", nargs="*", help="such as train, rollout, objective, ranker=sliding (default: all)")
    print(text(parser.parse_args().sections))


if __name__ == "__main__":
    sys.exit(exit_status(main))
