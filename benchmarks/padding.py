"""What padding costs: the demo's weights on its validation images as they are, with padding, and trimmed to odd sides.

python -m benchmarks.padding
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image

from benchmarks.measure import report
from maskwright.data.loader import Batch, evaluation_batches
from maskwright.data.sample import InputSample
from maskwright.data.transforms import crop
from maskwright.formats import Dataset
from maskwright.formats.catalog import open_split
from maskwright.inference import Model, load
from maskwright.metrics.detection import detect, evaluate_detections
from maskwright.structures import ImageBatch, Intensity

EXAMPLES = Path(__file__).parent.parent / "examples" / "nuclei"
TRIM_PX = 13
"""Cut from the right and the bottom, so that few sides are multiples of 32; sides of the sample are 256 px and more."""


def padded(batch: Batch, pixels: int) -> Batch:
    """With so many px of padding more at the right and below."""
    return replace(batch, images=replace(batch.images, pixels=F.pad(batch.images.pixels, (0, pixels, 0, pixels))))


def trimmed(dataset: Dataset, folder: Path) -> Dataset:
    """The images and objects without what lies at the right and below."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for i in range(len(dataset)):
        sample = InputSample.of(dataset.read(i, Intensity()))
        height, width = (side - TRIM_PX for side in sample.instances.image_size)
        cut = crop(sample, (0, 0, width, height))
        name = f"{sample.id}.png"
        Image.fromarray(cut.image.numpy()).save(folder / name)
        images.append({"id": sample.id, "file_name": name, "height": height, "width": width})
        for label, rle in zip(cut.instances.labels.tolist(), cut.instances.masks.to_rles(), strict=True):
            annotations.append(
                {"id": len(annotations) + 1, "image_id": sample.id, "category_id": label + 1}
                | {"segmentation": rle, "iscrowd": 0}
            )
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(dataset.categories.names)]
    file = folder / "trimmed.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return open_split(file, "val", images=folder)


def in_multiples_of_32(batch: Batch) -> Batch:
    """Padded as most peers do."""
    rows = [pixels[:, :h, :w] for pixels, (h, w) in zip(batch.images.pixels, batch.images.sizes, strict=True)]
    images = ImageBatch.collate(rows, original_sizes=batch.images.original_sizes, size_divisor=32)
    return replace(batch, images=images)


def main() -> None:
    """Score them all, by the system as it is and by one that is told to look at padding."""
    model = load(EXAMPLES / "weights.safetensors", device="cpu", precision="float32")
    with TemporaryDirectory() as folder:
        whole = open_split(EXAMPLES, "val")
        cut = trimmed(whole, Path(folder))
        ways: list[tuple[str, Dataset, Callable[[Batch], Batch]]] = [
            (f"{pixels} px of padding", whole, lambda batch, pixels=pixels: padded(batch, pixels))  # type: ignore[misc]
            for pixels in (0, 31, 32, 64, 128)
        ]
        ways += [("trimmed", cut, lambda batch: batch), ("trimmed, padded to multiples of 32", cut, in_multiples_of_32)]
        rows = [["", "mask AP", "mask AP where padding is looked at"]]
        for name, dataset, way in ways:
            cells = [f"{score(model, dataset, way, divisor):.1f}" for divisor in (None, 1)]
            rows.append([name, *cells])
    note = f"16 images of the sample, `examples/nuclei/weights.safetensors`, float32; {TRIM_PX} px were trimmed."
    report("padding", "python -m benchmarks.padding", rows, note)


def score(model: Model, dataset: Dataset, way: Callable[[Batch], Batch], divisor: int | None) -> float:
    """Mask AP in percent of a model on batches that were changed, with its own size divisor or another."""
    usual = model.system.input
    batches = map(way, evaluation_batches(dataset, spec=usual, batch_size=1))
    model.system.input = replace(usual, size_divisor=divisor)
    try:
        with torch.inference_mode():
            results = detect(model.system.predict, batches, model.categories, device="cpu")
    finally:
        model.system.input = usual
    limits = (1, 10, model.system.max_detections)
    return 100 * evaluate_detections(dataset, results, kinds=["segm"], max_detections=limits, class_agnostic=False)["segm"].ap


if __name__ == "__main__":
    main()
