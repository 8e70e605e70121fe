"""How long and with how much memory a COCO-sized results file is scored and reported: 5,000 images with 100 detections each.

    python -m benchmarks.evaluation

Shapes, classes and scores are made up; images are not needed. pycocotools scores the same file in the same process, masks only.
"""

import argparse
import contextlib
import io
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as codes
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from rich.console import Console

from benchmarks.measure import report
from benchmarks.memory import memory
from maskwright.api import score
from maskwright.formats.files import write_json

SIZE, CLASSES, OBJECTS = (480, 640), 80, 7.3
COMMAND = "python -m benchmarks.evaluation"


def star(rng: np.random.Generator, x: float, y: float, radius: float) -> list[float]:
    """The outline of a lobed shape, a polygon of 24 points inside the image."""
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    reach = radius * (1 + 0.25 * np.sin(3 * angle + 6 * rng.random()) + 0.1 * rng.standard_normal(24))
    points = [np.clip(x + reach * np.cos(angle), 0, SIZE[1] - 1), np.clip(y + 0.8 * reach * np.sin(angle), 0, SIZE[0] - 1)]
    outline: list[float] = np.stack(points, axis=1).ravel().tolist()
    return outline


def entries(rng: np.random.Generator, image_id: int, shapes: list[tuple[float, float, float]], labels: list[int]) -> list[Any]:
    """Shapes as COCO entries."""
    if not shapes:
        return []
    masks = codes.frPyObjects([star(rng, *shape) for shape in shapes], *SIZE)
    return [
        {
            "image_id": image_id,
            "category_id": label,
            "bbox": box.tolist(),
            "segmentation": {"size": list(SIZE), "counts": mask["counts"].decode()},
        }
        for mask, box, label in zip(masks, codes.toBbox(masks), labels, strict=True)
    ]


def make(folder: Path, images: int, detections: int) -> None:
    """Truth with COCO's density of objects, and detections of which six in ten are near one."""
    rng = np.random.default_rng(0)
    truth: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": []}
    truth["categories"] = [{"id": c, "name": f"class {c}"} for c in range(1, CLASSES + 1)]
    results: list[Any] = []
    for image_id in range(1, images + 1):
        truth["images"].append({"id": image_id, "file_name": f"{image_id}.jpg", "height": SIZE[0], "width": SIZE[1]})
        some = rng.integers(1, CLASSES + 1, 3)

        def anywhere() -> tuple[float, float, float]:
            return rng.uniform(0, SIZE[1]), rng.uniform(0, SIZE[0]), float(np.exp(rng.uniform(np.log(8), np.log(150))))

        there = [anywhere() for _ in range(rng.poisson(OBJECTS))]
        labels = [int(rng.choice(some)) for _ in there]
        for entry in entries(rng, image_id, there, labels):
            area = float(codes.area(entry["segmentation"]))
            truth["annotations"].append({**entry, "id": len(truth["annotations"]) + 1, "iscrowd": 0, "area": area})
        near = [int(rng.integers(len(there))) if there and rng.random() < 0.6 else -1 for _ in range(detections)]
        shapes = []
        for k in near:
            x, y, radius = anywhere() if k < 0 else there[k]
            moved = 0.15 * radius * rng.standard_normal(2) if k >= 0 else (0.0, 0.0)
            shapes.append((x + moved[0], y + moved[1], radius * float(np.exp(0.15 * rng.standard_normal()))))
        given = [labels[k] if k >= 0 and rng.random() < 0.7 else int(rng.choice(some)) for k in near]
        found = entries(rng, image_id, shapes, given)
        results += [
            {**entry, "score": round(float(rng.beta(2, 2 if k >= 0 else 6)), 5)} for entry, k in zip(found, near, strict=True)
        ]
    write_json(folder / "truth.json", truth)
    write_json(folder / "results.json", results)


def main(options: argparse.Namespace) -> None:
    """Make the files, score them both ways, write the table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, options.images, options.detections)
        size = (folder / "results.json").stat().st_size / 2**20
        Path("/proc/self/clear_refs").write_text("5")
        began = time.monotonic()
        ours = score(
            folder / "results.json", data=folder / "truth.json", report=folder / "report.html", console=Console(quiet=True)
        )
        whole, peak = time.monotonic() - began, memory("VmHWM") / 2**20
        ap = ours.metrics["segm"].ap
        del ours
        began = time.monotonic()
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO(str(folder / "truth.json"))
            theirs = COCOeval(truth, truth.loadRes(json.loads((folder / "results.json").read_text())), "segm")
            theirs.evaluate()
            theirs.accumulate()
            theirs.summarize()
        reference = time.monotonic() - began
    rows = [
        ["", "what", "s", "highest memory of the process, MB", "mask AP"],
        ["maskwright", "check, boxes, masks, edges, intervals, errors, page", f"{whole:.0f}", f"{peak:.0f}", f"{100 * ap:.4f}"],
        ["pycocotools", "masks", f"{reference:.0f}", "not measured", f"{100 * theirs.stats[0]:.4f}"],
    ]
    notes = f"{options.images} images, {options.detections} detections each, {size:.0f} MB of results; no pictures on the page."
    report("evaluation", COMMAND, rows, notes)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--detections", type=int, default=100)
    main(parser.parse_args())
