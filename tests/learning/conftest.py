"""Real images with large objects, few enough to be learnt by heart."""

import json

import pytest
import torch
from PIL import Image

from maskwright.data.catalog import open_split
from maskwright.structures.boxes import clip
from tests.conftest import EXAMPLES

SIDE_PX, ZOOM = 64, 4


@pytest.fixture(scope="session")
def large_nuclei(tmp_path_factory):
    """Three real images whose objects are 64 px and more."""
    return enlarged(tmp_path_factory.mktemp("large"), 3)


@pytest.fixture(scope="session")
def one_image(tmp_path_factory):
    """The one of them with most objects."""
    return enlarged(tmp_path_factory.mktemp("one"), 1)


def enlarged(root, count):
    """Windows with many large nuclei, four times as large: a data set whose validation images are the training images."""
    (root / "images").mkdir()
    (root / "annotations").mkdir()
    dataset = open_split(EXAMPLES, "train")
    windows = []
    for i in range(len(dataset)):
        boxes = dataset.instances(i).boxes
        height, width = dataset.image_size(i)
        for box in boxes:
            x = min(max(int(box[[0, 2]].mean()) - SIDE_PX // 2, 0), width - SIDE_PX)
            y = min(max(int(box[[1, 3]].mean()) - SIDE_PX // 2, 0), height - SIDE_PX)
            seen = clip(boxes - torch.tensor([x, y, x, y]), (SIDE_PX, SIDE_PX))
            sides = (seen[:, 2:] - seen[:, :2]).amin(dim=1) * ZOOM
            windows.append((int(((sides >= 64) & (sides <= 160)).sum()), -i, (x, y, x + SIDE_PX, y + SIDE_PX)))
    best = {-i: (count, window) for count, i, window in sorted(windows)}  # the last, best window of each image
    chosen = sorted(((count, i, window) for i, (count, window) in best.items()), reverse=True)[:count]
    data = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "nucleus"}]}
    (root / "images" / "again").mkdir()
    for number, (_, i, (x0, y0, x1, y1)) in enumerate(chosen):
        sample = dataset.read(i)
        size = (SIDE_PX * ZOOM, SIDE_PX * ZOOM)
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
