"""What is to be compared, on what, and how: what every step of a comparison reads."""

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from maskwright.comparison.entries import Entry
from maskwright.comparison.plan import PLAN
from maskwright.metrics.overlaps import Kind
from maskwright.recipes import DataOptions, find_recipe
from maskwright.systems import Task, find_builder
from maskwright.training.timing import Budget

RANKINGS: Mapping[str, tuple[Task, tuple[Kind, ...]]] = {
    "boxes": (Task.BOXES, ("bbox",)),
    "masks": (Task.INSTANCES, ("bbox", "segm", "boundary")),
    "keypoints": (Task.KEYPOINTS, ("bbox", "keypoints")),
}
"""What entries of several tasks can be ranked by, and what they are then scored on."""
DECIDES: Mapping[str, Kind] = {"boxes": "bbox", "masks": "segm", "keypoints": "keypoints"}


@dataclass(frozen=True, eq=False)
class Request:
    """What was asked for.

    Args:
        words: the entries as they were written.
        data: everything is scored on its val split.
        out: the folder to write into.
        budget: how long each run is trained.
        seeds: runs of each system that is trained.
        changes: recipe fields for all that is trained.
        max_detections: limits on the detections of an image and class.
        by: a name in RANKINGS, or None: each by the finest it answers.
    """

    words: Sequence[str]
    entries: Sequence[Entry]
    data: DataOptions
    out: Path
    budget: Budget
    seeds: int
    changes: Sequence[str]
    max_detections: Sequence[int] | None
    by: str | None
    device: str
    console: Console

    def command(self) -> str:
        """What makes this comparison again."""
        words = ["maskwright", "compare", *self.words, "--data", self.data.path]
        for name, value in (
            ("--images", self.data.images),
            ("--val-fraction", self.data.val_fraction),
            ("--classes", None if self.data.classes is None else ",".join(self.data.classes)),
            ("--minutes", self.budget.minutes),
            ("--max-detections", None if self.max_detections is None else ",".join(map(str, self.max_detections))),
            ("--seeds", self.seeds),
            ("--by", self.by),
        ):
            if value is not None:
                words += [name, str(value)]
        for change in [*([] if self.budget.epochs is None else [f"epochs={self.budget.epochs}"]), *self.changes]:
            words += ["--set", change]
        return shlex.join([*words, "--out", str(self.out)])

    def check(self) -> None:
        """Make sure that there is something to do, that all that is trained can be ranked so, and that there is a place for it.

        A comparison goes into a folder of its own, and is one process.

        Raises:
            ValueError: nothing to compare, a ranking that is none, a system that does not answer what it is to be ranked by, a
                folder that is neither empty nor a comparison's, or several processes.
        """
        if not self.entries or self.seeds < 1:
            raise ValueError(
                "got nothing to compare: name at least one system, run folder or results file, and at least one seed"
            )
        if self.by is not None:
            _check_ranking(self.by, self.entries)
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError("compare is one process: start it without torchrun, or train runs with torchrun and compare those")
        out = self.out
        if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / PLAN).is_file())):
            raise ValueError(f"{out}: is not the folder of a comparison: choose another --out")


def _check_ranking(by: str, entries: Sequence[Entry]) -> None:
    if by not in RANKINGS:
        raise ValueError(f"got the ranking {by!r}, expected {', '.join(RANKINGS)}")
    for entry in entries:
        if entry.system:
            with torch.device("meta"):  # a network without numbers
                task = find_builder(find_recipe(entry.system).system)(num_classes=1).task
            lacks = {"masks": not task.has_masks, "keypoints": not task.has_keypoints}.get(by, False)
            if lacks or task == Task.PROPOSALS:
                raise ValueError(f"{entry.name!r} answers {task}, which cannot be ranked by {by}: leave it out, or --by")
