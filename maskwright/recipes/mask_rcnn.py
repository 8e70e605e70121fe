"""Runs of Faster and Mask R-CNN.

Paper sizes: detectron2's schedules on COCO 2017, from ImageNet weights: 1x is 90,000 steps of 16 images (12 epochs), 3x is
270,000 (37 epochs). The results quoted are detectron2's, whose ResNets have the stage stride in the 1×1 convolution and take
BGR pixels.

    maskwright train mask-rcnn-r50-fpn --data coco --set backbone_weights=timm --out runs/r50

Cost: about 7 h on eight V100s by detectron2's figures (0.26 s a step). Expect box AP 38.6 and mask AP 35.2 (detectron2 model
zoo, R50-FPN 1x). Not run by us at this size.

Small sizes: from scratch, for data sets of hundreds of images.

    maskwright train mask-rcnn-small --data nuclei --out runs/nuclei

Cost and result: see docs/results.md.
"""

from maskwright.recipes.recipe import AugmentOptions, OptimizerOptions, Recipe, ScheduleOptions, Stage
from maskwright.recipes.small import small_recipe

_SGD_1X = Stage(
    epochs=12,
    batch_size=16,
    optimizer=OptimizerOptions(
        kind="sgd", lr=0.02, momentum=0.9, weight_decay=1e-4, bias_weight_decay=1e-4, norm_weight_decay=0.0
    ),  # Mask R-CNN, sec. 3.1; detectron2 exempts norms
    schedule=ScheduleOptions(kind="step", warmup_steps=1000, warmup_factor=0.001, drops=(60 / 90, 80 / 90)),
    augment=AugmentOptions(short_sides=(640, 672, 704, 736, 768, 800)),
    frozen=(
        "backbone.network.conv1.",
        "backbone.network.bn1.",
        "backbone.network.layer1.",
    ),  # detectron2, FREEZE_AT 2
)

_SGD_3X = _SGD_1X.model_copy(
    update={"epochs": 37.0, "schedule": _SGD_1X.schedule.model_copy(update={"drops": (210 / 270, 250 / 270)})}
)


_TORCHVISION = _SGD_1X.model_copy(
    update={
        "epochs": 26.0,  # torchvision, references/detection
        "optimizer": _SGD_1X.optimizer.model_copy(update={"norm_weight_decay": 1e-4}),
        "schedule": _SGD_1X.schedule.model_copy(update={"drops": (16 / 26, 22 / 26)}),
        "augment": AugmentOptions(),
    }
)


def _paper(system: str, stage: Stage) -> Recipe:
    return Recipe(system=system, stages=(stage,), ema_decay=0.0, workers=4)


def faster_rcnn_r50_fpn() -> Recipe:
    """Faster R-CNN, R50-FPN, 1x: expect box AP 37.9 (detectron2 model zoo)."""
    return _paper("faster-rcnn-r50-fpn", _SGD_1X)


def mask_rcnn_r50_fpn() -> Recipe:
    """Mask R-CNN, R50-FPN, 1x: expect box AP 38.6, mask AP 35.2 (detectron2 model zoo)."""
    return _paper("mask-rcnn-r50-fpn", _SGD_1X)


def mask_rcnn_r101_fpn() -> Recipe:
    """Mask R-CNN, R101-FPN, 3x: expect box AP 42.9, mask AP 38.6 (detectron2 model zoo)."""
    return _paper("mask-rcnn-r101-fpn", _SGD_3X)


def mask_rcnn_x101_fpn() -> Recipe:
    """Mask R-CNN, X101-32×8d-FPN, 3x: expect box AP 44.3, mask AP 39.5 (detectron2 model zoo)."""
    return _paper("mask-rcnn-x101-fpn", _SGD_3X)


def faster_rcnn_r50_fpn_torchvision() -> Recipe:
    """Faster R-CNN, R50-FPN, with torchvision's parts and schedule: its own reaches box AP 37.0."""
    return _paper("faster-rcnn-r50-fpn-torchvision", _TORCHVISION)


def mask_rcnn_r50_fpn_torchvision() -> Recipe:
    """Mask R-CNN, R50-FPN, with torchvision's parts and schedule: its own reaches box AP 37.9, mask AP 34.6."""
    return _paper("mask-rcnn-r50-fpn-torchvision", _TORCHVISION)


def keypoint_rcnn_r50_fpn_torchvision() -> Recipe:
    """Keypoint R-CNN, R50-FPN, with torchvision's parts, 46 epochs: its own reaches box AP 54.6, keypoint AP 65.0."""
    drops = {"drops": (36 / 46, 43 / 46)}
    longer = {"epochs": 46.0, "schedule": _TORCHVISION.schedule.model_copy(update=drops)}
    jitter = AugmentOptions(short_sides=(640, 672, 704, 736, 768, 800))
    return _paper("keypoint-rcnn-r50-fpn-torchvision", _TORCHVISION.model_copy(update={**longer, "augment": jitter}))


def faster_rcnn_r50_c4() -> Recipe:
    """Faster R-CNN, R50-C4, 1x: expect box AP 35.7 (detectron2 model zoo)."""
    return _paper("faster-rcnn-r50-c4", _SGD_1X)


def mask_rcnn_r50_c4() -> Recipe:
    """Mask R-CNN, R50-C4, 1x: expect box AP 36.8, mask AP 32.2 (detectron2 model zoo)."""
    return _paper("mask-rcnn-r50-c4", _SGD_1X)


def mask_rcnn_r101_c4() -> Recipe:
    """Mask R-CNN, R101-C4, 3x: expect box AP 42.6, mask AP 36.7 (detectron2 model zoo)."""
    return _paper("mask-rcnn-r101-c4", _SGD_3X)


def mask_rcnn_r50_dc5() -> Recipe:
    """Mask R-CNN, R50-DC5, 1x: expect box AP 38.3, mask AP 34.2 (detectron2 model zoo)."""
    return _paper("mask-rcnn-r50-dc5", _SGD_1X)


def keypoint_rcnn_r50_fpn() -> Recipe:
    """Keypoint R-CNN, R50-FPN, 1x on all of COCO; detectron2, on images with people: box AP 53.6, keypoint AP 64.0."""
    return _paper("keypoint-rcnn-r50-fpn", _SGD_1X)


def mask_keypoint_rcnn_r50_fpn() -> Recipe:
    """Masks and keypoints, R50-FPN, likewise; the paper: box AP 52.0, mask AP 45.1, keypoint AP 64.7 (Mask R-CNN, table 5)."""
    return _paper("mask-keypoint-rcnn-r50-fpn", _SGD_1X)


def keypoint_rcnn_small() -> Recipe:
    """Keypoint R-CNN, small."""
    return small_recipe("keypoint-rcnn-small")


def mask_keypoint_rcnn_small() -> Recipe:
    """Masks and keypoints, small."""
    return small_recipe("mask-keypoint-rcnn-small")


def faster_rcnn_small() -> Recipe:
    """Faster R-CNN, small."""
    return small_recipe("faster-rcnn-small")


def mask_rcnn_small() -> Recipe:
    """Mask R-CNN, small."""
    return small_recipe("mask-rcnn-small")


def mask_rcnn_rivals_small() -> Recipe:
    """Mask R-CNN, small, with the parts it was compared with."""
    return small_recipe("mask-rcnn-rivals-small")


def mask_rcnn_c4_small() -> Recipe:
    """Mask R-CNN without a pyramid, small."""
    return small_recipe("mask-rcnn-c4-small")
