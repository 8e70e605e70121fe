"""From an image to run lengths: Mask R-CNN R50-FPN, ours and torchvision's with the same random weights; EmbedMask beside it.

    python -m benchmarks.inference [--run examples/nuclei/weights.safetensors --data nuclei] [--part torchvision | embedmask]

With a run and its data, also what the default precision does to AP.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.detection import maskrcnn_resnet50_fpn

from benchmarks.measure import matmul_rate, report, seconds
from maskwright.api import evaluate
from maskwright.formats.dataset import Categories
from maskwright.inference.predictor import Model, load
from maskwright.runs import ModelCard
from maskwright.runs.checkpoints import build_system
from maskwright.weights.torchvision import convert

CLASSES = 90
SYSTEM = "mask-rcnn-r50-fpn-torchvision"


def ours(state: dict[str, torch.Tensor], precision: str) -> Model:
    """The imported network, with the score threshold at 0."""
    arguments = {"num_classes": CLASSES, "score_threshold": 0.0}
    system = build_system(SYSTEM, arguments)
    system.load_state_dict(convert(state).tensors)
    categories = Categories(tuple(map(str, range(1, CLASSES + 1))), tuple(range(1, CLASSES + 1)))
    return Model(system, ModelCard(SYSTEM, arguments, categories, system.input), device="cpu", precision=precision)


def operations(function: Callable[[], object]) -> int:
    """Floating point operations of convolutions and matrix products in a call."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def speed() -> list[list[str]]:
    """Time from image to RLE."""
    torch.manual_seed(0)
    theirs = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=CLASSES + 1, box_score_thresh=0.0).eval()
    models = {"float32": ours(theirs.state_dict(), "float32"), "default": ours(theirs.state_dict(), "auto")}
    image = np.random.default_rng(0).integers(0, 256, (800, 1066, 3), dtype=np.uint8)

    def torchvision(*, bf16: bool = False) -> object:
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            masks = theirs([torch.from_numpy(image).permute(2, 0, 1) / 255])[0]["masks"]
        assert len(masks) == 100
        return [coco_mask.encode(np.asfortranarray((m[0] > 0.5).numpy())) for m in masks]

    def maskwright(model: Model) -> object:
        masks = model.predict(image, threshold=0.0).masks
        assert masks is not None
        assert len(masks) == 100
        return masks.to_rles()

    flops = operations(lambda: maskwright(models["float32"]))
    fp32, bf16 = matmul_rate(torch.float32), matmul_rate(torch.bfloat16)
    times = seconds(
        {
            "torchvision, float32": torchvision,
            "maskwright, float32": lambda: maskwright(models["float32"]),
            "torchvision, bf16 autocast": lambda: torchvision(bf16=True),
            f"maskwright, default ({models['default'].precision.name})": lambda: maskwright(models["default"]),
            "fp32": fp32,
            "bf16": bf16,
        },
        repeats=7,
    )
    per_flop = {name: times.pop(name) / (2 * 2048**3) for name in ("fp32", "bf16")}
    base = times["torchvision, float32"]
    rows = [["", "s an image", "times torchvision float32", "share of the floor"]]
    for name, value in times.items():
        floor = flops * per_flop["bf16" if "bf" in name else "fp32"]
        rows.append([name, f"{value:.3f}", f"{base / value:.2f}", f"{100 * floor / value:.0f} % of {floor:.2f} s"])
    return [
        *rows,
        [f"{flops / 1e9:.0f} GFLOP", "", "", f"{1e-9 / per_flop['fp32']:.0f} and {1e-9 / per_flop['bf16']:.0f} GFLOP/s"],
    ]


def untrained(name: str, device: str, precision: str, **arguments: int) -> Model:
    """A system of random weights for 80 classes, in which some thousands of candidates pass the usual score threshold."""
    torch.manual_seed(0)
    given = {"num_classes": 80, **arguments}
    system: Any = build_system(name, given)
    if "embedmask" in name:
        system.fcos.classes.weight.data.mul_(2)
        system.fcos.ltrb.bias.data.fill_(2.0)  # boxes of four cells, from 32 px on the finest level to 512 px
    else:
        system.box_head.classes.weight.data.mul_(30)
    categories = Categories(tuple(map(str, range(80))), tuple(range(1, 81)))
    return Model(system, ModelCard(name, given, categories, system.input), device=device, precision=precision)


def beside_mask_rcnn(device: str) -> list[list[str]]:
    """EmbedMask and Mask R-CNN, both ours."""
    image = np.random.default_rng(0).integers(0, 256, (800, 1066, 3), dtype=np.uint8)

    def run(model: Model) -> object:
        masks = model.predict(image, threshold=0.0).masks
        assert masks is not None
        assert len(masks) == 100
        return masks.to_rles()

    entries: dict[str, tuple[str, dict[str, int]]] = {
        "mask-rcnn-r50-fpn": ("mask-rcnn-r50-fpn", {}),
        "embedmask-r50": ("embedmask-r50", {}),
        "embedmask-r50-fused": ("embedmask-r50-fused", {}),
        "embedmask-r50, EmbedMask-600": ("embedmask-r50", {"short_px": 600, "long_px": 800}),
    }
    rows = [["", "GFLOP", "s, float32", "times Mask R-CNN", "s, default precision", "times Mask R-CNN"]]
    models = {
        (name, precision): untrained(system, device, precision, **arguments)
        for name, (system, arguments) in entries.items()
        for precision in ("float32", "auto")
    }
    times = seconds({key: partial(run, model) for key, model in models.items()}, repeats=5)
    for name in entries:
        cells = [f"{operations(partial(run, models[name, 'float32'])) / 1e9:.0f}"]
        for precision in ("float32", "auto"):
            value = times[name, precision]
            cells += [f"{value:.3f}", f"{times['mask-rcnn-r50-fpn', precision] / value:.2f}"]
        rows.append([name, *cells])
    return rows


def precision_cost(run: Path, data: Path) -> str:
    """Mask AP of a trained model in float32 and at the default precision."""
    quiet = Console(quiet=True)
    ap = {p: 100 * evaluate(load(run, precision=p), data=data, console=quiet).metrics["segm"].ap for p in ("float32", "auto")}
    return (
        f"Mask AP of `{run}` on {data.name} val: float32 {ap['float32']:.2f}, default precision {ap['auto']:.2f} "
        f"({ap['auto'] - ap['float32']:+.2f})."
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--part", choices=["torchvision", "embedmask"])
    options = parser.parse_args()
    if options.part in (None, "torchvision"):
        notes = precision_cost(options.run, options.data) if options.run and options.data else ""
        command = "python -m benchmarks.inference --part torchvision"
        command += f" --run {options.run} --data {options.data.name}" if notes else ""
        report("inference", command, speed(), notes)
    if options.part in (None, "embedmask"):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        notes = f"On {device}, 800×1066 px, 80 classes, 100 masks, random weights."
        report("embedmask-speed", "python -m benchmarks.inference --part embedmask", beside_mask_rcnn(device), notes)
