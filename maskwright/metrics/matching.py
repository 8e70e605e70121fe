"""COCO's matching and its average precision, for all IoU thresholds and object sizes at once, with pycocotools' numbers.

Detections are matched greedily, best score first, each with the object of its class it overlaps most, provided that object is
still free. The detections of a data set are treated in rounds: first the best one of every image and class, then the second,
and so on; a round is a few array operations whatever the number of images.

Every sum over detections takes a weight for each image, which is what a bootstrap over images needs.

Legend: D detections · G true objects · P pairs · T IoU thresholds · A object sizes · B sets of weights · K classes ·
R recall points.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from maskwright.metrics.overlaps import Bools, Floats, Ints, Kind, Overlaps

THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).tolist())
"""Of IoU."""
RECALLS = np.linspace(0.0, 1.0, 101)
"""Where precision is read."""
SIZES: dict[str, tuple[float, float]] = {
    "all": (0.0, 1e10),
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, 1e10),
}
"""Areas of objects, px²; both ends belong to the range."""


@dataclass(frozen=True, eq=False)
class Matches:
    """Which detection found which object.

    Args:
        overlaps: what was matched.
        kind: by which overlap.
        label: of each detection as it was matched, (D,); 0 for all where classes are ignored.
        truth_label: likewise of the objects, (G,).
        num_classes: that were told apart.
        rank: of each detection within its image and class, (D,).
        kept: detections within the limit, (D,).
        object: int64 (A, T, D), the object found, or -1.
        ignored: (A, T, D), detections that neither help nor harm.
        truth_ignored: (A, G), objects that need not be found: crowds, those of other sizes, and by keypoints those without any.
    """

    overlaps: Overlaps
    kind: Kind
    label: Ints
    truth_label: Ints
    num_classes: int
    rank: Ints
    kept: Bools
    object: npt.NDArray[np.int32]
    ignored: Bools
    truth_ignored: Bools

    def limited(self, limit: int) -> "Matches":
        """What remains of it when only so many detections of an image and class count."""
        return replace(self, kept=self.kept & (self.rank < limit))


def match(overlaps: Overlaps, kind: Kind, *, max_detections: int, class_agnostic: bool = False) -> Matches:
    """Match detections with objects.

    Args:
        max_detections: of an image and class; the best scores stay.
        class_agnostic: whether an object counts as found whatever class it was given.
    """
    truth = overlaps.truth
    label, truth_label = (np.zeros_like(x.label) if class_agnostic else x.label for x in (overlaps, truth))
    rank = _ranks(overlaps.image, label)
    kept = rank < max_detections
    low, high = np.array(list(SIZES.values())).T[:, :, None]  # (A, 1)
    needless = truth.is_crowd | (truth.num_keypoints == 0) if kind == "keypoints" else truth.is_crowd
    truth_ignored = needless | (truth.area < low) | (truth.area > high)  # (A, G)
    found = np.full((len(SIZES), len(THRESHOLDS), len(label)), -1, dtype=np.int32)
    taken = np.zeros((len(SIZES), len(THRESHOLDS), len(truth_label)), dtype=bool)
    thresholds = np.array(THRESHOLDS)[:, None]
    for dt, gt, iou in _rounds(overlaps, kind, label, truth_label, rank, kept):
        possible = (~taken[:, :, gt] | truth.is_crowd[gt]) & (iou >= thresholds)  # (A, T, P)
        order = np.empty(len(gt), dtype=np.int32)
        order[np.lexsort((gt, iou))] = np.arange(1, len(gt) + 1)  # the greatest overlap, the last of equals
        wanted = order + np.int32(len(gt)) * ~truth_ignored[:, None, gt]  # before objects that need not be found
        starts = np.flatnonzero(np.r_[True, dt[1:] != dt[:-1]])
        best = np.maximum.reduceat(np.where(possible, wanted, 0), starts, axis=2)  # (A, T, detections of the round)
        a, t, which = np.nonzero(best)
        pair = np.argsort(order)[(best[a, t, which] - 1) % len(gt)]
        found[a, t, dt[starts][which]] = gt[pair]
        taken[a, t, gt[pair]] = True
    outside = (overlaps.area[kind] < low) | (overlaps.area[kind] > high)  # (A, D)
    if len(truth_label):
        helps_not = np.take_along_axis(truth_ignored, np.maximum(found, 0).reshape(len(SIZES), -1), axis=1)
    else:
        helps_not = np.zeros(found.shape, dtype=bool)
    return Matches(
        overlaps=overlaps,
        kind=kind,
        label=label,
        truth_label=truth_label,
        num_classes=1 if class_agnostic else truth.num_classes,
        rank=rank,
        kept=kept,
        object=found,
        ignored=np.where(found >= 0, helps_not.reshape(found.shape), outside[:, None]),
        truth_ignored=truth_ignored,
    )


def _ranks(image: Ints, label: Ints) -> Ints:
    """Places of detections, sorted by image and score, within their image and class."""
    order = np.lexsort((label, image))  # stable: the score still decides within a group
    new = np.r_[True, (np.diff(image[order]) != 0) | (np.diff(label[order]) != 0)] if len(order) else np.empty(0, dtype=bool)
    starts = np.flatnonzero(new)
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order)) - np.repeat(starts, np.diff(np.r_[starts, len(order)]))
    return rank


def _rounds(
    overlaps: Overlaps, kind: Kind, label: Ints, truth_label: Ints, rank: Ints, kept: Bools
) -> Iterator[tuple[Ints, Ints, Floats]]:
    """Pairs that could match, (dt, gt, iou): first those of detections of rank 0, then of rank 1, and so on."""
    iou = overlaps.iou[kind]
    dt, gt = overlaps.dt, overlaps.gt
    pairs = np.flatnonzero((iou >= THRESHOLDS[0]) & (label[dt] == truth_label[gt]) & kept[dt])
    pairs = pairs[np.lexsort((gt[pairs], dt[pairs], rank[dt[pairs]]))]
    for part in np.split(pairs, np.flatnonzero(np.diff(rank[dt[pairs]])) + 1):
        if len(part):
            yield dt[part], gt[part], iou[part]


# From matches to numbers


@dataclass(frozen=True, eq=False)
class Curves:
    """COCO's precision and recall, nan where there is nothing to find.

    Args:
        precision: at each recall point, (B, T, K, R); None where only `ap` was asked for.
        ap: its mean over recall points, (B, T, K).
        recall: the highest reached, (B, T, K).
    """

    precision: Floats | None
    ap: Floats
    recall: Floats


CHUNK = 2**20
"""Numbers that a sum over detections holds at a time."""


def curves(matches: Matches, size: str = "all", *, weights: npt.NDArray[np.float32] | None = None, full: bool = True) -> Curves:
    """Precision and recall of all classes.

    Args:
        size: of the objects looked at, a name in SIZES.
        weights: how often each image counts, (B, images); by default once.
        full: whether the precision curves are wanted, or only their means.
    """
    truth, area = matches.overlaps.truth, list(SIZES).index(size)
    weights = np.ones((1, truth.num_images), dtype=np.float32) if weights is None else weights
    shape = (len(weights), len(THRESHOLDS), matches.num_classes)
    precision = np.full((*shape, len(RECALLS)), np.nan) if full else None
    ap, recall = np.full(shape, np.nan), np.full(shape, np.nan)
    needed = ~matches.truth_ignored[area]
    counting = matches.kept & ~matches.ignored[area].all(axis=0)
    by_class = groups(matches.label, counting, matches.num_classes)
    objects = groups(matches.truth_label, needed, matches.num_classes)
    for k in range(matches.num_classes):
        rows = by_class[k][np.argsort(-matches.overlaps.score[by_class[k]], kind="stable")]
        step = max(1, CHUNK // max(1, len(rows)))
        for first in range(0, len(weights), step):
            part = slice(first, first + step)
            total = weights[part][:, truth.image[objects[k]]].sum(axis=1)  # (B,) objects to find
            each = torch.from_numpy(weights[part])[:, torch.from_numpy(matches.overlaps.image[rows])]  # (B, n)
            counted, answered = np.ones(len(rows), dtype=bool), each.cumsum(dim=1)
            for t in range(len(THRESHOLDS)):
                if not np.array_equal(counts := ~matches.ignored[area, t, rows], counted):
                    counted, answered = counts, (each * torch.from_numpy(counts)).cumsum(dim=1)
                hits = np.flatnonzero((matches.object[area, t, rows] >= 0) & counted)
                read, reached = precision_at_recalls(torch.from_numpy(hits), each, answered, torch.from_numpy(total))
                ap[part, t, k] = np.where(total > 0, read.mean(axis=1), np.nan)
                recall[part, t, k] = np.where(total > 0, reached, np.nan)
                if precision is not None:
                    precision[part, t, k] = np.where(total[:, None] > 0, read, np.nan)
    return Curves(precision, ap, recall)


def groups(label: Ints, chosen: Bools, count: int) -> list[Ints]:
    """Places of what is chosen, for each class."""
    places = np.flatnonzero(chosen)
    places = places[np.argsort(label[places], kind="stable")]
    return np.split(places, np.searchsorted(label[places], np.arange(1, count)))


def precision_at_recalls(hits: Tensor, each: Tensor, answered: Tensor, total: Tensor) -> tuple[Floats, Floats]:
    """Precision at the recall points (B, R), and the highest recall (B,), of answers ranked by their scores.

    Precision is the highest at that recall or a greater one; it only falls between two hits, so it is looked at where one is.

    Args:
        hits: places of the answers that found an object, best score first, int64 (h,).
        each: how often each answer counts, (B, n).
        answered: its sum up to each answer, those that are ignored left out, (B, n).
        total: objects to find, (B,).
    """
    if len(hits) == 0:
        return np.zeros((len(each), len(RECALLS))), np.zeros(len(each))
    found = each[:, hits].double().cumsum(dim=1)
    precision = found / (answered[:, hits].double() + np.spacing(1))
    recall = found / total.double().clamp(min=1)[:, None]
    envelope = precision.flip(1).cummax(dim=1).values.flip(1)
    points = torch.from_numpy(RECALLS).expand(len(each), -1).contiguous()
    read_at = torch.searchsorted(recall, points)
    read = torch.where(read_at < len(hits), envelope.gather(1, read_at.clamp(max=len(hits) - 1)), 0.0)
    return read.numpy(), recall[:, -1].numpy()
