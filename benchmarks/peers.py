"""torchvision's models behind maskwright's contract, so that one loop trains and one evaluator scores both."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, MaskRCNN, fcos_resnet50_fpn, maskrcnn_resnet50_fpn
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign

from maskwright.layers.backbones import Backbone
from maskwright.layers.fpn import FeaturePyramid, SubsampledLevels
from maskwright.structures import ImageBatch, InputSpec, Instances, Masks, ResizeRule
from maskwright.systems import Loss, Task


class TorchvisionMaskRCNN(nn.Module):
    """A torchvision Mask R-CNN as a system: its own heads, losses, sampling, post-processing and paste."""

    def __init__(self, model: MaskRCNN, input: InputSpec) -> None:
        super().__init__()
        self.model = model
        self.input = input
        self.task = Task.INSTANCES

    @property
    def max_detections(self) -> int:
        """Objects answered for an image at most."""
        return int(self.model.roi_heads.detections_per_img)

    @max_detections.setter
    def max_detections(self, value: int) -> None:
        self.model.roi_heads.detections_per_img = value

    def loss(self, images: ImageBatch, targets: list[Instances]) -> dict[str, Loss]:
        """Their five terms, each a mean already; crowds are left out, as their training script does."""
        self.model.rpn.train()  # they ask for the mode; the norms of the backbone stay as whoever trains has set them
        self.model.roi_heads.train()
        pixels = ImageList(images.pixels, images.sizes)
        wanted = [self._target(t[~t.crowd], images.pixels.device) for t in targets]
        features = self.model.backbone(images.pixels)
        proposals, rpn = self.model.rpn(pixels, features, wanted)
        _, heads = self.model.roi_heads(features, proposals, images.sizes, wanted)
        return {name: Loss(value, value.new_ones(())) for name, value in (rpn | heads).items()}

    def predict(self, images: ImageBatch) -> list[Instances]:
        """Their detections, and their dense soft masks cut at one half."""
        self.model.rpn.eval()
        self.model.roi_heads.eval()
        self.model.transform.eval()
        features = self.model.backbone(images.pixels)
        proposals, _ = self.model.rpn(ImageList(images.pixels, images.sizes), features)
        found, _ = self.model.roi_heads(features, proposals, images.sizes)
        found = self.model.transform.postprocess(found, images.sizes, images.original_sizes)
        return [
            Instances(
                size,
                boxes=f["boxes"].float(),
                labels=f["labels"] - 1,
                scores=f["scores"].float(),
                masks=Masks.from_dense(f["masks"][:, 0] > 0.5),
            )
            for f, size in zip(found, images.original_sizes, strict=True)
        ]

    def class_rows(self) -> dict[str, int]:
        """Nothing here is started from other classes."""
        return {}

    @staticmethod
    def _target(target: Instances, device: torch.device) -> dict[str, Tensor]:
        assert target.masks is not None
        masks = target.masks.to_dense().to(torch.uint8).to(device)
        return {"boxes": target.boxes, "labels": target.labels + 1, "masks": masks}


class TorchvisionFCOS(nn.Module):
    """A torchvision FCOS as a system: its own head, losses, assignment and post-processing."""

    def __init__(self, model: FCOS, input: InputSpec) -> None:
        super().__init__()
        self.model = model
        self.input = input
        self.task = Task.BOXES

    @property
    def max_detections(self) -> int:
        """Objects answered for an image at most."""
        return int(self.model.detections_per_img)

    def loss(self, images: ImageBatch, targets: list[Instances]) -> dict[str, Loss]:
        """Their three terms, each a mean already; crowds are left out, as their training script does."""
        features = list(self.model.backbone(images.pixels).values())
        outputs = self.model.head(features)
        anchors = self.model.anchor_generator(ImageList(images.pixels, images.sizes), features)
        kept = [t[~t.crowd] for t in targets]
        wanted = [{"boxes": t.boxes, "labels": t.labels + 1} for t in kept]
        counts = [f.shape[2] * f.shape[3] for f in features]
        losses = self.model.compute_loss(wanted, outputs, anchors, counts)
        return {name: Loss(value, value.new_ones(())) for name, value in losses.items()}

    def predict(self, images: ImageBatch) -> list[Instances]:
        """Their detections."""
        features = list(self.model.backbone(images.pixels).values())
        counts = [f.shape[2] * f.shape[3] for f in features]
        outputs = {name: list(value.split(counts, dim=1)) for name, value in self.model.head(features).items()}
        anchors = self.model.anchor_generator(ImageList(images.pixels, images.sizes), features)
        levels = [list(a.split(counts)) for a in anchors]
        found = self.model.postprocess_detections(outputs, levels, images.sizes)
        found = self.model.transform.postprocess(found, images.sizes, images.original_sizes)
        return [
            Instances(size, boxes=f["boxes"].float(), labels=(f["labels"] - 1).clamp(min=0), scores=f["scores"].float())
            for f, size in zip(found, images.original_sizes, strict=True)
        ]

    def class_rows(self) -> dict[str, int]:
        """Nothing here is started from other classes."""
        return {}


class _Anchors(AnchorGenerator):
    """Their anchors in float32: under autocast they follow the features into bf16, which rounds coordinates over 256 px."""

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        return super().forward(image_list, [f.to(torch.float32) for f in feature_maps])


class _Coder(BoxCoder):
    """Their box code, decoding in float32: under autocast proposals, and with them the indices of objects, become bf16."""

    def decode_single(self, rel_codes: Tensor, boxes: Tensor) -> Tensor:
        return super().decode_single(rel_codes.to(torch.float32), boxes)


def _in_float32(model: MaskRCNN) -> MaskRCNN:
    """Their geometry kept in float32, without which training under bf16 autocast fails."""
    for part in (model.rpn, model.roi_heads):
        part.box_coder = _Coder(part.box_coder.weights)
    return model


class _Features(nn.Module):
    """Our backbone and pyramid in the form their model takes."""

    def __init__(self, backbone: Backbone, fpn: FeaturePyramid, channels: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.fpn = fpn
        self.out_channels = channels

    def forward(self, pixels: Tensor) -> Mapping[str, Tensor]:
        return {str(stride): level for stride, level in self.fpn(self.backbone(pixels)).items()}


def torchvision_small(
    *, num_classes: int, max_detections: int = 300, num_proposals: int = 500, short_px: int = 512, long_px: int = 1024
) -> TorchvisionMaskRCNN:
    """The architecture and sizes of mask-rcnn-small, everything after the pyramid torchvision's."""
    body = Backbone("resnet18", strides=(4, 8, 16), norm="group")
    features = _Features(body, FeaturePyramid(body.channels, channels=128, coarser=SubsampledLevels(2)), 128)
    model = MaskRCNN(
        features,
        rpn_anchor_generator=_Anchors(((24,), (48,), (96,), (192,), (384,)), ((0.5, 1.0, 2.0),) * 5),
        rpn_pre_nms_top_n_train=1000,
        rpn_post_nms_top_n_train=500,
        rpn_pre_nms_top_n_test=num_proposals,
        rpn_post_nms_top_n_test=num_proposals,
        box_roi_pool=MultiScaleRoIAlign(["4", "8", "16"], 7, 2),
        box_head=TwoMLPHead(128 * 7 * 7, 128),
        box_predictor=FastRCNNPredictor(128, num_classes + 1),
        box_batch_size_per_image=128,
        box_detections_per_img=max_detections,
        mask_roi_pool=MultiScaleRoIAlign(["4", "8", "16"], 14, 2),
        mask_head=MaskRCNNHeads(128, (128,) * 4, 1),
        mask_predictor=MaskRCNNPredictor(128, 128, num_classes + 1),
    )
    return TorchvisionMaskRCNN(_in_float32(model), InputSpec(resize=ResizeRule(short_px, long_px)))


def torchvision_r50(*, num_classes: int, short_px: int = 800, long_px: int = 1333, **options: Any) -> TorchvisionMaskRCNN:
    """`maskrcnn_resnet50_fpn` from scratch, its norms trained."""
    model = maskrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=num_classes + 1, min_size=short_px, max_size=long_px, **options
    )
    model.rpn.anchor_generator = _Anchors(tuple((s,) for s in (32, 64, 128, 256, 512)), ((0.5, 1.0, 2.0),) * 5)
    resize = ResizeRule(short_px, long_px, rounding="floor", antialias=False)
    return TorchvisionMaskRCNN(_in_float32(model), InputSpec(resize=resize))


def torchvision_fcos(*, num_classes: int, short_px: int = 800, long_px: int = 1333, **options: Any) -> TorchvisionFCOS:
    """`fcos_resnet50_fpn` from scratch, its norms trained.

    Boxes begin a stride away from their points: from zero, its ReLU lets too little through to learn in minutes.
    """
    model = fcos_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=num_classes + 1, min_size=short_px, max_size=long_px, **options
    )
    nn.init.ones_(model.head.regression_head.bbox_reg.bias)
    resize = ResizeRule(short_px, long_px, rounding="floor", antialias=False)
    return TorchvisionFCOS(model, InputSpec(resize=resize))
