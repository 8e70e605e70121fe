"""Files that are whole or not there: written beside their place, synced, then renamed."""

import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any


def atomic_write(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file in the same folder, then put it in place of `path` in one step.

    A crash or a full disk leaves the previous file as it was and no half-written one.

    Raises:
        ValueError: something that is not a file stands there.
    """
    path = path.resolve()
    if path.exists() and not path.is_file():
        raise ValueError(f"{path}: stands where a file should be written, and is none: choose another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}-{zlib.crc32(path.name.encode()):08x}.tmp")
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())  # some writers create their files for the owner alone
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the rename itself must reach the disk
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, UTF-8."""
    atomic_write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, data: Any, *, indent: int | None = None) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(data, indent=indent, ensure_ascii=False, allow_nan=False))


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: the file is missing or not JSON; the message names it and what to do.
    """
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: not a JSON text ({error.reason} at byte {error.start}): give the annotation file itself"
        ) from None
    if text.startswith("version https://git-lfs"):
        raise ValueError(f"{path}: a Git LFS pointer, not the file itself: run 'git lfs pull' where the data came from")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        what = "is empty" if not text.strip() else f"breaks at line {error.lineno}, column {error.colno}: {error.msg}"
        raise ValueError(f"{path}: the JSON {what}. Export or download it again") from None
    except RecursionError:
        raise ValueError(f"{path}: the JSON is nested too deeply to be annotations") from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
