"""Objects of one training image pasted into another.

Source: Ghiasi et al., Simple Copy-Paste is a Strong Data Augmentation Method for Instance Segmentation (CVPR 2021), sec. 3.
Both images have had their own scale, window, flip and colors; some objects of the second one, drawn at random, replace the
pixels of the first. What they cover is cut from the masks behind them. Edges are not blended, which the paper finds to be as
good. Where the second image lies over the first is drawn too, as images need not be of one size here.

Both are put together in the input frame, so that from then on masks are as large as they are shown. A keypoint of the first
image that is covered stays labelled, and is hidden: COCO's own word for a point whose place is known but not seen.
"""

from dataclasses import replace

import torch
from torch import Tensor

from maskwright.structures import Instances
from maskwright.structures import keypoints as keypoint_functions


def paste_objects(
    first: tuple[Tensor, Instances], second: tuple[Tensor, Instances], generator: torch.Generator
) -> tuple[Tensor, Instances]:
    """The first image with some objects of the second, crowds excepted; as it is where the second has none in sight.

    Args:
        first, second: pixels (3, h, w), and objects with masks of that frame; each of its own size.
        generator: of the place of the second image, and of which objects are taken.
    """
    pixels, instances = first
    size = (int(pixels.shape[1]), int(pixels.shape[2]))
    (top, bottom), (left, right) = (_place(*sides, generator) for sides in zip(size, second[0].shape[1:], strict=True))
    there = second[1].crop((left, top, right, bottom))
    movable = (~there.crowd).nonzero().flatten()
    if not len(movable):
        return first
    count = int(torch.randint(1, len(movable) + 1, (), generator=generator))
    pasted = there[movable[torch.randperm(len(movable), generator=generator)[:count]]]
    assert pasted.masks is not None
    covered = pasted.masks.union()
    rows, columns = covered.nonzero().unbind(1)
    pixels = pixels.clone()
    pixels[:, rows, columns] = second[0][:, rows + top, columns + left]
    return pixels, Instances.cat([_behind(instances, covered), pasted])


def _place(length: int, other: int, generator: torch.Generator) -> tuple[int, int]:
    """The first image's side in px of the second, so that the shorter one of both lies anywhere within the longer."""
    spare = other - length
    begin = int(torch.randint(min(0, spare), max(0, spare) + 1, (), generator=generator))
    return begin, begin + length


def _behind(instances: Instances, covered: Tensor) -> Instances:
    """What is left of objects where pixels (h, w) are covered; crowds stay, as they are regions and no objects."""
    crowds, objects = instances[instances.crowd], instances[~instances.crowd]
    assert objects.masks is not None
    left = objects.masks.without(covered)
    areas = left.areas()
    is_cut = areas < objects.masks.areas()
    boxes = torch.where(is_cut[:, None], left.boxes().to(objects.boxes), objects.boxes)
    points = None if objects.keypoints is None else keypoint_functions.hide(objects.keypoints, covered)
    return Instances.cat([crowds, replace(objects, boxes=boxes, masks=left, keypoints=points)[areas > 0]])
