"""Keypoint R-CNN: the joints of a person as masks of a single pixel, alone or beside a mask of the whole.

Source: He, Gkioxari, Dollár, Girshick, Mask R-CNN (arXiv 1703.06870v3), sec. 5; where it is silent, detectron2.

Idea: each keypoint is a mask of its own with one pixel that is on. A softmax over the cells of a box's grid says where it is;
nothing else about poses is known to the network. The grid is finer than that of masks, as joints are small.

Differs from the paper, as detectron2 does: the loss of boxes is smooth (β 0.5), a RoI teaches keypoints only if one of them can
be seen in it, the RPN learns along and gives 1500 proposals in training, and a keypoint's score is the height of its peak in
the softmax.

Legend: R RoIs of the batch · C channels · J keypoints · M side of the heatmaps, 56.
"""

from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.layers.precision import Float32ConvTranspose2d
from maskwright.layers.roi import RoiOperator, Rois
from maskwright.structures import Instances
from maskwright.structures.keypoints import from_heatmaps, to_cells
from maskwright.systems.rcnn.mask_rcnn import SampledRois
from maskwright.systems.rcnn.rpn import Features
from maskwright.systems.system import Loss

ENLARGED = 4  # heatmaps have so many cells a side for each of the pooled features: twice by a deconvolution, twice by bilinear


class KeypointHead(nn.Module):
    """A heatmap for each keypoint from 3×3 convolutions and a deconvolution on 14×14 pooled features.

    Args:
        channels: of the features.
        num_keypoints: J, the same for all classes.
        pool: to a quarter of the side of the heatmaps.
        depth: convolutions.
        hidden: their channels.
    """

    CLASS_ROWS: ClassVar[dict[str, int]] = {}

    def __init__(self, channels: int, *, num_keypoints: int, pool: RoiOperator, depth: int = 8, hidden: int = 512) -> None:
        super().__init__()
        self.pool = pool
        widths = [channels, *[hidden] * depth]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))
        self.deconv = Float32ConvTranspose2d(hidden, num_keypoints, 4, stride=2, padding=1)
        for layer in (*self.convs, self.deconv):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)

    def forward(self, features: Features, rois: Rois) -> Tensor:
        """Logits over the cells of each RoI, float32 (R, J, M, M)."""
        hidden = self.pool(features, rois)  # (R, C, M / 4, M / 4)
        for conv in self.convs:
            hidden = F.relu(conv(hidden), inplace=True)
        return F.interpolate(self.deconv(hidden), scale_factor=ENLARGED // 2, mode="bilinear")

    def loss(self, features: Features, sampled: SampledRois, targets: list[Instances]) -> dict[str, Loss]:
        """Cross entropy over the cells of a RoI, for each labelled keypoint inside a positive one (Mask R-CNN, sec. 5)."""
        rois = sampled.positives
        points = torch.cat([points_of(t)[rows] for t, rows in zip(targets, sampled.target_rows, strict=True)])
        cells, inside = to_cells(points, rois.boxes, side=ENLARGED * self.pool.side)
        shown = inside.any(dim=1)  # others teach nothing
        logits = self(features, Rois(rois.boxes[shown], rois.image_index[shown]))  # (R, J, M, M)
        loss = F.cross_entropy(logits.flatten(2)[inside[shown]], cells[inside], reduction="sum")
        return {"keypoint": Loss(loss, inside.sum().to(logits.dtype))}

    def complete(self, detections: list[Instances], features: Features, rois: Rois) -> list[Instances]:
        """Detections with their keypoints: x, y, and how high the peak is."""
        counts = [len(d) for d in detections]
        parts, boxes = torch.split(self(features, rois), counts), torch.split(rois.boxes, counts)
        return [
            d.with_keypoints(_carried(from_heatmaps(part, box), box, d.boxes, d.image_size))
            for d, part, box in zip(detections, parts, boxes, strict=True)
        ]


def points_of(target: Instances) -> Tensor:
    """The keypoints a system learns from, (N, J, 3).

    Raises:
        ValueError: there are none.
    """
    if target.keypoints is None:
        raise ValueError("the targets have no keypoints: train a system without them, such as mask-rcnn-small")
    return target.keypoints


def _carried(points: Tensor, boxes: Tensor, to_boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Points (N, J, 3) in boxes (N, 4), at the same place in the same boxes of another frame, the image of that size."""
    share = (points[..., :2] - boxes[:, None, :2]) / (boxes[:, None, 2:] - boxes[:, None, :2])
    moved = to_boxes[:, None, :2] + share * (to_boxes[:, None, 2:] - to_boxes[:, None, :2])
    moved = torch.minimum(moved.clamp(min=0), moved.new_tensor([size[1], size[0]]))  # a box may be narrower than a pixel
    return torch.cat([moved, points[..., 2:]], dim=-1)


KEYPOINT_LAYER = "instance_heads.keypoint.deconv."
"""Whose parameters belong to keypoints, as rows do to classes: beginning of their names."""
