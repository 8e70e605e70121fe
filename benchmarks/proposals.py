"""DeepMask, SharpMask and the detectors on their proposals, in small, on real data: the tables of docs/deepmask.md.

    python -m benchmarks.proposals --data DIR --out runs/proposals --part nuclei        # likewise coco-mini
    python -m benchmarks.proposals --data DIR --out runs/proposals --part detectors
    python -m benchmarks.proposals --part speed

DIR holds nuclei/ and coco-mini/. What is trained is not trained again.
"""

import argparse
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console

from benchmarks.measure import report, seconds
from maskwright.api import evaluate
from maskwright.comparison import compare
from maskwright.comparison.costs import costs
from maskwright.data.loader import evaluation_batches
from maskwright.formats import open_datasets
from maskwright.inference import Model, load
from maskwright.metrics import detect
from maskwright.metrics.proposals import ProposalMetrics, evaluate_proposals
from maskwright.recipes import DataOptions, find_recipe
from maskwright.structures import ImageBatch, Instances
from maskwright.systems import SYSTEMS
from maskwright.systems.proposals.deepmask import DeepMask
from maskwright.systems.rcnn.mask_rcnn import FasterRCNN
from maskwright.training import train

PAGE = Path(__file__).parent.parent / "docs" / "deepmask.md"
STEPS = {"nuclei": (1500, 600), "coco-mini": (500, 200)}  # of DeepMask, of the refinement
LIMITS = (10, 100, 1000)
PER_EPOCH = 50


def command(part: str) -> str:
    """What makes a part's table again."""
    return f"python -m benchmarks.proposals --data DIR --out runs/proposals --part {part}"


def trained(name: str, options: argparse.Namespace) -> Path:
    """The run of SharpMask on a data set, trained if it is not there."""
    out: Path = options.out / f"sharpmask-{name}"
    if not (out / "best").is_dir():
        shutil.rmtree(out, ignore_errors=True)
        first, second = (steps / PER_EPOCH for steps in STEPS[name])
        changes = [f"stages.0.epochs={first}", f"stages.1.epochs={second}", "evaluate_every=1000"]
        recipe = find_recipe("sharpmask-small").with_changes([*changes, f"patches.batches_per_epoch={PER_EPOCH}"])
        train(recipe.model_copy(update={"data": DataOptions(path=str(options.data / name))}), out)
    return out


# Recall of proposals


def recall(name: str, options: argparse.Namespace) -> None:
    """DeepMask, SharpMask, Zoom and Zoom² with the same weights."""
    run = trained(name, options)
    octaves = load(run).card.arguments["octaves"]
    usual, zoom, zoom_twice = octaves[:-2], octaves[:-1], octaves
    variants: dict[str, dict[str, Any]] = {
        "DeepMask": {"octaves": usual, "is_sharp": False},
        "SharpMask": {"octaves": usual},
        "SharpMask-Zoom": {"octaves": zoom},
        "SharpMask-Zoom²": {"octaves": zoom_twice},
    }
    header = [
        "",
        *(f"AR@{n}" for n in LIMITS),
        "AUC",
        "AUC small, medium, large",
        "box AR@10, 100, 1000",
        "box AUC",
        "ms an image",
    ]
    rows = [header]
    val = open_datasets(options.data / name)[1]
    times = costs({v: load(run, **arguments) for v, arguments in variants.items()}, val, Console(quiet=True))
    for variant, arguments in variants.items():
        found = evaluate(run, data=options.data / name, arguments=arguments, max_detections=LIMITS).proposals
        rows.append([variant, *cells(found["segm"], found["bbox"]), f"{times[variant]['image_ms']:.0f}"])
    deep, sharp = STEPS[name]
    scales = ", ".join(f"{octave:g}" for octave in usual)
    notes = (
        f"{len(val)} validation images; {deep} steps of 32 patches for DeepMask, {sharp} for the refinement, one seed, "
        f"the same weights in every row. Scales 2^({scales}), Zoom one more, Zoom² two, which then suit all sizes of objects "
        "in the training images."
    )
    report(f"recall-{name}", command(name), rows, notes, page=PAGE)


def cells(masks: ProposalMetrics, boxes: ProposalMetrics) -> list[str]:
    """A row in percent."""
    sizes = ", ".join(percent(masks.auc[size]) for size in ("small", "medium", "large"))
    return [
        *(percent(v) for v in masks.ar["all"]),
        percent(masks.auc["all"]),
        sizes,
        ", ".join(percent(v) for v in boxes.ar["all"]),
        percent(boxes.auc["all"]),
    ]


def percent(value: float) -> str:
    """A dash where there is nothing to find."""
    return "-" if value < 0 else f"{100 * value:.1f}"


# Detectors on proposals


def detectors(options: argparse.Namespace) -> None:
    """Fast R-CNN and MultiPathNet on SharpMask's proposals beside Faster R-CNN on its own, and the proposals of both."""
    run, data = trained("nuclei", options), options.data / "nuclei"
    entries = [f"fast-rcnn-small proposals={run}", f"multipath-small proposals={run}", "faster-rcnn-small"]
    names = ["Fast R-CNN", "MultiPathNet", "Faster R-CNN"]
    named = [f"{name}: {entry}" for name, entry in zip(names, entries, strict=True)]
    out = options.out / "detectors"
    changes = ["augment.vertical_flip=0.5", "augment.transpose=0.5"]
    answer = compare(named, data=data, out=out, epochs=2, seeds=1, changes=changes)
    rows = [["", "task", "box AP", "box AP50", "mask AP", "mask AP50"]]
    for row in answer.rows:
        found = [row.metrics[0].get("bbox"), row.metrics[0].get("segm")]
        values = [v for m in found for v in ((m.ap, m.ap50) if m else (-1.0, -1.0))]
        rows.append([row.name, row.facts.task, *map(percent, values)])
    report("detectors", command("detectors"), rows, "Nuclei, 2 epochs of 531 images, one seed.", page=PAGE)
    slug = next(path for path in (out / "runs").iterdir() if path.name.startswith("faster"))
    proposals(run, load(slug / "last"), data)


def proposals(run: Path, faster: Model, data: Path) -> None:
    """Boxes proposed by SharpMask and by the RPN of Faster R-CNN."""
    val = open_datasets(data)[1]
    rows = [["", *(f"box AR@{n}" for n in LIMITS), "box AUC"]]
    sharp = evaluate(run, data=data, max_detections=LIMITS).proposals["bbox"]
    system = cast(FasterRCNN, faster.system)

    def propose(images: ImageBatch) -> list[Instances]:
        with torch.inference_mode(), faster.precision.autocast():
            candidates = system.rpn(system.fpn(system.backbone(images.pixels)))
            found = system.rpn.propose(candidates, images.sizes, per_level=LIMITS[-1], keep=LIMITS[-1])
        return images.to_original_frame(found)

    categories = replace(val.categories, names=("object",), ids=val.categories.ids[:1])
    results = detect(propose, evaluation_batches(val, spec=system.input, batch_size=4), categories, device=faster.device)
    rpn = evaluate_proposals(val, results, kinds=["bbox"], max_detections=LIMITS)["bbox"]
    for name, m in (("SharpMask", sharp), ("RPN of Faster R-CNN", rpn)):
        rows.append([name, *(percent(v) for v in m.ar["all"]), percent(m.auc["all"])])
    report("proposals", command("detectors"), rows, page=PAGE)


# Time


def speed() -> None:
    """An image of 480×640 px through the paper sizes, 500 proposals, and where the time goes."""
    torch.manual_seed(0)
    pixels = torch.randn(1, 3, 480, 640)
    images = ImageBatch(pixels, [(480, 640)], [(480, 640)])
    systems: dict[str, DeepMask] = {}
    for name in ("deepmask-vgg", "deepmask-r50", "sharpmask-r50"):
        system: Any = SYSTEMS[name](num_classes=1, max_detections=500)
        systems[name] = system.eval().to(memory_format=torch.channels_last)
    rows = [
        [
            "",
            "s, float32",
            "times DeepMask-VGG",
            "s, bf16",
            "times DeepMask-VGG",
            "backbone, head, masks, drawing: % of the time",
        ]
    ]
    with torch.inference_mode():
        plain = seconds({name: lambda s=s: s.predict(images) for name, s in systems.items()}, repeats=3)  # type: ignore[misc]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            fast = seconds({name: lambda s=s: s.predict(images) for name, s in systems.items()}, repeats=3)  # type: ignore[misc]
        for name, system in systems.items():
            shares = ", ".join(f"{100 * share:.0f}" for share in parts(system, images))
            ratios = [f"{times['deepmask-vgg'] / times[name]:.2f}" for times in (plain, fast)]
            rows.append([name, f"{plain[name]:.2f}", ratios[0], f"{fast[name]:.2f}", ratios[1], shares])
    notes = "One image of 480×640 px, seven scales, 500 proposals, random weights; shares in float32."
    report("speed", "python -m benchmarks.proposals --part speed", rows, notes, page=PAGE)


def parts(system: DeepMask, images: ImageBatch) -> list[float]:
    """Shares of backbone, head, masks of windows, and drawing them into the image."""
    spent: dict[str, float] = {}
    with ExitStack() as stack:
        for owner, method, name in (
            (system.backbone, "forward", "backbone"),
            (system.head, "forward", "head"),
            (system, "_draw_windows", "masks"),
            (system, "_maps", "masks"),
        ):
            stack.enter_context(timed(owner, method, name, spent))
        began = time.perf_counter()
        system.predict(images)
        whole = time.perf_counter() - began
    network = [spent["backbone"], spent["head"], spent["masks"]]
    return [*(part / whole for part in network), (whole - sum(network)) / whole]


@contextmanager
def timed(owner: Any, method: str, name: str, spent: dict[str, float]) -> Iterator[None]:
    """Add up the time a method takes, under a name."""
    original: Callable[..., Any] = getattr(owner, method)

    def measured(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        answer = original(*args, **kwargs)
        spent[name] = spent.get(name, 0.0) + time.perf_counter() - began
        return answer

    setattr(owner, method, measured)
    try:
        yield
    finally:
        delattr(owner, method)


def main(options: argparse.Namespace) -> None:
    """Write the tables of a part."""
    if options.part == "speed":
        speed()
    elif options.part == "detectors":
        detectors(options)
    else:
        recall(options.part, options)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/proposals"))
    parser.add_argument("--part", choices=[*STEPS, "detectors", "speed"], required=True)
    main(parser.parse_args())
