"""Files that are never written half: each is written under a temporary name in its folder, flushed, then renamed."""

import contextlib
import errno
import fcntl
import glob
import hashlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, BinaryIO

from safetensors import SafetensorError

from ranker.errors import UserError

LOCK = "lock"  # name of the file that locks a folder, which one process at a time may write to


def shipped(name: str) -> Path:
    """Return a folder of data that comes with the code: inside of an installed package, beside it in the sources."""
    inside = Path(__file__).resolve().parent / name
    return inside if inside.is_dir() else inside.parent.parent / name


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise UserError, naming `path`, where the disk or the folder refuses to be written (full, read-only, gone).

    Everything that writes a user's files stands in this context.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot write {path}: {reason}; what was saved before is whole: make room there, "
                        "or make it writable, then type the same command again") from None


def refuse_read_only(folder: Path) -> None:
    """Raise UserError where a folder (or, as long as it does not exist, its parent) is read-only.

    It is better to know now than when the first result is there.
    """
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not os.access(there, os.W_OK):
        with writing(folder):
            raise OSError(errno.EROFS, f"{there} is read-only")


@contextlib.contextmanager
def open_whole(path: str | Path, mode: str = "w") -> Iterator[IO]:
    """Open a file to write step by step, as UTF-8 or (mode `wb`) bytes; it gets its name only when all went well.

    Raise UserError where it cannot be written. Temporary files that a killed process left there are removed.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
                if not _alive(left.suffixes[-2][1:]):
                    with contextlib.suppress(OSError):  # a file of another user, as in /tmp
                        left.unlink()
            with temporary.open(mode, encoding=None if mode == "wb" else "utf-8") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _alive(process: str) -> bool:
    """Tell whether a process of this machine has that number."""
    try:
        os.kill(int(process), 0)
    except (ValueError, OverflowError, PermissionError):  # no number, or a process of another user
        return True
    except ProcessLookupError:
        return False
    return True


def lock(folder: Path, sign: bool = True) -> BinaryIO:
    """Lock a folder for this process and return the open lock file; raise UserError where another process holds it.

    With `sign` the number of this process is written into the file. The system releases the lock when the process ends,
    however that happens.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("a+b", buffering=0)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        owner = file.read().decode().strip()
        file.close()
        raise UserError(f"{folder} is in use by process {owner}; wait for it, or take another folder") from None
    if sign:
        with writing(folder / LOCK):
            file.truncate(0)
            file.write(str(os.getpid()).encode())
    return file


def refuse_locked(folder: Path) -> None:
    """Raise UserError where another process holds a folder: it is better to know now than when a model is loaded."""
    if (folder / LOCK).exists():
        lock(folder, sign=False).close()


def write_bytes(path: str | Path, data: bytes) -> None:
    with open_whole(path, "wb") as file:
        file.write(data)


def write_text(path: str | Path, text: str) -> None:
    write_bytes(path, text.encode("utf-8"))


def write_figure(path: str | Path, figure) -> None:
    """Write a matplotlib figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    write_bytes(path, buffer.getvalue())


def sha256(path: str | Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
