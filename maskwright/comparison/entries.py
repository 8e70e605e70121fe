"""Entries of a comparison as people write them."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from maskwright.recipes import RECIPES, find_recipe


@dataclass(frozen=True)
class Entry:
    """One row of a comparison: a system to train, runs that are there already, or somebody's results.

    Args:
        name: what it is called in the report.
        system: what to train, a system or a recipe; None for the others.
        runs: run folders or weights files, each a seed.
        results: COCO results files, each a seed.
        changes: texts like "arguments.margin=fixed" for a recipe; like "cut=log" for runs.
    """

    name: str
    system: str | None = None
    runs: tuple[Path, ...] = ()
    results: tuple[Path, ...] = ()
    changes: tuple[str, ...] = ()

    @property
    def slug(self) -> str:
        """The name as part of a file name."""
        return "".join(c if c.isalnum() or c in "-." else "-" for c in self.name.lower()).strip("-.")


def parse_entry(text: str) -> Entry:
    """An entry as it is written on the command line: "[NAME: ]WHAT... [name=value...]".

    WHAT is a system; or one or more run folders, or COCO results files, each made with another seed. What follows changes
    recipe fields of a system, or arguments of runs.

    Raises:
        ValueError: neither a system nor a file, or a mixture of them.
    """
    name, colon, rest = text.partition(": ")
    try:
        words = shlex.split(rest if colon else text)
    except ValueError as error:
        raise ValueError(f"got the entry {text!r}: {str(error).lower()}: quote it as for a shell") from None
    changes = tuple(word for word in words if "=" in word and not Path(word).exists())
    what = [word for word in words if word not in changes]
    if not what:
        raise ValueError(
            f"got the entry {text!r}, expected a system, run folders or results files, for example mask-rcnn-small"
        )
    unknown = [word for word in what if word in RECIPES or not Path(word).exists()]
    if unknown == what and len(what) == 1:
        if not (what[0] in RECIPES or ":" in what[0]) and ("/" in what[0] or what[0].endswith(".json")):
            raise ValueError(f"{what[0]}: there is no such run folder or results file")
        find_recipe(what[0])  # complains of systems that do not exist
        return Entry(name if colon else " ".join(words), system=what[0], changes=changes)
    if unknown:
        raise ValueError(
            f"got the entry {text!r}, but {unknown[0]} does not exist: name run folders or results files of one kind"
        )
    paths = tuple(map(Path, what))
    usual = name if colon else " ".join([*(path.stem if path.is_file() else path.name for path in paths), *changes])
    if all(path.suffix == ".json" for path in paths):
        if changes:
            raise ValueError(f"got the entry {text!r}: results files have no arguments to change: leave {changes[0]!r} away")
        return Entry(usual, results=paths)
    if any(path.suffix == ".json" for path in paths):
        raise ValueError(f"got the entry {text!r}: runs and results files cannot be seeds of one entry: make them two")
    return Entry(usual, runs=paths, changes=changes)


def parse_entries(texts: Sequence[str]) -> list[Entry]:
    """All entries of a comparison.

    Raises:
        ValueError: an entry that is not one, a name without letters, or two of the same name.
    """
    entries = [parse_entry(text) for text in texts]
    slugs = [entry.slug for entry in entries]
    if "" in slugs:
        raise ValueError(f"got the name {entries[slugs.index('')].name!r}, expected one with a letter or digit for its files")
    twice = [entry.name for entry in entries if slugs.count(entry.slug) > 1]
    if twice:
        raise ValueError(f'two entries are called {twice[0]!r}: give them names, like "mine: {texts[0]}"')
    return entries
