"""Reading of other people's files: tables and JSON lines, with file and line in every error.

`open_text` opens all of them: gzipped (whether the name says so or not), with a byte-order mark, or a pipe, each read
once from its start to its end. Its encoding is tried line by line: UTF-8 first, then the one that the layout or the
user declares, else Windows-1252, which most files of Western Europe have that are not UTF-8. That last one is a guess:
it is told in a warning, and a line whose words would come out wrong (as Cyrillic or Chinese do) is refused instead.
"""

import csv
import difflib
import gzip
import html
import io
import itertools
import json
import logging
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TextIO

from ranker.errors import UserError

csv.field_size_limit(2**31 - 1)  # a prompt may be longer than the 128 kB that csv allows
log = logging.getLogger(__name__)

BLOCK = 1 << 20  # bytes that are checked together
GUESS = "cp1252"
MARKS = {b"\xff\xfe\0\0": "utf-32", b"\0\0\xfe\xff": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
OTHERS = {b"PK\3\4": "a zip archive (or an Excel file, to be saved as CSV)", b"PAR1": "a parquet file",
          b"\xfd7zXZ": "compressed by xz", b"\x28\xb5\x2f\xfd": "compressed by zstd"}
# What the guess makes of other encodings: three signs beyond ASCII in a row, the bytes of UTF-8, capitals and signs
# within words, letters that Western Europe hardly has.
_UNLIKELY = re.compile("[^\0-\x7f‘’“”–—…€]{3}|[ÃÂâ][^\0-\x7fÀ-ÿ]|[a-z][À-ÖØ-ÞŠŽŒŸ‚„†‡ˆ‰‹ƒ]|[þðýÞÐÝ]"
                       "|[ìù][a-z]|£[a-z]|[a-zA-Zà-ÿ][¡¢£¤¥¦§¨¬¯±³¶¸¹¼½¾¿×÷ˆ˜][a-zA-Zà-ÿ]")


@contextmanager
def unpacked(path: Path) -> Iterator[BinaryIO]:
    """Open a file or a pipe, gzipped (whatever its name says) or not, to read its bytes from start to end."""
    with path.open("rb") as raw:
        with gzip.GzipFile(fileobj=raw) if raw.peek(2)[:2] == b"\x1f\x8b" else raw as file:
            yield file


@contextmanager
def open_text(path: Path, encoding: str | None = None) -> Iterator[TextIO]:
    """Open a text file, gzipped or not, or a pipe; `encoding` is tried for what is not UTF-8.

    Line ends stay as they are. Raise UserError, naming the file, for whatever goes wrong while it is read.
    """
    path = Path(path)
    try:
        with unpacked(path) as file:
            yield _decoded(file, path, encoding)
    except EOFError:
        raise UserError(f"{path}: the gzip file is cut short; download it again") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: cannot be read ({error.encoding}: {error.reason})") from None
    except (OSError, csv.Error, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


def _decoded(file: BinaryIO, path: Path, encoding: str | None) -> TextIO:
    """Return the text of an open file. Raise UserError for a file that is none."""
    start = file.peek(8)[:8]
    for mark, kind in OTHERS.items():
        if start.startswith(mark):
            raise UserError(f"{path}: {kind}, not text; unpack or convert it first")
    wide = next((name for mark, name in MARKS.items() if start.startswith(mark)), None)
    if not wide and b"\0" in start[:2]:  # UTF-16 of ASCII letters, without its mark
        wide = "utf-16-be" if start[0] == 0 else "utf-16-le"
    if wide:
        return io.TextIOWrapper(file, wide, newline="")
    return io.TextIOWrapper(io.BufferedReader(_AsUtf8(file, path, encoding), 1 << 16), "utf-8-sig", newline="")


class _AsUtf8(io.RawIOBase):
    """The bytes of a file as UTF-8, block by block; lines that are not UTF-8 are decoded by another encoding."""

    def __init__(self, file: BinaryIO, path: Path, encoding: str | None):
        self.file, self.path, self.encoding = file, path, encoding
        self.block, self.lines, self.told = memoryview(b""), 0, bool(encoding)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        if not self.block:
            block = self.file.read(BLOCK) + self.file.readline()  # whole lines
            self.block = memoryview(self.checked(block))
            self.lines += block.count(b"\n")
        count = min(len(buffer), len(self.block))
        buffer[:count], self.block = self.block[:count], self.block[count:]
        return count

    def checked(self, block: bytes) -> bytes:
        """Return a block as UTF-8. Raise UserError with file and line for what can't be read."""
        if _is_utf8(block):
            return block
        return b"\n".join(line if _is_utf8(line) else self.decoded(line, number).encode()
                          for number, line in enumerate(block.split(b"\n"), self.lines + 1))

    def decoded(self, line: bytes, number: int) -> str:
        """Return the text of a line that is not UTF-8."""
        where = f"{self.path}:{number}"
        try:
            text = line.decode(self.encoding or GUESS)
        except (UnicodeDecodeError, LookupError):
            text = None
        if text is None or not self.encoding and _UNLIKELY.search(text):
            place = _first_bad(line)
            raise UserError(f"{where}: not UTF-8 text (byte {line[place]:#x} behind "
                            f"{line[max(place - 20, 0):place].decode(errors='ignore')!r}) nor "
                            f"{self.encoding or 'certainly Western European'}; convert it first, as with "
                            "iconv -f ENCODING -t utf-8")
        if not self.told:
            self.told, place = True, re.search("[^\0-\x7f]", text).start()
            log.warning("%s: not UTF-8, read as Windows-1252 (%r); if that is wrong, convert the file first, as with "
                        "iconv -f ENCODING -t utf-8", where, text[max(place - 10, 0):place + 10])
        return text


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _first_bad(line: bytes) -> int:
    """Return the place of the first byte that is not UTF-8."""
    try:
        line.decode()
    except UnicodeDecodeError as error:
        return error.start
    return 0


def rows(path: Path, encoding: str | None = None, quoted_tabs: bool = False) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, fields) of a table, its header first. Raise UserError for a row of another length.

    Tabs separate where the header has tabs, else commas, or semicolons where those are more. Fields between commas or
    semicolons may have quotes, and inside them line breaks; with `quoted_tabs` a field between tabs may be quoted too.
    """
    with open_text(path, encoding) as file:
        first = file.readline()
        separator = "\t" if "\t" in first else max(",;", key=first.count)
        reader = csv.reader(itertools.chain([first], file), delimiter=separator, strict=True,
                            quoting=csv.QUOTE_NONE if separator == "\t" else csv.QUOTE_MINIMAL)
        line, width = 1, None  # where the next record begins, and how many fields it must have
        try:
            for row in reader:
                if row or width is None:
                    width = len(row) if width is None else width
                    if len(row) != width:
                        raise UserError(f"{path}:{line}: {len(row)} columns, expected {width}")
                    yield line, [unquoted(text) for text in row] if quoted_tabs and separator == "\t" else row
                line = reader.line_num + 1
        except csv.Error as error:
            raise UserError(f"{path}:{line}: {error}") from None


def unquoted(text: str) -> str:
    """Return a field without the quotes around it, if all quotes inside it are doubled."""
    return text[1:-1].replace('""', '"') if re.fullmatch(r'"(?:[^"]|"")*"', text) else text


def columns(path: Path, names: Sequence[str | tuple[str, ...]], called: dict[str, str] | None = None
            ) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, the named columns) of a table with a header. Raise UserError for a missing column.

    A name may be a tuple of alternatives; `called` tells what the file calls a column (`--columns`).
    """
    table = rows(path)
    _, header = next(table, (1, []))
    places = [place(header, name, f"{path}:1", called) for name in names]
    for line, row in table:
        yield line, [row[i] for i in places]


def place(header: Sequence[str], names: str | tuple[str, ...], where: str, called: dict[str, str] | None = None,
          option: str = "--columns {}=") -> int:
    """Return the place of a column, with or without a type of RecBole behind its name (`title:token_seq`).

    Raise UserError, which tells the columns found and the option that names another.
    """
    names = (names,) if isinstance(names, str) else names
    wanted = next(([called[name]] for name in names if called and name in called), names)
    for name in wanted:
        for known in (list(header), [bare(column) for column in header]):
            if name in known:
                return known.index(name)
    raise _missing("column", wanted[0], header, where, option.format(names[0]))


def bare(column: str) -> str:
    """Return the name of a column without the type that RecBole writes behind it."""
    return re.sub(r":(token|float)(_seq)?$", "", column.strip())


def field(record: dict, name: str, where: str, called: dict[str, str] | None = None) -> object:
    """Return a field of a record. Raise UserError as `place` does where the record has no such field."""
    wanted = (called or {}).get(name, name)
    if wanted not in record:
        raise _missing("field", wanted, record, where, f"--columns {name}=")
    return record[wanted]


def _missing(kind: str, wanted: str, found: Iterable[str], where: str, option: str) -> UserError:
    """Return the error of a name that is not there: what is, and the option that names it."""
    found = list(map(str, found))
    near = difflib.get_close_matches(wanted, found, n=1, cutoff=0.5)
    return UserError(f"{where}: no {kind} '{wanted}' (found: {', '.join(found)}); name it: "
                     f"{option}{near[0] if near else kind.upper()}")


def parquet(path: Path) -> Iterator[tuple[str, dict]]:
    """Yield (file:number, row) from a parquet file. Raise UserError where pyarrow is missing or the file is broken."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{path}: parquet needs pyarrow (pip install pyarrow), "
                        "or convert the file to JSON lines or CSV") from None
    try:
        batches = pyarrow.parquet.ParquetFile(path).iter_batches(1000)
        for count, row in enumerate((row for batch in batches for row in batch.to_pylist()), 1):
            yield f"{path}:{count}", row
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None


def json_lines(path: Path, parse: Callable[[str], object] = json.loads) -> Iterator[tuple[int, dict]]:
    """Yield (line number, object) of a JSON lines file, without empty lines. `parse` reads a line."""
    with open_text(path) as file:
        yield from _objects(file, path, parse)


def json_records(path: Path) -> Iterator[tuple[int, dict]]:
    """Yield (line number, object) of a JSON lines file or of a file with one JSON list, which is line 1."""
    with open_text(path) as file:
        first = file.readline()
        if not first.lstrip().startswith("["):
            yield from _objects(itertools.chain([first], file), path, json.loads)
            return
        for number, record in enumerate(_value(first + file.read(), path), 1):
            if not isinstance(record, dict):
                raise UserError(f"{path}: entry {number} of the list: expected a JSON object, got "
                                f"{type(record).__name__}")
            yield 1, record


def _objects(lines: Iterable[str], path: Path, parse: Callable[[str], object]) -> Iterator[tuple[int, dict]]:
    for number, line in enumerate(lines, 1):
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
        return _value(file.read(), path)


def _value(content: str, path: Path) -> object:
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
    value = finite(text)
    if value is None:
        raise UserError(f"{where}: {what} {text!r} is no number")
    return value


def finite(value: object) -> float | None:
    """Return a value as a finite number, or None for what is none."""
    try:
        value = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return value if value - value == 0 else None  # NaN and the infinities have no difference


def words(value: object, where: str, what: str) -> str:
    """Return a text that is not blank and can be written. Raise UserError, which says where, for any other value."""
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where}: {what} must be a text, got {value!r}")
    if _HALF.search(value):
        raise UserError(f"{where}: {what} holds half of a surrogate pair (\\ud800 to \\udfff), which is no text")
    return value


def an_id(value: object, where: str, what: str) -> str:
    """Return an id as text, since some files write ids as numbers. Raise UserError for an id with spaces or none."""
    text = str(value) if type(value) in (int, str) else ""
    if text.split() != [text]:
        raise UserError(f"{where}: {what} must be an id without spaces, got {value!r}")
    return text


def short_ids(path: Path, names: Iterable[str]) -> dict[str, str]:
    """Return name -> the name without spaces. Raise UserError for an empty name, or two names that become the same."""
    found: dict[str, str] = {}
    for name in names:
        other = found.setdefault("_".join(name.split()), name)
        if other != name or not name.strip():
            raise UserError(f"{path}: the names '{other}' and '{name}' would have one id" if name.strip()
                            else f"{path}: a name is empty")
    return {name: short for short, name in found.items()}


def usable(value: object) -> bool:
    """Tell whether a value is a text that is not blank and can be written."""
    return isinstance(value, str) and bool(value.strip()) and not _HALF.search(value)


def clean(text: str) -> str:
    """Return a passage without HTML entities and runs of spaces; what stands between < and > may be its content."""
    return " ".join(html.unescape(text).split())


def clean_title(text: str) -> str:
    """Return a scraped title without HTML entities, tags of HTML (also those that nothing closes) and runs of spaces.

    Only names of HTML's own elements are tags: a title may have words between < and >.
    """
    return " ".join(_TAGS.sub(" ", html.unescape(html.unescape(text))).split())


_HALF = re.compile(r"[\ud800-\udfff]")
_NAME = ("a|abbr|article|aside|b|big|blockquote|body|br|button|center|cite|code|dd|div|dl|dt|em|embed|figure|font"
         "|footer|form|h[1-6]|head|header|hr|html|i|iframe|img|input|kbd|label|li|link|main|meta|nav|noscript|object|ol"
         "|option|p|pre|q|s|samp|script|section|select|small|span|strike|strong|style|sub|sup|svg|table|tbody|td"
         "|textarea|tfoot|th|thead|title|tr|tt|u|ul|var|video|wbr")
_TAGS = re.compile(
    rf"<!--.*?(?:-->|$)|<![a-z][^<>]*>|</?(?:{_NAME})(?:\s[^<>]*=[^<>]*)?\s*/?>"
    rf"|<(?:{_NAME})(?:\s+[\w:-]+\s*=\s*(?:\"[^\"<>]*(?:\"|$)|'[^'<>]*(?:'|$)|[^\s<>\"']*))+\s*"  # its > is missing
    rf"|</(?:{_NAME})?\s*$|<(?:br|div|em|font|img|li|span|strong|table|td|tr|ul)\s*/?\s*$",
    re.IGNORECASE | re.DOTALL)
