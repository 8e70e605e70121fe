"""Pictures of instances, by Pillow."""

import colorsys
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from maskwright.structures import Instances, KeypointSchema
from maskwright.structures.rle import Bitmap

MIN_SIDE_PX = 640
"""Smaller images are enlarged by a whole factor, so that outlines and labels can be read."""
MIN_POINT = 0.02
"""Keypoints whose peak is flatter than this are not drawn; labelled ones have 1 or 2."""


def draw_instances(
    image: npt.NDArray[np.uint8],
    instances: Instances,
    names: Sequence[str],
    *,
    schema: KeypointSchema | None = None,
    opacity: float = 0.4,
    colors: Sequence[tuple[int, int, int]] | None = None,
) -> Image.Image:
    """Masks as tinted areas with outlines, boxes where there are no masks, skeletons, and labels where they fit.

    With one class every object has a color of its own; with several, every class has.

    Args:
        image: RGB uint8 (H, W, 3), the frame of `instances`.
        names: of the classes, by label.
        schema: of the keypoints; without one they are not drawn.
        opacity: of the tint, in [0, 1].
        colors: RGB of each object, instead; then there are no labels.
    """
    zoom = max(1, -(-MIN_SIDE_PX // max(1, min(image.shape[:2]))) if min(image.shape[:2]) < MIN_SIDE_PX else 1)
    zoom = min(zoom, max(1, 4096 // max(image.shape[:2])))
    canvas = np.repeat(np.repeat(image, zoom, axis=0), zoom, axis=1).astype(np.float32)
    labels = instances.labels.tolist()
    has_labels = colors is None
    if colors is None:
        colors = [_color(label if len(names) > 1 else i) for i, label in enumerate(labels)]
    if instances.masks is not None:
        for (crop, (x0, y0, x1, y1)), color in zip(instances.masks.crops(), colors, strict=True):
            area = np.repeat(np.repeat(crop, zoom, axis=0), zoom, axis=1)
            view = canvas[y0 * zoom : y1 * zoom, x0 * zoom : x1 * zoom]
            view[area] = (1 - opacity) * view[area] + opacity * np.array(color, dtype=np.float32)
            view[_outline(area)] = color
    picture = Image.fromarray(canvas.round().astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=max(12, min(picture.size) // 60))
    boxes, zoomed = (instances.boxes * zoom).tolist(), instances.boxes.new_tensor([zoom, zoom, 1])
    scores = [None] * len(labels) if instances.scores is None else instances.scores.tolist()
    taken: list[tuple[float, float, float, float]] = []
    joints = [None] * len(labels) if instances.keypoints is None else (instances.keypoints * zoomed).tolist()
    for box, label, score, color, points in zip(boxes, labels, scores, colors, joints, strict=True):
        if instances.masks is None:
            draw.rectangle(box, outline=color, width=2)
        if points is not None and schema is not None:
            _draw_skeleton(draw, points, schema, color, width=max(2, max(picture.size) // 400))
        if not has_labels:
            continue
        text = names[label] if score is None else f"{names[label]} {score:.2f}" if len(names) > 1 else f"{score:.2f}"
        _draw_label(draw, font, text, box, color, picture.size, taken)
    return picture


def contact_sheet(pictures: Sequence[Image.Image], *, columns: int, tile_px: int) -> Image.Image:
    """Pictures side by side, each fitted into a square tile."""
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * tile_px, rows * tile_px), (24, 24, 24))
    for i, picture in enumerate(pictures):
        fitted = picture.copy()
        fitted.thumbnail((tile_px - 8, tile_px - 8))
        x, y = (i % columns) * tile_px, (i // columns) * tile_px
        sheet.paste(fitted, (x + (tile_px - fitted.width) // 2, y + (tile_px - fitted.height) // 2))
    return sheet


def _color(index: int) -> tuple[int, int, int]:
    """Neighbouring indices get far hues: steps of the golden angle."""
    r, g, b = colorsys.hsv_to_rgb((0.58 + index * 0.61803399) % 1, 0.75 + 0.25 * (index % 2), 1.0)
    return int(255 * r), int(255 * g), int(255 * b)


def _outline(area: Bitmap) -> Bitmap:
    """Pixels of an area with a neighbour outside it."""
    padded = np.pad(area, 1)
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return area & ~inside


def _draw_skeleton(
    draw: ImageDraw.ImageDraw,
    points: Sequence[Sequence[float]],
    schema: KeypointSchema,
    color: tuple[int, int, int],
    width: int,
) -> None:
    """Light lines with dark edges between the points that are there, and a dot for each."""
    there = [v > MIN_POINT for _, _, v in points]
    lines = [(*points[a][:2], *points[b][:2]) for a, b in schema.skeleton if there[a] and there[b]]
    light = tuple(255 - (255 - part) // 3 for part in color)
    for shade, more in (((0, 0, 0), 2), (light, 0)):
        for line in lines:
            draw.line(line, fill=shade, width=width + more)
    for (x, y, _), is_there in zip(points, there, strict=True):
        if is_there:
            draw.ellipse([x - width, y - width, x + width, y + width], fill=(255, 255, 255), outline=(0, 0, 0))


def _draw_label(
    draw: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    text: str,
    box: Sequence[float],
    color: tuple[int, int, int],
    size: tuple[int, int],
    taken: list[tuple[float, float, float, float]],
) -> None:
    """A label at the top left of a box, unless it would cover another one: the best scores come first."""
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    width, height = right - left + 6, bottom - top + 6
    x = min(max(0.0, box[0]), max(0.0, size[0] - width))
    y = box[1] - height if box[1] >= height else box[1]
    place = (x, y, x + width, y + height)
    if any(place[0] < t[2] and t[0] < place[2] and place[1] < t[3] and t[1] < place[3] for t in taken):
        return
    taken.append(place)
    draw.rectangle(place, fill=color)
    dark = sum(color) > 380
    draw.text((x + 3 - left, y + 3 - top), text, fill=(0, 0, 0) if dark else (255, 255, 255), font=font)
