"""Reading of other people's files: tables and JSON lines, gzipped or not, with file and line in every error."""

import csv
import gzip
import html
import json
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from ranker.errors import UserError

csv.field_size_limit(2**31 - 1)  # a prompt may be longer than the 128 kB that csv allows


@contextmanager
def open_text(path: Path, encoding: str = "utf-8-sig") -> Iterator[TextIO]:
    """Open a text file, gzipped or not. Raise UserError, naming the file, for whatever goes wrong while it is read."""
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding=encoding, newline="") as file:
            yield file
    except EOFError:
        raise UserError(f"{path}: the gzip file is cut short; download it again") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.object[error.start]:#x}); "
                        "convert it first, as with iconv -t utf-8") from None
    except (OSError, csv.Error, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


def columns(path: Path, separator: str, names: tuple[str, ...]) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, the named columns) of a table with a header. Raise UserError for a missing column.

    A comma-separated table may have quotes, and inside them line breaks.
    """
    quoting = csv.QUOTE_MINIMAL if separator == "," else csv.QUOTE_NONE
    with open_text(path) as file:
        reader = csv.reader(file, delimiter=separator, quoting=quoting, strict=True)
        header = next(reader, [])
        missing = [name for name in names if name not in header]
        if missing:
            raise UserError(f"{path}:1: no column '{missing[0]}' (found: {', '.join(header)})")
        places = [header.index(name) for name in names]
        line = reader.line_num + 1  # where the next record begins
        for row in reader:
            if row:
                if len(row) != len(header):
                    raise UserError(f"{path}:{line}: {len(row)} columns, expected {len(header)}")
                yield line, [row[i] for i in places]
            line = reader.line_num + 1


def header(path: Path, separator: str) -> list[str]:
    """Return the column names of a table."""
    with open_text(path) as file:
        return next(csv.reader(file, delimiter=separator), [])


def json_lines(path: Path, parse: Callable[[str], object] = json.loads) -> Iterator[tuple[int, dict]]:
    """Yield (line number, object) of a JSON lines file, without empty lines. `parse` reads a line."""
    with open_text(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = parse(line)
            except (ValueError, SyntaxError, RecursionError, MemoryError) as error:  # of json and literal_eval
                raise UserError(f"{path}:{number}: not JSON ({error})") from None
            if not isinstance(record, dict):
                raise UserError(f"{path}:{number}: expected a JSON object, got {type(record).__name__}")
            yield number, record


def json_file(path: Path) -> object:
    """Return the value of a file that contains a single JSON value. Raise UserError for any other file."""
    with open_text(path) as file:
        content = file.read()
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}:{getattr(error, 'lineno', 1)}: not JSON ({error})") from None


def find(folder: Path, *patterns: str, but: str | None = None) -> Path | None:
    """Return the first file in a folder that fits one of the patterns, in their order, and not the pattern `but`.

    Files may end with `.gz` besides. Return None where no file fits; raise UserError where there is no folder.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}")
    found = [path for pattern in patterns for suffix in ("", ".gz") for path in sorted(folder.glob(pattern + suffix))
             if but is None or not path.match(but)]
    return found[0] if found else None


def number(text: str, where: str, what: str) -> float:
    """Return a finite number. Raise UserError, which says where the number should stand, for another text."""
    try:
        value = float(text)
    except (TypeError, ValueError):
        value = float("nan")
    if value - value != 0:  # for NaN and the infinities
        raise UserError(f"{where}: {what} {text!r} is no number")
    return value


def words(value: object, where: str, what: str) -> str:
    """Return a text that is not blank and can be written. Raise UserError, which says where, for any other value."""
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where}: {what} must be a text, got {value!r}")
    if re.search(r"[\ud800-\udfff]", value):
        raise UserError(f"{where}: {what} holds half of a surrogate pair (\\ud800 to \\udfff), which is no text")
    return value


def clean(text: str) -> str:
    """Return a title without HTML entities, tags and runs of spaces."""
    return " ".join(re.sub(r"<[a-zA-Z/!][^<>]*>", " ", html.unescape(html.unescape(text))).split())
