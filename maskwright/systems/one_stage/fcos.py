"""FCOS: fully convolutional one-stage object detection, without anchors.

Source: Tian, Shen, Chen, He, FCOS (arXiv 1904.01355; ICCV 2019), in the improved form its authors released and EmbedMask is
built on: center sampling, ReLU and stride units for box sides, GIoU, centerness beside the boxes.

Idea: every cell of a feature pyramid answers for the point at its centre: the class of the object it lies in, its distances
to the four sides of that object's box, and its centerness, which ranks down boxes seen from a corner. Objects are shared out
over the levels by their size, so that a point seldom lies in two.

Differs from the release: boxes are half open (no "+1" in areas, IoU and clipping); boxes without area, and points in the
padding, are not answered; points inside a crowd region are ignored, where others drop crowds and learn that there is nothing;
before training, boxes reach one stride from their point, not nowhere, where the ReLU lets no gradient through.

Legend: B images · H, W padded input · P locations of all levels, finest level first, each level row by row · K classes ·
N objects or detections of one image · n positive locations of the batch · C channels.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import sigmoid_focal_loss

from maskwright.layers.assignment import first_of_each
from maskwright.layers.grids import cell_centres
from maskwright.layers.initialization import init_normal
from maskwright.layers.nms import nms_by_group
from maskwright.layers.precision import Float32Conv2d
from maskwright.layers.towers import Tower, flatten_levels
from maskwright.structures import ImageBatch, InputSpec, Instances
from maskwright.structures import boxes as box_functions
from maskwright.systems.system import Loss, Task, loss_by_size, predict_by_size

Features = Mapping[int, Tensor]
"""{stride: (B, C, H / stride, W / stride)}"""

BACKGROUND, IGNORED = -1, -2


class Locations(NamedTuple):
    """The points that answer."""

    points: Tensor
    """(x, y) px of the input frame, (P, 2)."""
    strides: Tensor
    """px from one to the next, (P,)."""
    counts: list[int]
    """How many each level has."""


class Answers(NamedTuple):
    """What the head says at every location."""

    logits: Tensor
    """Of the classes, (B, P, K)."""
    ltrb: Tensor
    """Distances to left, top, right and bottom side in units of the stride, not negative, (B, P, 4)."""
    centerness: Tensor
    """Logits, (B, P)."""
    box_features: dict[int, Tensor]
    """Output of the box tower, {stride: (B, C, H / stride, W / stride)}."""
    locations: Locations

    def boxes(self, image: int, index: Tensor) -> Tensor:
        """Boxes of some locations of an image, xyxy px (…, 4); differentiable."""
        sides = self.ltrb[image, index] * self.locations.strides[index, None]
        points = self.locations.points[index]
        return torch.cat([points - sides[:, :2], points + sides[:, 2:]], dim=1)


class Found(NamedTuple):
    """Detections of an image and where they come from."""

    instances: Instances
    """Input frame, best first."""
    location: Tensor
    """The location that answered each, int64 (N,)."""


# The network, learning and inference of the whole


class FCOS(nn.Module):
    """FCOS.

    Args:
        input: how an image becomes pixels.
        backbone, fpn: {stride: features} from pixels.
        assigner: which object each location learns.
        head: answers at every location, and what is made of them.
        max_detections: per image.
    """

    def __init__(
        self,
        *,
        input: InputSpec,
        backbone: nn.Module,
        fpn: nn.Module,
        assigner: "CenterAssigner",
        head: "FCOSHead",
        max_detections: int,
    ) -> None:
        super().__init__()
        self.input = input
        self.task = Task.BOXES
        self.backbone = backbone
        self.fpn = fpn
        self.assigner = assigner
        self.head = head
        self.max_detections = max_detections

    @loss_by_size
    def loss(self, images: ImageBatch, targets: list[Instances]) -> dict[str, Loss]:
        """Classes at all locations, box and centerness at those of objects, every weight 1 (FCOS, eq. 2)."""
        answers = self.head(self.fpn(self.backbone(images.pixels)))
        matched = [self.assigner(answers.locations, target) for target in targets]
        return self.head.loss(answers, matched, targets)

    @predict_by_size
    def predict(self, images: ImageBatch) -> list[Instances]:
        """The best boxes (FCOS, sec. 3.1, inference)."""
        answers = self.head(self.fpn(self.backbone(images.pixels)))
        found = self.head.detect(answers, images.sizes, keep=self.max_detections)
        return images.to_original_frame([f.instances for f in found])

    def class_rows(self) -> dict[str, int]:
        """Parameters whose rows belong to classes, and how many rows each class has."""
        return {f"head.{name}": rows for name, rows in self.head.CLASS_ROWS.items()}


# Who learns what (FCOS, sec. 3.1 and 3.2; center sampling in the release)


class CenterAssigner:
    """A location near the middle of an object, on the level for its size, learns that object; the smallest where several ask.

    Args:
        bounds: the largest distance to a side that each level answers for, px, both ends included; the last has none.
    """

    RADIUS = 1.5  # of center sampling, in strides

    def __init__(self, *, bounds: Sequence[float] = (64, 128, 256, 512)) -> None:
        self.bounds = tuple(bounds)

    def __call__(self, locations: Locations, target: Instances) -> Tensor:
        """For each location the row of its object, or BACKGROUND, or IGNORED inside a crowd region, int64 (P,)."""
        matched = torch.full((len(locations.points),), BACKGROUND, device=locations.points.device)
        matched[self._inside_crowds(locations, target)] = IGNORED
        objects = torch.nonzero(~target.crowd)[:, 0]
        gap = (locations.points[:, None] - self._middles(target)[objects]).abs().amax(dim=2)  # (P, N)
        index, column = torch.nonzero(gap < self.RADIUS * locations.strides[:, None], as_tuple=True)
        row = objects[column]
        ltrb = sides(locations.points[index], target.boxes[row])
        level = torch.repeat_interleave(torch.tensor(locations.counts, device=index.device))[index]
        asks = (ltrb.amin(dim=1) > 0) & self._in_range(ltrb.amax(dim=1), level)
        asks &= self._admits(locations.points[index], row, target)
        index, row = index[asks], row[asks]
        smallest = box_functions.area(target.boxes)[row].argsort(stable=True)
        first = first_of_each(index[smallest], len(matched))
        return torch.where(first >= 0, row[smallest][first] if len(row) else first, matched)

    def _middles(self, target: Instances) -> Tensor:
        """Where each object is sampled around, (x, y) px (N, 2)."""
        return (target.boxes[:, :2] + target.boxes[:, 2:]) / 2

    def _in_range(self, distance: Tensor, level: Tensor) -> Tensor:
        """Whether a level answers for a distance, px; one on a bound belongs to both sides (the release)."""
        low, high = self._ends(distance, level)
        return (low <= distance) & (distance <= high)

    def _ends(self, distance: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        bounds = distance.new_tensor([0.0, *self.bounds, torch.inf])
        return bounds[level], bounds[level + 1]

    def _admits(self, points: Tensor, rows: Tensor, target: Instances) -> Tensor:
        """Whether points may learn the objects of `rows`, bool (R,)."""
        return torch.ones_like(rows, dtype=torch.bool)

    @staticmethod
    def _inside_crowds(locations: Locations, target: Instances) -> Tensor:
        """Locations in the mask of a crowd, or in its box where there are no masks, bool (P,)."""
        inside = torch.zeros(len(locations.points), dtype=torch.bool, device=locations.points.device)
        for row in torch.nonzero(target.crowd)[:, 0]:
            index = torch.nonzero(sides(locations.points, target.boxes[row][None]).amin(dim=1) > 0)[:, 0]
            if target.masks is not None:
                index = index[target.masks.at(locations.points[index], row.expand(len(index)))]
            inside[index] = True
        return inside


def sides(points: Tensor, boxes: Tensor) -> Tensor:
    """Distances of points (…, 2) to the left, top, right and bottom sides of boxes (…, 4), px (…, 4) (FCOS, eq. 1)."""
    return torch.cat([points - boxes[..., :2], boxes[..., 2:] - points], dim=-1)


def centerness(ltrb: Tensor) -> Tensor:
    """1 in the middle of a box, 0 at its sides, (…, 4) → (…) (FCOS, eq. 3)."""
    left, top, right, bottom = ltrb.unbind(-1)
    across = torch.minimum(left, right) / torch.maximum(left, right)
    down = torch.minimum(top, bottom) / torch.maximum(top, bottom)
    return (across * down).sqrt()


def weighted_giou(ltrb: Tensor, wanted: Tensor, weights: Tensor) -> Loss:
    """GIoU loss of boxes around the same points, in stride units, weighted by centerness (FCOS's release, IOULoss).

    Areas are smoothed as there: IoU = (I + 1) / (U + 1).

    Args:
        ltrb, wanted: (n, 4).
        weights: (n,).
    """
    shared_sides, hull_sides = torch.minimum(ltrb, wanted), torch.maximum(ltrb, wanted)
    shared, hull = _area(shared_sides), _area(hull_sides) + 1e-7
    union = _area(ltrb) + _area(wanted) - shared
    giou = (shared + 1) / (union + 1) - (hull - union) / hull
    return Loss(((1 - giou) * weights).sum(), weights.sum())


def _area(ltrb: Tensor) -> Tensor:
    return (ltrb[:, 0] + ltrb[:, 2]) * (ltrb[:, 1] + ltrb[:, 3])


# The head (FCOS, fig. 2)


class LevelScales(nn.ModuleDict):
    """A learnable factor for each level, in front of answers whose size depends on it (FCOS, sec. 3.2)."""

    def __init__(self, strides: Sequence[int]) -> None:
        super().__init__({str(stride): _Scale() for stride in strides})

    def forward(self, x: Tensor, stride: int) -> Tensor:
        """The map of one level, scaled."""
        scaled: Tensor = self[str(stride)](x)
        return scaled


class _Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


@dataclass(frozen=True)
class Ranking:
    """Which pairs of location and class are candidates, and what ranks them: (class probability · centerness) ** power.

    Args:
        class_floor: class probabilities must exceed it.
        score_floor: scores must exceed it.
        power: 0.5 keeps scores on the scale of probabilities; it changes no ranking.
    """

    class_floor: float = 0.0
    score_floor: float = 0.0
    power: float = 0.5

    def __call__(self, probs: Tensor, centerness: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Probabilities (P, K) and centerness (P,) → location, label and score of each candidate, in order of location."""
        location, label = torch.nonzero(probs > self.class_floor, as_tuple=True)
        score = (probs[location, label] * centerness[location]) ** self.power
        kept = score > self.score_floor
        return location[kept], label[kept], score[kept]


def on_the_image(points: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Whether points (n, 2) lie on an image of (height, width), not in its padding, and their boxes (n, 4) have an area."""
    return (points < points.new_tensor([size[1], size[0]])).all(dim=1) & box_functions.is_valid(boxes)


class FCOSHead(nn.Module):
    """Two towers, shared by all levels: classes from one, box and centerness from the other.

    Args:
        channels: of the features and the towers.
        num_classes: K.
        num_convs: of each tower.
        scales: per level, applied to box distances before their ReLU, like `LevelScales`.
        ranking: of candidates.
        points: reference points of each level, like `cell_centres`.
        box_loss: from distances, wanted distances and centerness, like `weighted_giou`.
        num_candidates: of each level, before suppression.
        nms_iou: overlap above which a detection suppresses a worse one of its class.
        answered: of points, boxes and the image's size: which are detections, like `on_the_image`.
    """

    CLASS_ROWS: ClassVar = {"classes.weight": 1, "classes.bias": 1}

    def __init__(
        self,
        channels: int,
        *,
        num_classes: int,
        num_convs: int,
        scales: nn.Module,
        ranking: Ranking,
        points: Callable[[Features], list[Tensor]] = cell_centres,
        box_loss: Callable[[Tensor, Tensor, Tensor], Loss] = weighted_giou,
        num_candidates: int = 1000,
        nms_iou: float = 0.6,
        answered: Callable[[Tensor, Tensor, tuple[int, int]], Tensor] = on_the_image,
    ) -> None:
        super().__init__()
        self.class_tower = Tower(channels, num_convs=num_convs)
        self.box_tower = Tower(channels, num_convs=num_convs)
        self.classes = Float32Conv2d(channels, num_classes, 3, padding=1)
        self.ltrb = Float32Conv2d(channels, 4, 3, padding=1)
        self.centerness = Float32Conv2d(channels, 1, 3, padding=1)
        self.scales = scales
        init_normal(self.classes, std=0.01, bias=-math.log(0.99 / 0.01))  # RetinaNet, sec. 4.1: everything is rare at first
        init_normal(self.ltrb, std=0.01, bias=1.0)
        init_normal(self.centerness, std=0.01)
        self.ranking = ranking
        self.points = points
        self.box_loss = box_loss
        self.num_candidates = num_candidates
        self.nms_iou = nms_iou
        self.answered = answered

    def forward(self, features: Features) -> Answers:
        """Answers at every location."""
        class_features = {stride: self.class_tower(level) for stride, level in features.items()}
        box_features = {stride: self.box_tower(level) for stride, level in features.items()}
        ltrb = {stride: F.relu(self.scales(self.ltrb(x), stride)) for stride, x in box_features.items()}
        points = self.points(features)
        counts = [len(p) for p in points]
        strides = torch.tensor(list(features), dtype=torch.float32).repeat_interleave(torch.tensor(counts))
        return Answers(
            logits=flatten_levels({stride: self.classes(x) for stride, x in class_features.items()}),
            ltrb=flatten_levels(ltrb),
            centerness=flatten_levels({stride: self.centerness(x) for stride, x in box_features.items()})[:, :, 0],
            box_features=box_features,
            locations=Locations(torch.cat(points), strides.to(points[0].device), counts),
        )

    def loss(self, answers: Answers, matched: list[Tensor], targets: list[Instances]) -> dict[str, Loss]:
        """Focal loss by the number of positives, box loss by their centerness, centerness by their number (the release).

        Args:
            matched: for each image what `CenterAssigner` says, (P,).
            targets: the objects, input frame.
        """
        index = torch.stack(matched)  # (B, P)
        image, location = torch.nonzero(index >= 0, as_tuple=True)
        rows = [m[m >= 0] for m in matched]
        labels = torch.cat([target.labels[row] for target, row in zip(targets, rows, strict=True)])
        boxes = torch.cat([target.boxes[row] for target, row in zip(targets, rows, strict=True)])
        points, strides, _ = answers.locations
        wanted = sides(points[location], boxes) / strides[location, None]
        weights = centerness(wanted)
        classes = torch.zeros_like(answers.logits)
        classes[image, location, labels] = 1.0
        counted = index > IGNORED
        focal = sigmoid_focal_loss(answers.logits[counted], classes[counted], alpha=0.25, gamma=2, reduction="sum")
        centered = F.binary_cross_entropy_with_logits(answers.centerness[image, location], weights, reduction="sum")
        count = focal.new_tensor(len(location))
        return {
            "class": Loss(focal, count),
            "box": self.box_loss(answers.ltrb[image, location], wanted, weights),
            "centerness": Loss(centered, count),
        }

    def detect(self, answers: Answers, sizes: Sequence[tuple[int, int]], *, keep: int) -> list[Found]:
        """The best `keep` detections of each image of (height, width), in the input frame."""
        probs, centered = answers.logits.sigmoid(), answers.centerness.sigmoid()
        found = []
        for i, size in enumerate(sizes):
            location, label, score = self._candidates(probs[i], centered[i], answers.locations.counts)
            boxes = box_functions.clip(answers.boxes(i, location), size)
            valid = self.answered(answers.locations.points[location], boxes, size)
            location, label, score, boxes = location[valid], label[valid], score[valid], boxes[valid]
            kept = nms_by_group(boxes, score, label, self.nms_iou, keep=keep)
            instances = Instances(size, boxes=boxes[kept], labels=label[kept], scores=score[kept])
            found.append(Found(instances, location[kept]))
        return found

    def _candidates(self, probs: Tensor, centered: Tensor, counts: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Location, label and score of the best pairs of each level of an image."""
        location, label, score = self.ranking(probs, centered)
        ends = torch.searchsorted(location, torch.tensor(counts, device=location.device).cumsum(0)).tolist()
        chosen = []
        for start, end in zip([0, *ends[:-1]], ends, strict=True):
            best = score[start:end].topk(min(self.num_candidates, end - start)).indices
            chosen.append(start + best)
        rows = torch.cat(chosen)
        return location[rows], label[rows], score[rows]
