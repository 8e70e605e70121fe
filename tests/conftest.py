"""Small data sets made on the spot, and the sample that ships with the repository."""

import inspect
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from maskwright.formats.catalog import open_split
from maskwright.formats.coco import to_coco
from maskwright.metrics.overlaps import as_rle
from maskwright.recipes import DataOptions, Recipe, find_recipe
from maskwright.runs import device
from maskwright.structures import Masks
from maskwright.systems import find_builder
from maskwright.training import train

if "PYTEST_XDIST_WORKER" in os.environ:  # tests in parallel, a core for each
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)

device.bfloat16_units = lambda: None  # float32 on every processor, where a test does not ask for less

EXAMPLES = Path(__file__).parent.parent / "examples" / "nuclei"


def make_coco(
    root: Path, *, images: int = 4, split: str = "train", size: tuple[int, int] = (96, 128), seed: int = 0
) -> dict[str, Any]:
    """Write `images` pictures of bright rectangles and discs, classes 7 "box" and 3 "disc", and return the annotations."""
    rng = np.random.default_rng(seed)
    height, width = size
    (root / "images").mkdir(parents=True, exist_ok=True)
    (root / "annotations").mkdir(exist_ok=True)
    data: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 7, "name": "box"}, {"id": 3, "name": "disc"}],
    }
    for i in range(images):
        pixels = rng.integers(0, 60, (height, width, 3), dtype=np.uint8)
        image_id = 100 * (i + 1) + (5000 if split == "val" else 0)
        for k in range(2):
            x, y = int(rng.integers(2, width - 42)), int(rng.integers(2, height - 42))
            w, h = (int(v) for v in rng.integers(24, 40, 2))
            if k == 0:
                mask = np.zeros((height, width), dtype=bool)
                mask[y : y + h, x : x + w] = True
                segmentation: Any = [[x, y, x + w, y, x + w, y + h, x, y + h]]
                box, area, category = [x, y, w, h], w * h, 7
            else:
                yy, xx = np.mgrid[:height, :width]
                mask = (yy - y - 16) ** 2 + (xx - x - 16) ** 2 <= 16**2
                masks = Masks.from_dense(torch.from_numpy(mask[None]))
                x0, y0, x1, y1 = masks.boxes()[0].tolist()
                segmentation = masks.to_rles()[0]
                box, area, category = [x0, y0, x1 - x0, y1 - y0], int(mask.sum()), 3
            pixels[mask] = (230, 60, 60) if k == 0 else (60, 230, 60)
            data["annotations"].append(
                {
                    "id": len(data["annotations"]) + 1,
                    "image_id": image_id,
                    "category_id": category,
                    "iscrowd": 0,
                    "area": area,
                    "bbox": box,
                    "segmentation": segmentation,
                }
            )
        name = f"{split}_{i}.png"
        Image.fromarray(pixels).save(root / "images" / name)
        data["images"].append({"id": image_id, "file_name": name, "height": height, "width": width})
    (root / "annotations" / f"{split}.json").write_text(json.dumps(data))
    return data


@pytest.fixture
def coco_folder(tmp_path: Path) -> Path:
    """A folder with a train and a val split of four small pictures each."""
    make_coco(tmp_path / "data", split="train", seed=1)
    make_coco(tmp_path / "data", split="val", seed=2)
    return tmp_path / "data"


CORNERS = ("left_top", "right_top", "right_bottom", "left_bottom")


def add_corners(root: Path) -> None:
    """Make the corners of all objects keypoints, one of them hidden; discs of the first image of a split have none."""
    for path in (root / "annotations").glob("*.json"):
        data = json.loads(path.read_text())
        for category in data["categories"]:
            category |= {"keypoints": CORNERS, "skeleton": [[1, 2], [2, 3], [3, 4], [4, 1]]}
        for entry in data["annotations"]:
            x, y, w, h = (int(v) for v in entry["bbox"])
            points = [(x, y, 2), (x + w - 1, y, 2), (x + w - 1, y + h - 1, 1), (x, y + h - 1, 2)]
            is_bare = entry["category_id"] == 3 and entry["image_id"] == data["images"][0]["id"]
            entry["keypoints"] = [0] * 12 if is_bare else [v for point in points for v in point]
        path.write_text(json.dumps(data))


@pytest.fixture
def corners_folder(coco_folder: Path) -> Path:
    """The same with keypoints."""
    add_corners(coco_folder)
    return coco_folder


@pytest.fixture
def write_annotations(tmp_path: Path) -> Callable[[Any], Path]:
    """Write annotations, or any text, to a file."""

    def write(data: Any) -> Path:
        path = tmp_path / "annotations.json"
        path.write_text(data if isinstance(data, str) else json.dumps(data))
        return path

    return write


@pytest.fixture
def console() -> Console:
    """A console that writes into memory; `console.file.getvalue()` is what a user would have seen."""
    return Console(file=io.StringIO(), width=200)


@pytest.fixture(scope="module")
def console_of_module() -> Console:
    """The same for fixtures that live longer than a test."""
    return Console(file=io.StringIO(), width=200)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of mask-rcnn-small on four small pictures, barely trained."""
    root = tmp_path_factory.mktemp("tiny")
    make_coco(root / "data", split="train", seed=1)
    make_coco(root / "data", split="val", seed=2)
    train(tiny_recipe(root / "data"), root / "run", device="cpu", console=Console(file=io.StringIO()))
    return root / "run"


def arguments_of(system: str, **wanted: Any) -> str:
    """A change of a recipe that sets those of the wanted arguments that the system has."""
    known = inspect.signature(find_builder(system)).parameters
    return f"arguments={json.dumps({name: value for name, value in wanted.items() if name in known})}"


def needs_proposals(system: str) -> bool:
    """Whether it is a detector on proposals."""
    return "has_masks" in inspect.signature(find_builder(system)).parameters


def truth_as_proposals(data: Path) -> Path:
    """A folder of proposals: every object of both splits, and a piece of the background."""
    folder = data.parent / "proposals"
    folder.mkdir(exist_ok=True)
    for split in ("train", "val"):
        dataset = open_split(data, split)  # type: ignore[arg-type]
        truth = [{**entry, "score": 0.9} for entry in to_coco(dataset)["annotations"]]
        for i, image_id in enumerate(dataset.image_ids.tolist()):
            corner = torch.zeros(1, *dataset.image_size(i), dtype=torch.bool)
            corner[0, :20, :20] = True
            code = Masks.from_dense(corner).to_rles()[0]
            other = {"image_id": image_id, "category_id": dataset.categories.ids[0], "bbox": [0, 0, 20, 20], "score": 0.5}
            truth.append({**other, "segmentation": code})
        results = [{**e, "segmentation": as_rle(e["segmentation"], dataset.image_size(0))} for e in truth]
        (folder / f"{split}.json").write_text(json.dumps(results))
    return folder


def tiny_recipe(data: Path, *changes: str, system: str = "mask-rcnn-small") -> Recipe:
    """A recipe that runs in seconds."""
    sizes = {"short_px": 64, "long_px": 96, "max_detections": 20, "num_proposals": 50, "num_candidates": 50}
    recipe = find_recipe(system).with_changes(
        ["epochs=1", "batch_size=2", "workers=0", "precision=float32", arguments_of(system, **sizes)]
    )
    if recipe.stages[0].patches is None:
        recipe = recipe.with_changes(["augment.crop_px=64", "fit_sizes=false"])
    else:
        recipe = recipe.with_changes(["patches.batches_per_epoch=2", "patches.validation_batches=1"])
    if needs_proposals(system):
        recipe = recipe.with_changes([f"proposals={truth_as_proposals(data)}"])
    return recipe.with_changes(changes).model_copy(update={"data": DataOptions(path=str(data))})
