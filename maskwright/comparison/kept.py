"""What was made before and lies in the folder of a comparison is not made again."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from maskwright.formats.files import read_json, write_json


def kept(path: Path, key: Mapping[str, Any], make: Callable[[], Any]) -> Any:
    """What was made before and written to a file, if it was made of the same things; else it is made now.

    Args:
        key: all that the answer depends on, as JSON holds it.
    """
    if path.is_file():
        known = read_json(path)
        if isinstance(known, dict) and known.get("key") == key and "answer" in known:
            return known["answer"]
    answer = make()
    write_json(path, {"key": key, "answer": answer})
    return answer


def stamp(path: Path) -> list[str | int]:
    """What tells one state of a file from another."""
    state = path.stat()
    return [str(path.resolve()), state.st_size, state.st_mtime_ns]
