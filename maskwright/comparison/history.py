"""What run folders tell about their training."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from maskwright.reports.ranking import Facts, decisive
from maskwright.systems import Task
from maskwright.training.run import METRICS, RECIPE


def with_history(facts: Facts, folders: Sequence[Path]) -> Facts:
    """What run folders tell about their training."""
    histories = [tuple(_points(folder / METRICS, Task(facts.task))) for folder in folders]
    lengths = [history[-1]["time_s"] for history in histories if history]
    recipe = folders[0] / RECIPE
    return replace(
        facts,
        steps=int(histories[0][-1]["step"]) if histories[0] else None,
        training_s=sum(lengths) / len(lengths) if lengths else None,
        histories=tuple(histories),
        recipe=recipe.read_text(encoding="utf-8") if recipe.is_file() else None,
    )


def _points(path: Path, task: Task) -> Iterable[dict[str, float]]:
    """The training curve of a run, steps of all stages in a row."""
    answers = {"keypoints": task.has_keypoints, "segm": task.has_masks, "bbox": True}
    if not path.is_file():
        return
    before, stage, last = 0, 0, 0
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:  # cut off when a run was killed
            continue
        if not isinstance(line, dict) or not {"stage", "step", "time_s", "train_loss", "val_loss"} <= line.keys():
            continue
        if line["stage"] != stage:
            before, stage = before + last, line["stage"]
        last = line["step"]
        scored = next((line[kind] for kind, is_answered in answers.items() if is_answered and kind in line), None)
        value = -1.0  # the metrics of a stage that is not scored are missing
        if scored is not None:
            value = scored["ar"][-1] if decisive(task) == "ar" else scored["ap"]
        yield {
            "step": float(before + last),
            "time_s": line["time_s"],
            "ap": value if value >= 0 else math.nan,
            "train_loss": sum(line["train_loss"].values()),
            "val_loss": sum(line["val_loss"].values()),
        }
