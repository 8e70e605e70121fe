"""Sizes that suit a data set: what a run looks at before its first step, and what it chooses by that.

A window shows an object well if the object fits it and is not too small for the finest features. The short side, and with it
the scale, is the one at which most training objects are shown well; all else follows from the objects at that scale. What a
recipe or `--set` says is left as it is. The choices stand in recipe.yaml, with the lines that say why; a run never
chooses twice.

The manner is nnU-Net's (Isensee et al., Nature Methods 2021): a fingerprint of the data, fixed rules, a plan that can be read.
The rules are ours.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from maskwright.formats import Dataset
from maskwright.recipes import Recipe, parse_recipe
from maskwright.runs.checkpoints import all_arguments, build_system
from maskwright.structures import PatchGeometry, ResizeRule
from maskwright.structures.patches import octaves_for

Floats = npt.NDArray[np.float64]

LEAST_PX = 16  # a side of an object, the square root of its box, that features of stride 4 still show
FILLS = 0.9  # of a window's side, by which an object at its middle has its edges inside
SHORT_SIDES = (256, 288, 320, 352, 384, 448, 512, 576, 640)  # the last bounds the cost of an image
WINDOWS = (256, 320)  # the last bounds the cost of a step
NEARLY = 0.02  # of the objects: the smallest short side that comes so close to the best is taken, as it is the fastest
WORTH = 0.1  # of the objects: what a larger window must show beyond a smaller one, another scale beyond that of given weights
BASES = (8, 10, 12, 16, 20, 24, 32)  # sides of the smallest anchors
RATIOS = (0.5, 1.0, 2.0)  # of anchors, height to width
REACHED = 0.5  # IoU from which an anchor reaches an object
BOUNDS = (24, 64)  # of the first level's distances, px
USUAL_JITTER = (0.5, 1.6)
DETECTIONS = (100, 1000)  # of an image, at least and at most
PERCENTILES = (5, 25, 50, 75, 95)


@dataclass(frozen=True)
class Objects:
    """The training objects of a data set, crowds left out.

    Args:
        sizes: (width, height) of their boxes, px of the original images, (N, 2).
        images: (height, width) of the image of each, (N, 2).
        counts: objects of every image.
    """

    sizes: Floats
    images: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]

    @classmethod
    def of(cls, dataset: Dataset) -> "Objects":
        """Those of a data set."""
        boxes = [dataset.boxes(i)[~dataset.columns(i).is_crowd] for i in range(len(dataset))]
        counts = np.array([len(b) for b in boxes], dtype=np.int64)
        images = np.array([dataset.image_size(i) for i in range(len(dataset))], dtype=np.int64).reshape(-1, 2)
        corners = np.concatenate([np.zeros((0, 4)), *boxes])
        return cls(corners[:, 2:] - corners[:, :2], np.repeat(images, counts, axis=0), counts)

    def __len__(self) -> int:
        return len(self.sizes)

    def at(self, short_px: int | None, long_px: int | None) -> Floats:
        """(width, height) in the input frame, px, (N, 2)."""
        rule = ResizeRule(short_px, long_px)
        kinds, kind_of = np.unique(self.images, axis=0, return_inverse=True)
        scales = np.array([rule.scale((int(h), int(w))) for h, w in kinds])
        answer: Floats = self.sizes * scales[kind_of.reshape(-1), None]
        return answer


def shown_well(sizes: Floats, window: int) -> float:
    """Share of objects of (width, height) px that a window shows well."""
    return float(((sides(sizes) >= LEAST_PX) & (sizes.max(axis=1) <= FILLS * window)).mean())


def sides(sizes: Floats) -> Floats:
    """Square roots of the areas of (width, height), (N, 2) → (N,)."""
    answer: Floats = np.sqrt(sizes.prod(axis=1))
    return answer


def best_scale(objects: Objects, short_sides: Sequence[int], windows: Sequence[int]) -> tuple[int, int]:
    """Short side of the input, of several to choose from, and side of the window, smaller ones first."""
    shown = {w: {s: shown_well(objects.at(s, 2 * s), w) for s in short_sides} for w in windows}
    window = windows[0]
    for larger in windows[1:]:
        if max(shown[larger].values()) >= max(shown[window].values()) + WORTH:
            window = larger
    best = max(shown[window].values())
    return next(s for s in short_sides if shown[window][s] >= best - NEARLY), window


def jitter_for(sizes: Floats, window: int) -> tuple[float, float]:
    """Range of random scales: most large objects still fit the window, most small ones can still be seen."""
    large, small = np.percentile(sizes.max(axis=1), 90), np.percentile(sides(sizes), 25)
    low, high = np.clip(LEAST_PX / max(small, 1.0), 0.5, 0.7), np.clip(FILLS * window / max(large, 1.0), 1.3, 1.6)
    return round(float(low), 2), round(float(high), 2)


def overlap_of_anchors(sizes: Floats, anchor_sides: Sequence[int]) -> Floats:
    """IoU of each object with the best anchor, both around one point, (N,)."""
    anchors = np.array([(side / r**0.5, side * r**0.5) for side, r in product(anchor_sides, RATIOS)])
    shared = np.minimum(sizes[:, None], anchors).prod(axis=2)
    whole = sizes.prod(axis=1)[:, None] + anchors.prod(axis=1) - shared
    answer: Floats = (shared / np.maximum(whole, 1e-9)).max(axis=1)
    return answer


def anchors_for(sizes: Floats, count: int) -> tuple[int, ...]:
    """Sides of anchors, each twice the one before, which overlap objects most."""
    ladders = [tuple(base * 2**i for i in range(count)) for base in BASES]
    return max(ladders, key=lambda ladder: float(overlap_of_anchors(sizes, ladder).mean()))


def bounds_for(sizes: Floats, count: int) -> tuple[int, ...]:
    """Largest distances of levels but the last, each twice the one before: the largest objects are for the last."""
    largest = np.percentile(sizes.max(axis=1), 95) / 2
    first = int(np.clip(largest / 2 ** (count - 1), *BOUNDS))
    return tuple(first * 2**i for i in range(count))


def detections_for(counts: npt.NDArray[np.int64]) -> int:
    """A quarter more than any training image has, in hundreds."""
    return int(np.clip(-(-1.25 * int(counts.max(initial=0)) // 100) * 100, *DETECTIONS))


def fitted(recipe: Recipe, dataset: Dataset, say: Callable[[str], object], kept: Mapping[str, Any] | None = None) -> Recipe:
    """A recipe with sizes that suit the data, where it asks for them and does not name them.

    Args:
        dataset: the training images.
        say: hears the statistics and what follows from them.
        kept: arguments of weights to start from, whose anchors and bounds stay as they were trained, and whose scale stays
            where it shows the objects nearly as well.

    Raises:
        ValueError: data without objects for a system whose scales must come from them.
    """
    if recipe.fitted:
        return recipe
    if not recipe.fit_sizes:
        return _with_view(recipe, {}, WINDOWS[0], USUAL_JITTER)
    objects, defaults = Objects.of(dataset), all_arguments(recipe.system, {})
    if "octaves" in defaults:
        recipe, lines = _with_octaves(recipe, objects)
    elif not len(objects) or "short_px" not in defaults:
        why = "no objects to choose sizes by" if not len(objects) else f"{recipe.system} has no short_px to choose"
        recipe, lines = _with_view(recipe, {}, WINDOWS[0], USUAL_JITTER), [f"{why}: they are the usual ones"]
    else:
        recipe, lines = _with_sizes(recipe, objects, defaults, kept or {})
    for line in lines:
        say(line)
    return parse_recipe(recipe.model_copy(update={"fitted": tuple(lines)}).model_dump(mode="json"))  # as it will be read again


def _with_sizes(
    recipe: Recipe, objects: Objects, defaults: Mapping[str, Any], kept: Mapping[str, Any]
) -> tuple[Recipe, list[str]]:
    """With all that follows from the scale, and why."""
    given = recipe.arguments
    windows = sorted({side for stage in recipe.stages if isinstance(side := stage.augment.crop_px, int)}) or WINDOWS
    if "short_px" in given:
        short, window = given["short_px"], windows[0]
    else:
        short, window = best_scale(objects, SHORT_SIDES, windows)
        best, known = shown_well(objects.at(short, 2 * short), window), kept.get("short_px")
        if known is not None and shown_well(objects.at(known, 2 * known), window) >= best - WORTH:
            short = known
    long = given.get("long_px", None if short is None else 2 * short)
    sizes = objects.at(short, long)
    chosen = {"short_px": short, "long_px": long, "max_detections": detections_for(objects.counts)}
    if "anchors" in defaults:
        chosen["anchors"] = _anchors_like(defaults["anchors"], sizes)
    if defaults.get("bounds"):
        chosen["bounds"] = bounds_for(sizes, len(defaults["bounds"]))
    chosen |= {name: kept[name] for name in ("anchors", "bounds") if name in chosen and name in kept}
    chosen |= {name: given[name] for name in chosen if name in given}
    jitter, usable = jitter_for(sizes, window), {name: value for name, value in chosen.items() if name in defaults}
    return _with_view(recipe, usable, window, jitter), _in_words(objects, sizes, window, jitter, chosen)


def _anchors_like(usual: Any, sizes: Floats) -> Any:
    """Anchors for objects, as many for each level or cell as usual."""
    if not isinstance(usual, Mapping):
        return anchors_for(sizes, len(usual))
    if len(usual) == 1:
        return {level: anchors_for(sizes, len(each)) for level, each in usual.items()}
    return {level: (side,) for level, side in zip(usual, anchors_for(sizes, len(usual)), strict=True)}


def _with_view(recipe: Recipe, chosen: Mapping[str, Any], window: int, jitter: tuple[float, float]) -> Recipe:
    """With arguments, and with a window and jitter in stages that leave them open."""
    stages = []
    for stage in recipe.stages:
        augment = stage.augment
        open_ones = {"crop_px": window, "jitter": jitter}
        update = {name: value for name, value in open_ones.items() if getattr(augment, name) == "fit"}
        stages.append(stage.model_copy(update={"augment": augment.model_copy(update=update)}))
    return recipe.model_copy(update={"arguments": {**recipe.arguments, **chosen}, "stages": tuple(stages)})


def _in_words(
    objects: Objects, sizes: Floats, window: int, jitter: tuple[float, float], chosen: Mapping[str, Any]
) -> list[str]:
    """What was found, and what was chosen by it."""
    shown = ", ".join(f"{side:.0f}" for side in np.percentile(sides(sizes), PERCENTILES))
    larger = (sizes.max(axis=1) > FILLS * window).mean()
    smaller = (sides(sizes) < LEAST_PX).mean()
    lines = [
        f"objects: {len(objects)}, up to {objects.counts.max()} an image; sides of {shown} px in the input "
        f"({', '.join(map(str, PERCENTILES))} %)",
        f"fitted: short side {chosen['short_px']} px, windows of {window} px, scales {jitter[0]:g} to {jitter[1]:g}; "
        f"{larger:.0%} of the objects are larger than a window shows whole, {smaller:.0%} have less than {LEAST_PX} px",
    ]
    if "anchors" in chosen:
        given = chosen["anchors"]
        ladder = [side for each in given.values() for side in each] if isinstance(given, Mapping) else given
        reached = (overlap_of_anchors(sizes, ladder) >= REACHED).mean()
        lines.append(f"anchors of {', '.join(map(str, ladder))} px reach {reached:.0%} of the objects (IoU {REACHED:g})")
    if "bounds" in chosen:
        lines.append(f"levels end at distances of {', '.join(map(str, chosen['bounds']))} px")
    lines.append(f"at most {chosen['max_detections']} detections an image")
    return lines


def _with_octaves(recipe: Recipe, objects: Objects) -> tuple[Recipe, list[str]]:
    """With the scales at which a system's windows show most objects at their canonical size, and why.

    Raises:
        ValueError: there are no objects.
    """
    with torch.device("meta"):
        system = build_system(recipe.system, {"num_classes": 1, **recipe.arguments})
    geometry = getattr(system, "geometry", None)
    assert isinstance(geometry, PatchGeometry)
    longer = objects.at(system.input.resize.short_px, system.input.resize.long_px).max(axis=1, initial=0).tolist()
    octaves = recipe.arguments.get("octaves") or octaves_for(longer, object_px=geometry.object_px)
    shown = ", ".join(f"{side:.0f}" for side in np.percentile(longer, PERCENTILES)) if longer else "none"
    line = (
        f"objects: longer sides of {shown} px at {', '.join(map(str, PERCENTILES))} %; "
        f"pyramid: scales 2^({', '.join(f'{octave:g}' for octave in octaves)}), which show them at {geometry.object_px} px"
    )
    return recipe.model_copy(update={"arguments": {**recipe.arguments, "octaves": tuple(octaves)}}), [line]
