"""Every size of DeepMask, SharpMask, Fast R-CNN and MultiPathNet, and how one becomes a network.

Sources: DeepMask (arXiv 1506.06204), SharpMask (arXiv 1603.08695), Fast R-CNN (arXiv 1504.08083), MultiPathNet (arXiv
1604.02135), and their authors' code; Fast R-CNN on a pyramid: FPN (CVPR 2017), sec. 4.2. Small sizes learn from scratch on a
CPU, on the ResNet-18 that all small systems share, and hold at most 5 M parameters.

Legend: K classes · D size of a window's vector.
"""

import math
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import nn

from maskwright.layers.backbones import Backbone
from maskwright.layers.fpn import FeaturePyramid, SubsampledLevels
from maskwright.layers.roi import RoiAlign, RoiPool
from maskwright.structures import PatchGeometry
from maskwright.systems.proposals.deepmask import DeepMask, MaskHead, OriginalHead, Pyramid, SeparateHead, SharedHead, SplitHead
from maskwright.systems.proposals.fast_rcnn import FastRCNN, ProposalBoxHead
from maskwright.systems.proposals.multipath import OVERLAPS, MultiPathHead, MultiPathNet
from maskwright.systems.proposals.sharpmask import Refinement, Schedule, SharpMask, Upsampling
from maskwright.systems.rcnn.mask_rcnn import RoiSampler
from maskwright.systems.size import LITE_BACKBONE, Amount, Count, Share, Size, Strides, Whole, size_class

# DeepMask and SharpMask

OCTAVES = (-2.5, -2.0, -1.5, -1.0, -0.5, 0.0, 0.5)
"""The code's evaluation, for windows of 160 px; its Zoom adds 1, Zoom² 1 and 1.5."""
HEADS: dict[str, type[SharedHead]] = {"a": SeparateHead, "b": SplitHead, "c": SharedHead}


@size_class
class WindowSize(Size):
    """Of DeepMask, whatever its heads; the numbers are those published for ResNet-50 (SharpMask, sec. 5)."""

    window_px: Count = 160
    """Side of a window, W of the name W-P-D-F."""
    context_px: Whole = 16
    """Px around a window in training, at each side."""
    octaves: Annotated[tuple[Annotated[float, Field(ge=-8, le=4)], ...], Field(min_length=1)] = OCTAVES
    """Base-2 logarithms of the scales of the pyramid."""
    max_side_px: Count | None = None
    """Scales at which an image's longer side exceeds it are left out, but for the smallest; null looks at all."""
    vector_size: Count = 512
    """Numbers of a window's vector, D."""
    coarse_side: Count = 56
    """Cells a side of the mask that is predicted."""
    mask_side: Count = 112
    """Cells a side of the grid that mask is enlarged to."""
    mask_threshold: Share = 0.2  # DeepMask, sec. 5.1, for COCO
    """Probability from which a pixel belongs to the object."""
    score_threshold: Share = 0.0
    """Windows that score less are left out."""
    nms_iou: Share | None = None
    """Overlap of boxes above which a proposal suppresses a worse one; null keeps all, as the authors do."""
    short_px: Count | None = None
    """Shorter side of the input, px; null keeps the image's size."""
    long_px: Count | None = None
    """Longer side of the input at most, px; null sets no bound."""
    max_detections: Count = 1000
    """Proposals of an image at most."""

    def cells_of(self, stride: int) -> int:
        """Of a window, a side.

        Raises:
            ValueError: the window is no multiple of the stride.
        """
        if self.window_px % stride:
            raise ValueError(f"got window_px {self.window_px}, expected a multiple of {stride}, the stride of the features")
        return self.window_px // stride

    def geometry(self) -> PatchGeometry:
        """Windows in which an object is as large as one of 128 px in 224 (DeepMask, sec. 4.1), and where they are looked for.

        The code samples from half an octave below its scales to one and a half above, so that the Zoom scales are known too.
        """
        scales = (min(self.octaves) - 0.5, max(self.octaves) + 1.5)
        return PatchGeometry(self.window_px, self.context_px, math.ceil(self.window_px * 128 / 224), scales)

    def numbers(self) -> dict[str, Any]:
        """All but the backbone and the head of scores."""
        return {
            "input": self.input(),
            "geometry": self.geometry(),
            "mask_head": MaskHead(self.vector_size, coarse=self.coarse_side, side=self.mask_side),
            "pyramid": Pyramid(self.octaves, self.max_side_px),
            "max_detections": self.max_detections,
            "mask_threshold": self.mask_threshold,
            "score_threshold": self.score_threshold,
            "nms_iou": self.nms_iou,
        }


@size_class
class DeepMaskSize(WindowSize):
    """Of DeepMask on a ResNet."""

    norm: Literal["frozen", "group", "layer"] = "frozen"
    """Of the backbone; "layer" looks at one place only, so that a window answers the same wherever it was cut."""
    halvings: Literal[3, 4] = 4
    """Of the resolution in the backbone, P of W-P-D-F."""
    dilated: bool = False
    """Whether the coarsest features come from one stage later, which keeps the resolution by dilation."""
    reduced: Count | None = 128
    """Channels after the 1×1 convolution that makes features thin, F of W-P-D-F; null leaves it out."""
    head: Literal["a", "b", "c"] = "c"
    """How mask and score share vectors (SharpMask, fig. 3); a and b are reconstructions."""
    score_hidden: Count = 1024
    """Units of the score's hidden layer."""

    @property
    def cells(self) -> int:
        """Of a window at the coarsest stride."""
        return self.cells_of(2**self.halvings)

    def parts(self) -> dict[str, Any]:
        """Of the network."""
        strides = (2, 4, 8, 16)[: self.halvings]
        backbone = Backbone(self.backbone, strides=strides, norm=self.norm, padding="symmetric", dilated=self.dilated)
        head = HEADS[self.head](
            backbone.channels[strides[-1]],
            cells=self.cells,
            size=self.vector_size,
            reduced=self.reduced,
            hidden=self.score_hidden,
        )
        return {"backbone": backbone, "head": head, **self.numbers()}


@size_class
class SharpMaskSize(DeepMaskSize):
    """Of SharpMask."""

    width: Count = 32
    """Channels of the mask in the first refinement module, k."""
    schedule: Schedule = "b"
    """Whether k halves whenever the resolution doubles (b), or stays (a) (SharpMask, sec. 5.2)."""
    form: Literal["split", "concatenated"] = "split"
    """Features once for the whole image, or window by window: same weights, same answers, more work."""
    upsampling: Upsampling = "nearest"
    """How each module's answer is enlarged."""
    is_sharp: bool = True
    """Whether predictions are refined; otherwise they are DeepMask's coarse masks by the same weights."""


def deepmask(size: DeepMaskSize, num_classes: int) -> DeepMask:
    """DeepMask on a ResNet, whatever the classes."""
    return DeepMask(**size.parts())


def original_deepmask(size: WindowSize, num_classes: int) -> DeepMask:
    """DeepMask on VGG-A as first published, whatever the classes."""
    backbone = Backbone(size.backbone, strides=(16,), norm="none")
    head = OriginalHead(backbone.channels[16], cells=size.cells_of(16), size=size.vector_size)
    return DeepMask(backbone=backbone, head=head, **size.numbers())


def sharpmask(size: SharpMaskSize, num_classes: int) -> SharpMask:
    """SharpMask, whatever the classes."""
    if size.schedule == "b" and size.width < 2**size.halvings:
        raise ValueError(
            f"got width {size.width}, expected {2**size.halvings} at least, as each of {size.halvings} modules halves it"
        )
    parts = size.parts()
    refinement = Refinement(
        parts["backbone"].channels,
        size=size.vector_size,
        cells=size.cells,
        width=size.width,
        schedule=size.schedule,
        form=size.form,
        upsampling=size.upsampling,
    )
    return SharpMask(refinement=refinement, is_sharp=size.is_sharp, **parts)


DEEPMASK_VGG = WindowSize(
    summary="DeepMask on VGG-A as first published: 75,844,545 parameters, whatever the classes.",
    backbone="vgg11",
    window_px=224,
    context_px=0,
    octaves=(-2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0),  # DeepMask, sec. 5.1
    mask_side=224,
)
SHARPMASK_R50 = SharpMaskSize(
    summary="SharpMask on ResNet-50, W160-P4-D39-F128: DeepMask's parameters and 2,750,535 more, whatever the classes.",
    backbone="resnet50",
)
DEEPMASK_R50 = DeepMaskSize(
    summary="DeepMask on ResNet-50, W160-P4-D39-F128 with head C: 17,333,121 parameters, whatever the classes.",
    backbone="resnet50",
)
DEEPMASK_SMALL = DeepMaskSize(
    summary="DeepMask for a CPU and for tests: 3.7 M parameters.",
    backbone="resnet18",
    norm="layer",
    long_px=1024,
    window_px=80,  # half the side
    context_px=8,
    max_side_px=2048,
    halvings=3,
    dilated=True,  # windows lie as close to each other as in the paper's sizes, relative to the objects
    reduced=32,
    vector_size=224,
    score_hidden=256,
    coarse_side=28,
    mask_side=56,
)
SHARPMASK_SMALL = SharpMaskSize(
    summary="SharpMask for a CPU and for tests: 4.7 M parameters.",
    backbone="resnet18",
    norm="layer",
    long_px=1024,
    window_px=80,
    context_px=8,
    max_side_px=2048,
    halvings=3,
    dilated=True,
    reduced=32,
    vector_size=224,
    score_hidden=256,
    coarse_side=28,
    mask_side=56,
)
DEEPMASK_LITE = replace(
    DEEPMASK_SMALL,
    summary="DeepMask on EfficientNet-Lite0 with ImageNet weights, for a CPU and a hundred images.",
    backbone=LITE_BACKBONE,
    norm="frozen",
)
SHARPMASK_LITE = replace(
    SHARPMASK_SMALL,
    summary="SharpMask on EfficientNet-Lite0 with ImageNet weights, for a CPU and a hundred images.",
    backbone=LITE_BACKBONE,
    norm="frozen",
)


# Fast R-CNN and MultiPathNet


@size_class
class DetectorSize(Size):
    """Of detectors on proposals."""

    has_masks: bool = True
    """Whether proposals bring masks, which detections then have."""
    num_proposals: Count = 500
    """Of an image that are looked at, the best ones."""
    per_image: Count
    """RoIs of an image that are learnt from."""
    negative_from: Share = 0.0
    """Overlap with an object from which a RoI teaches what is none."""
    box_hidden: Count
    """Units of both hidden layers."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability of dropout after each hidden layer."""
    is_hidden_pretrained: bool = False
    """Whether hidden layers begin with those of the backbone's network."""
    score_threshold: Share = 0.05
    """Scores up to it are not answered."""

    @property
    def pretrained(self) -> str | None:
        """The network whose hidden layers are begun with."""
        return self.backbone if self.is_hidden_pretrained else None


@size_class
class FastRcnnSize(DetectorSize):
    """Of Fast R-CNN."""

    box_beta: Amount
    """Error from which the smooth L1 loss of boxes is linear; 0 is L1."""
    nms_iou: Share
    """Overlap above which a detection suppresses a worse one of its class."""

    def parts(self, channels: int, num_classes: int, pool: RoiPool | RoiAlign) -> dict[str, Any]:
        """All but the features."""
        sampler = RoiSampler(num_classes=num_classes, per_image=self.per_image, negative_from=self.negative_from)
        return {
            "input": self.input(),
            "roi_sampler": sampler,
            "box_head": ProposalBoxHead(
                channels,
                hidden=self.box_hidden,
                num_classes=num_classes,
                pool=pool,
                dropout=self.dropout,
                pretrained=self.pretrained,
                box_beta=self.box_beta,
                score_threshold=self.score_threshold,
                nms_iou=self.nms_iou,
            ),
            "has_masks": self.has_masks,
            "num_proposals": self.num_proposals,
            "max_detections": self.max_detections,
        }


@size_class
class PyramidSize(FastRcnnSize):
    """Of Fast R-CNN on a pyramid."""

    norm: Literal["frozen", "group"]
    """Of the backbone: frozen batch norm, which wants pretrained weights, or group norm."""
    strides: Strides
    """Maps of the backbone that are used, px from cell to cell."""
    fpn_channels: Count
    """Channels of every level of the pyramid."""
    sampling_ratio: Whole = 0
    """Samples of a cell a side, of RoIAlign; 0 takes as many as there are features."""


def fast_rcnn(size: FastRcnnSize, num_classes: int) -> FastRCNN:
    """Fast R-CNN on the last map of a network without norms."""
    backbone = Backbone(size.backbone, strides=(16,), norm="none")
    return FastRCNN(features=backbone, **size.parts(backbone.channels[16], num_classes, RoiPool(7, stride=16)))


def pyramid_fast_rcnn(size: PyramidSize, num_classes: int) -> FastRCNN:
    """Fast R-CNN on a pyramid."""
    backbone = Backbone(size.backbone, strides=size.strides, norm=size.norm)
    fpn = FeaturePyramid(backbone.channels, channels=size.fpn_channels, coarser=SubsampledLevels(0))
    pool = RoiAlign(7, strides=size.strides, sampling_ratio=size.sampling_ratio)
    return FastRCNN(features=nn.Sequential(backbone, fpn), **size.parts(size.fpn_channels, num_classes, pool))


@size_class
class MultiPathSize(DetectorSize):
    """Of MultiPathNet."""

    norm: Literal["frozen", "group", "none"]
    """Of the backbone: frozen batch norm, which wants pretrained weights, group norm, or none, as VGG has it."""
    strides: tuple[Count, Count, Count]
    """Of the maps that cells are pooled from, px."""
    mixed: Count
    """Channels of pooled cells."""


def multipath(size: MultiPathSize, num_classes: int) -> MultiPathNet:
    """MultiPathNet."""
    backbone = Backbone(size.backbone, strides=size.strides, norm=size.norm)
    sampler = partial(RoiSampler, num_classes=num_classes, per_image=size.per_image, negative_from=size.negative_from)
    return MultiPathNet(
        input=size.input(),
        features=backbone,
        samplers=[sampler(iou=iou) for iou in OVERLAPS],
        box_head=MultiPathHead(
            backbone.channels,
            mixed=size.mixed,
            hidden=size.box_hidden,
            num_classes=num_classes,
            dropout=size.dropout,
            score_threshold=size.score_threshold,
            pretrained=size.pretrained,
        ),
        has_masks=size.has_masks,
        num_proposals=size.num_proposals,
        max_detections=size.max_detections,
    )


FAST_VGG16 = FastRcnnSize(
    summary="Fast R-CNN on VGG-16: 135.9 M parameters at 80 classes.",
    backbone="vgg16",
    short_px=600,  # Fast R-CNN, sec. 5.2
    long_px=1000,
    size_divisor=32,
    per_image=64,
    negative_from=0.1,
    box_hidden=4096,
    dropout=0.5,
    is_hidden_pretrained=True,
    box_beta=1.0,
    nms_iou=0.3,
    max_detections=100,
)
FAST_R50_FPN = PyramidSize(
    summary="Fast R-CNN on ResNet-50 and FPN: 41.1 M parameters at 80 classes (FPN, sec. 4.2).",
    backbone="resnet50",
    norm="frozen",
    short_px=800,
    long_px=1333,
    size_divisor=32,
    strides=(4, 8, 16, 32),
    fpn_channels=256,
    num_proposals=1000,
    per_image=512,
    box_hidden=1024,
    box_beta=0.0,
    nms_iou=0.5,
    max_detections=100,
)
FAST_SMALL = PyramidSize(
    summary="Fast R-CNN for a CPU and for tests: 4.2 M parameters, Faster R-CNN's small size without its proposals.",
    backbone="resnet18",
    norm="group",
    short_px=512,
    long_px=1024,
    strides=(4, 8, 16),
    fpn_channels=128,
    sampling_ratio=2,
    per_image=128,
    box_hidden=128,
    box_beta=0.0,
    nms_iou=0.5,
    max_detections=300,
)
FAST_LITE = replace(
    FAST_SMALL,
    summary="Fast R-CNN on EfficientNet-Lite0 with ImageNet weights, for a CPU and a hundred images.",
    backbone=LITE_BACKBONE,
    norm="frozen",
    strides=(4, 8, 16, 32),
)
MULTIPATH_VGG16 = MultiPathSize(
    summary="MultiPathNet on VGG-16: 624.3 M parameters at 80 classes.",
    backbone="vgg16",
    norm="none",
    short_px=800,
    long_px=1000,
    size_divisor=32,
    strides=(4, 8, 16),
    mixed=512,
    num_proposals=400,
    per_image=64,
    negative_from=0.1,
    box_hidden=4096,
    dropout=0.5,
    is_hidden_pretrained=True,
    max_detections=100,
)
MULTIPATH_SMALL = MultiPathSize(
    summary="MultiPathNet for a CPU and for tests: 4.8 M parameters.",
    backbone="resnet18",
    norm="group",
    short_px=512,
    long_px=1024,
    strides=(4, 8, 16),
    mixed=48,
    per_image=64,
    box_hidden=128,
    max_detections=300,
)
