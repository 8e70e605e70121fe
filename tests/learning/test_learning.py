"""Each family learns: a few real images by heart, to nearly what its mask grid can express."""

from functools import partial
from typing import get_args

import pytest
import torch

from maskwright.formats import open_datasets
from maskwright.formats.coco import to_coco
from maskwright.metrics import evaluate_detections
from maskwright.recipes import DataOptions, find_recipe
from maskwright.structures import MaskProbs, Masks
from maskwright.systems import SYSTEMS, Task
from maskwright.systems.rcnn.mask_rcnn import mask_targets
from maskwright.systems.rcnn.rivals import Mask, Operator
from maskwright.training import train
from tests.conftest import arguments_of, needs_proposals, truth_as_proposals

with torch.device("meta"):
    TASKS = {name: builder(num_classes=1).task for name, builder in SYSTEMS.items() if name.endswith("-small")}
DETECTORS = [name for name, task in TASKS.items() if task in (Task.INSTANCES, Task.BOXES)]

OPERATORS, MASKS = get_args(Operator), get_args(Mask)
PEOPLE = [name for name, task in TASKS.items() if task.has_keypoints]


def ceiling(dataset, kind: str, grid) -> float:
    """AP of the truth itself, its masks taken through a system's grid and back."""
    truth = to_coco(dataset)["annotations"]
    if kind == "segm":
        codes = (code for i in range(len(dataset)) for code in grid(dataset.instances(i)).to_rles())
        for entry, code in zip(truth, codes, strict=True):
            entry["segmentation"] = code
    answers = [{**entry, "score": 1.0} for entry in truth if not entry["iscrowd"]]
    return evaluate_detections(dataset, answers, kinds=[kind])[kind].ap


SIDES = {"c4": 14, "rcnn": 28, "mnc": 21, "fcis": 21}  # of the grid of cells in a box, where masks are drawn in boxes


def boxes_of(instances, side) -> Masks:
    """Cells in a box."""
    targets = mask_targets(instances.masks, instances.boxes, torch.arange(len(instances)), side=side)
    return MaskProbs(targets, instances.boxes).paste(instances.image_size)


def stride_of_4(instances) -> Masks:
    """EmbedMask's: a cell for every fourth pixel of the image."""
    height, width = instances.image_size
    cells = instances.masks.sample((height // 4, width // 4), step=4, first=(2, 2)).float()
    return MaskProbs(cells, torch.tensor([[0.0, 0, width, height]] * len(instances))).paste(instances.image_size)


def learnt(name: str, root, out, console, *, share: float = 1.0, changes: tuple[str, ...] = ()) -> tuple[float, float]:
    """AP of a system that has seen nothing but a few images, on these, after a share of the steps; and what it could reach."""
    side = next((side for family, side in SIDES.items() if family in name), None)
    dataset, _ = open_datasets(root)
    px = max(dataset.image_size(0))
    recipe = find_recipe(name).with_changes(
        [
            f"epochs={share * (600 if 'c4' in name else 300 if side else 200)}",  # a mean over cells says little of a box
            "batch_size=3",
            "workers=0",
            "evaluate_every=1000",
            "optimizer.lr=0.001",
            "schedule.warmup_steps=10",
            "augment.crop_px=null",
            "fit_sizes=false",
            "augment.horizontal_flip=0",
            "augment.color=0",
            "ema_decay=0.9",
            arguments_of(name, short_px=px, long_px=px, num_proposals=100, num_candidates=100, max_detections=50),
            *changes,
        ]
    )
    if needs_proposals(name):
        recipe = recipe.with_changes([f"proposals={truth_as_proposals(root)}"])
    recipe = recipe.model_copy(update={"data": DataOptions(path=str(root))})
    metrics = train(recipe, out, device="cpu", console=console)
    assert TASKS[name] == (Task.INSTANCES if metrics.kind == "segm" else Task.BOXES)
    grid = partial(boxes_of, side=side) if side else stride_of_4
    best = 1.0 if needs_proposals(name) else ceiling(dataset, metrics.kind, grid)  # theirs come with the true masks
    num_objects = sum(int((~dataset.instances(i).crowd).sum()) for i in range(len(dataset)))
    what = " ".join([name, *changes])
    print(f"{what}: {metrics.kind} AP {metrics.ap:.3f}, ceiling {best:.3f}, {len(dataset)} images, {num_objects} objects")
    return metrics.ap, best


SHARES = {"mask-rcnn-small": 0.45, "embedmask-small": 0.25}  # of the steps; what is inside other systems learns with them


@pytest.mark.parametrize("name", SHARES)
def test_an_image_is_learnt_by_heart(name, one_small_image, tmp_path, console):
    ap, best = learnt(name, one_small_image, tmp_path / "run", console, share=SHARES[name])
    assert ap >= 0.6 * best  # 0.77 and 0.79 were measured; with all steps, on three images, more is asked below


@pytest.mark.slow
@pytest.mark.parametrize("name", DETECTORS)
def test_a_few_images_are_learnt_by_heart(name, large_nuclei, tmp_path, console):
    ap, best = learnt(name, large_nuclei, tmp_path / "run", console)
    # What they reach is in docs/results.md. V3 cuts logarithms, which draws edges inwards; MNC's masks have no convolutions.
    assert ap >= (0.85 if name in ("embedmask-small", "mnc-small") else 0.9) * best


@pytest.mark.slow
@pytest.mark.parametrize("part", [f"roi={roi}" for roi in OPERATORS[1:]] + [f"mask={mask}" for mask in MASKS[1:]])
def test_what_mask_rcnn_was_compared_with_learns_too(part, one_image, tmp_path, console):
    changes = (f"arguments.{part}",)
    ap, best = learnt("mask-rcnn-small", one_image, tmp_path / "run", console, share=0.5, changes=changes)
    assert ap >= 0.6 * best


@pytest.mark.slow
@pytest.mark.parametrize("name", PEOPLE)
def test_twenty_people_are_learnt_by_heart(name, people, tmp_path, console):
    recipe = find_recipe(name).with_changes(
        [
            "epochs=60",
            "batch_size=4",
            "workers=0",
            "evaluate_every=1000",
            "optimizer.lr=0.001",
            "schedule.warmup_steps=10",
            "augment.crop_px=null",
            "fit_sizes=false",
            "augment.color=0",
            "ema_decay=0.9",
            arguments_of(name, short_px=128, long_px=128, num_proposals=100, num_candidates=100, max_detections=20),
        ]
    )
    metrics = train(
        recipe.model_copy(update={"data": DataOptions(path=str(people))}), tmp_path / "run", device="cpu", console=console
    )
    print(f"{name}: {metrics.kind} AP {metrics.ap:.3f}")
    assert metrics.kind == "keypoints"
    assert metrics.ap >= 0.8
