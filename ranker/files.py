"""Files that are never half written: a temporary name in the same folder, flush, rename."""

import hashlib
import os
from pathlib import Path

from ranker.errors import UserError


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write `data` to `path`, whole or not at all. Raises UserError when the disk or the folder refuses."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None


def write_text(path: str | Path, text: str) -> None:
    write_bytes(path, text.encode("utf-8"))


def sha256(path: str | Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
