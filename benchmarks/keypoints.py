"""Keypoint R-CNN, small, on real people: twenty images by heart, and a training on all, from scratch.

    python -m benchmarks.keypoints --data people-keypoints --out runs/keypoints --part heart|whole

Stopped and called again, it goes on.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.measure import check_sections, report
from maskwright.comparison.training import train_run
from maskwright.formats.catalog import images_to_learn_from, open_split
from maskwright.formats.coco import to_coco
from maskwright.formats.files import write_json
from maskwright.recipes import DataOptions, find_recipe

PAGE = Path(__file__).parent.parent / "docs" / "mask-rcnn.md"
COMMAND = "python -m benchmarks.keypoints --data people-keypoints --out runs/keypoints --part {}"
SYSTEM = "keypoint-rcnn-small"
HEART = 20
SMALLER = ["arguments.short_px=320", "arguments.long_px=512", "precision=bfloat16", "optimizer.lr=0.001"]


def twenty(options: argparse.Namespace) -> Path:
    """A data set of the first images with visible keypoints; what is validated on is what is learnt from."""
    folder = Path(options.out) / "twenty"
    whole = open_split(options.data, "train")
    some = whole.subset(images_to_learn_from(whole, "keypoints")[:HEART])
    data = to_coco(some)
    for split, place in (("train", "images"), ("val", "again")):  # splits may not share files
        target = folder / "images" / place
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            target.symlink_to(whole.image_folder.resolve())
        images = [{**entry, "file_name": f"{place}/{entry['file_name']}"} for entry in data["images"]]
        write_json(folder / "annotations" / f"{split}.json", {**data, "images": images})
    return folder


def trained(data: Path, out: Path, changes: list[str]) -> list[dict[str, Any]]:
    """Lines of the metrics of a run."""
    recipe = find_recipe(SYSTEM).with_changes([*SMALLER, *changes])
    recipe = recipe.model_copy(update={"data": DataOptions(path=str(data))})
    train_run(recipe, out, device="auto", console=Console(markup=False))
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def rows_of(lines: list[dict[str, Any]]) -> list[list[str]]:
    """Each evaluation in percent."""
    rows = [["step", "keypoint AP", "AP50", "AP75", "box AP", "AP50"]]
    for line in lines:
        points, boxes = line["keypoints"], line["bbox"]
        values = [points["ap"], points["ap50"], points["ap75"], boxes["ap"], boxes["ap50"]]
        rows.append([str(line["step"]), *(f"{100 * value:.2f}" for value in values)])
    return rows


def heart(options: argparse.Namespace) -> None:
    """Twenty images."""
    changes = ["epochs=160", "batch_size=4", "evaluate_every=40", "ema_decay=0.98"]
    changes += [
        "augment.crop_px=null",
        "fit_sizes=false",
        "augment.jitter=[1.0, 1.0]",
        "augment.color=0",
        "augment.horizontal_flip=0",
    ]
    lines = trained(twenty(options), options.out / "heart", changes)
    notes = f"The first {HEART} training images with visible keypoints, scored on themselves; short side 320 px."
    report("keypoints-heart", COMMAND.format("heart"), rows_of(lines), notes, page=PAGE)


def whole(options: argparse.Namespace) -> None:
    """All images, scored on those of validation."""
    changes = ["epochs=48", "batch_size=4", "evaluate_every=8", "train_on=keypoints"]
    changes += ["augment.crop_px=320", "augment.jitter=[0.5, 1.25]"]
    lines = trained(options.data, options.out / "whole", changes)
    notes = "From scratch on the 464 training images with visible keypoints, 116 steps an epoch: windows of 320 px of images "
    notes += "whose short side is 160 to 400 px. Validation: 320 px, 160 images, 137 of them with visible keypoints."
    report("keypoints-whole", COMMAND.format("whole"), rows_of(lines), notes, page=PAGE)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/keypoints"))
    parser.add_argument("--part", choices=["heart", "whole"], required=True)
    chosen = parser.parse_args()
    check_sections(PAGE, ["keypoints-heart", "keypoints-whole"])
    {"heart": heart, "whole": whole}[chosen.part](chosen)
