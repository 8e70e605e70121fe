"""Real images with large objects, few enough to be learnt by heart."""

import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from maskwright.formats.catalog import open_split
from maskwright.structures import COCO_PERSON, Masks
from maskwright.structures.boxes import clip
from tests.conftest import EXAMPLES

ZOOM = 4


@pytest.fixture(scope="session")
def large_nuclei(tmp_path_factory):
    """Three real images whose objects are 64 px and more."""
    return enlarged(tmp_path_factory.mktemp("large"), 3, side_px=64)


@pytest.fixture(scope="session")
def one_image(tmp_path_factory):
    """The one of them with most objects."""
    return enlarged(tmp_path_factory.mktemp("one"), 1, side_px=64)


@pytest.fixture(scope="session")
def one_small_image(tmp_path_factory):
    """A smaller one, with four objects."""
    return enlarged(tmp_path_factory.mktemp("small"), 1, side_px=48)


def enlarged(root, count, side_px):
    """Windows with many large nuclei, four times as large: a data set whose validation images are the training images."""
    (root / "images").mkdir()
    (root / "annotations").mkdir()
    dataset = open_split(EXAMPLES, "train")
    windows = []
    for i in range(len(dataset)):
        boxes = dataset.instances(i).boxes
        height, width = dataset.image_size(i)
        for box in boxes:
            x = min(max(int(box[[0, 2]].mean()) - side_px // 2, 0), width - side_px)
            y = min(max(int(box[[1, 3]].mean()) - side_px // 2, 0), height - side_px)
            seen = clip(boxes - torch.tensor([x, y, x, y]), (side_px, side_px))
            sides = (seen[:, 2:] - seen[:, :2]).amin(dim=1) * ZOOM
            windows.append((int(((sides >= 64) & (sides <= 160)).sum()), -i, (x, y, x + side_px, y + side_px)))
    best = {-i: (count, window) for count, i, window in sorted(windows)}  # the last, best window of each image
    chosen = sorted(((count, i, window) for i, (count, window) in best.items()), reverse=True)[:count]
    data = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "nucleus"}]}
    (root / "images" / "again").mkdir()
    for number, (_, i, (x0, y0, x1, y1)) in enumerate(chosen):
        sample = dataset.read(i)
        size = (side_px * ZOOM, side_px * ZOOM)
        picture = Image.fromarray(sample.image[y0:y1, x0:x1].numpy()).resize(size, Image.Resampling.BICUBIC)
        for folder in (root / "images", root / "images" / "again"):  # training and validation may not share files
            picture.save(folder / f"{number}.png")
        data["images"].append({"id": number, "file_name": f"{number}.png", "height": size[0], "width": size[1]})
        objects = sample.instances.crop((x0, y0, x1, y1)).resize(size)
        for row, code in enumerate(objects.masks.to_rles()):
            a, b, c, d = objects.masks.boxes()[row].tolist()
            data["annotations"].append(
                {
                    "id": len(data["annotations"]),
                    "image_id": number,
                    "category_id": 1,
                    "iscrowd": int(min(c - a, d - b) < 64),  # smaller ones are to be ignored
                    "bbox": [a, b, c - a, d - b],
                    "segmentation": code,
                }
            )
    (root / "annotations" / "train.json").write_text(json.dumps(data))
    for entry in data["images"]:
        entry["file_name"] = f"again/{entry['file_name']}"
    (root / "annotations" / "val.json").write_text(json.dumps(data))
    return root


POSE = [  # of COCO's 17 keypoints, in heights of a person, arms hanging: nose, eyes, ears, shoulders, elbows, wrists, hips, ...
    (0, 0.08), (0.02, 0.06), (-0.02, 0.06), (0.05, 0.07), (-0.05, 0.07), (0.12, 0.2), (-0.12, 0.2), (0.17, 0.35), (-0.17, 0.35),
    (0.2, 0.5), (-0.2, 0.5), (0.08, 0.52), (-0.08, 0.52), (0.1, 0.74), (-0.1, 0.74), (0.11, 0.96), (-0.11, 0.96),
]  # fmt: skip
FIGURE_PX, PEOPLE = 128, 20


@pytest.fixture(scope="session")
def people(tmp_path_factory):
    """Twenty images of one or two figures drawn from lines: limbs of the left side red, of the right side blue."""
    root, rng = tmp_path_factory.mktemp("people"), np.random.default_rng(0)
    (root / "images" / "again").mkdir(parents=True)
    (root / "annotations").mkdir()
    category = {"id": 1, "name": "person", "keypoints": list(COCO_PERSON.names)}
    data = {"images": [], "annotations": [], "categories": [category | {"skeleton": [[1, 2]]}]}
    for number in range(PEOPLE):
        picture = Image.fromarray(rng.integers(60, 120, (FIGURE_PX, FIGURE_PX, 3), dtype=np.uint8))
        data["images"].append({"id": number, "file_name": f"{number}.png", "height": FIGURE_PX, "width": FIGURE_PX})
        count = int(rng.integers(1, 3))
        for place in range(count):
            height = rng.uniform(80, 120)
            middle = FIGURE_PX * (place + 0.5) / count + rng.uniform(-6, 6)
            points = np.array(POSE) * height + rng.normal(0, 0.02 * height, (17, 2)) + (middle, rng.uniform(0, 6))
            data["annotations"].append(drawn(picture, points.clip(1, FIGURE_PX - 2), number, len(data["annotations"]) + 1))
        for folder in (root / "images", root / "images" / "again"):
            picture.save(folder / f"{number}.png")
    (root / "annotations" / "train.json").write_text(json.dumps(data))
    for entry in data["images"]:
        entry["file_name"] = f"again/{entry['file_name']}"
    (root / "annotations" / "val.json").write_text(json.dumps(data))
    return root


def drawn(picture, points, image_id, number):
    """Draw a figure (17, 2); its annotation."""
    mask = Image.new("L", picture.size)
    for start, end in COCO_PERSON.skeleton:
        names = COCO_PERSON.names[start], COCO_PERSON.names[end]
        sides = {side for side in ("left", "right") if all(side in name for name in names)}
        color = {"left": (230, 40, 40), "right": (40, 60, 230)}.get(next(iter(sides), ""), (240, 220, 60))
        line = [tuple(points[start]), tuple(points[end])]
        ImageDraw.Draw(picture).line(line, fill=color, width=6)
        ImageDraw.Draw(mask).line(line, fill=255, width=6)
    masks = Masks.from_dense(torch.from_numpy(np.array(mask))[None] > 0)
    x0, y0, x1, y1 = masks.boxes()[0].tolist()
    flat = [float(v) for x, y in points for v in (x - 0.5, y - 0.5, 2)]
    return {
        "id": number, "image_id": image_id, "category_id": 1, "iscrowd": 0, "bbox": [x0, y0, x1 - x0, y1 - y0],
        "segmentation": masks.to_rles()[0], "keypoints": flat, "num_keypoints": 17, "area": int(masks.areas()[0]),
    }  # fmt: skip
