"""How much memory masks of large images take, and whether training keeps its memory flat.

python -m benchmarks.memory
"""

import io
import re
import tempfile
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console

from benchmarks.measure import report
from maskwright.api import score
from maskwright.formats.coco_results import CocoFile
from maskwright.formats.dataset import Categories
from maskwright.formats.files import write_json
from maskwright.inference.predictor import Model
from maskwright.inference.results import Result
from maskwright.recipes import DataOptions, find_recipe
from maskwright.runs import ModelCard
from maskwright.runs.checkpoints import build_system
from maskwright.runs.device import peak_memory
from maskwright.structures import Instances
from maskwright.systems.one_stage.embedmask import Positions
from maskwright.systems.one_stage.fcos import Found
from maskwright.training import loop, train

SIZE, COUNT, SYSTEMS = (3000, 4000), 300, ("mask-rcnn-r50-fpn", "embedmask-r50", "embedmask-r50-fused")
MB = 2**20


def memory(field: str = "VmRSS", process: str = "self") -> int:
    """Resident memory of a process, bytes: now (VmRSS), or at its highest since `forget_peak` (VmHWM)."""
    text = Path(f"/proc/{process}/status").read_text()
    match = re.search(rf"{field}:\s+(\d+) kB", text)
    return 1024 * int(match[1]) if match else 0


def rise(work: Callable[[], object]) -> float:
    """How far memory rises above what was held before, at its highest, MB."""
    return peak_memory(work, "cpu") or 0.0


def boxes_of(areas: float) -> torch.Tensor:
    """Boxes inside the image that add up to so many image areas; all full-frame where they must be."""
    height, width = SIZE
    side = min(1.0, (areas / COUNT) ** 0.5)
    corners = torch.rand(COUNT, 2, generator=torch.Generator().manual_seed(0)) * (1 - side)
    return torch.cat([corners, corners + side], dim=1) * torch.tensor([width, height, width, height])


def model_with(name: str, boxes: torch.Tensor) -> Model:
    """A whole network of random weights, whose detector answers these boxes (of the original image)."""
    torch.manual_seed(0)
    system: Any = build_system(name, {"num_classes": 1, "max_detections": COUNT})

    def answer(size: tuple[int, int]) -> Instances:
        scaled = boxes * torch.tensor([size[1] / SIZE[1], size[0] / SIZE[0]] * 2)
        scores = torch.linspace(1, 0.5, COUNT)
        return Instances(size, boxes=scaled, labels=torch.zeros(COUNT, dtype=torch.int64), scores=scores)

    if "mask" in getattr(system, "instance_heads", {}):
        system.box_head.detect = lambda features, proposals, keep: [answer(p.image_size) for p in proposals]
        torch.nn.init.normal_(system.instance_heads["mask"].predictor.weight, std=0.1)  # masks with ragged edges
    else:
        system.fcos.detect = lambda answers, sizes, keep: [Found(answer(s), torch.arange(COUNT) * 30) for s in sizes]
        system.positions = Positions(0.0)  # masks all over their boxes, with ragged edges
    card = ModelCard(name, {"num_classes": 1}, Categories(("thing",), (1,)), system.input)
    return Model(system, card, device="cpu", precision="auto")


def measured(model: Model, image: npt.NDArray[np.uint8], folder: Path) -> tuple[list[float], Result]:
    """How far memory rises, MB, while one image is predicted, saved and evaluated."""
    results: list[Result] = []

    def predict() -> None:
        results.append(model.predict(image, threshold=0.0))

    def save() -> None:
        file = CocoFile(model.categories)
        file.add(results[0].instances, "a.png")
        write_json(folder / "predictions.json", file.to_dict())

    def evaluate() -> None:
        answer = score(folder / "predictions.json", data=folder / "predictions.json", max_detections=[COUNT])
        assert answer.metrics["segm"].ap > 0.999  # against itself

    return [rise(work) for work in (predict, save, evaluate)], results[0]


def masks() -> list[list[str]]:
    """Predict, save and evaluate one large image with many objects."""
    image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    rows = [["", "predict, MB", "save, MB", "evaluate, MB", "masks held, MB", "dense float32 (torchvision), MB"]]
    cases = (("boxes of 10 image areas in all", 10.0), ("full-frame boxes", float(COUNT)))
    for system, (name, areas) in product(SYSTEMS, cases):
        model = model_with(system, boxes_of(areas))
        with tempfile.TemporaryDirectory() as folder:
            rises, result = measured(model, image, Path(folder))
        assert result.masks is not None
        assert len(result.masks) == COUNT
        held, dense = result.masks.nbytes / MB, 4 * COUNT * SIZE[0] * SIZE[1] / MB
        rows.append([f"`{system}`, {COUNT} {name}", *(f"{r:.0f}" for r in rises), f"{held:.0f}", f"{dense:.0f}"])
    return rows


def flatness() -> str:
    """Memory of a training process and its two workers after each of five epochs."""
    data = Path(__file__).parent.parent / "examples" / "nuclei"
    recipe = find_recipe("mask-rcnn-small").with_changes(["epochs=5", "workers=2", "evaluate_every=1"])
    recipe = recipe.model_copy(update={"data": DataOptions(path=str(data))})
    levels: list[int] = []
    usual = loop.report_epoch

    def watched(*arguments: object, **options: object) -> object:
        answer = usual(*arguments, **options)
        children = Path("/proc/self/task").glob("*/children")
        workers = [child for file in children for child in file.read_text().split()]
        levels.append(memory() + sum(memory(process=worker) for worker in workers))
        return answer

    loop.report_epoch = watched
    with tempfile.TemporaryDirectory() as folder:
        train(recipe, Path(folder) / "run", device="cpu", console=Console(file=io.StringIO()))
    loop.report_epoch = usual
    text = ", ".join(f"{level / MB:.0f}" for level in levels)
    return (
        f"Five epochs of `mask-rcnn-small` on the 32 images of `examples/nuclei` with two workers hold {text} MB after each "
        f"(processes added up): {100 * (levels[-1] / levels[0] - 1):+.1f} % from the first to the last."
    )


if __name__ == "__main__":
    flat = flatness()
    note = f"One image of {SIZE[1]}×{SIZE[0]} px; how far memory rises above model and image. {flat}"
    report("memory", "python -m benchmarks.memory", masks(), note)
