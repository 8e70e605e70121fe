"""Runs of Faster, Mask and Keypoint R-CNN.

Paper sizes: on COCO 2017, from ImageNet weights. 1x and 3x are detectron2's schedules, 90,000 steps of 16 images (12 epochs)
and 270,000 (37 epochs); the results quoted are its model zoo's, whose ResNets have the stage stride in the 1×1 convolution and
take BGR pixels. `-paper` and `-rivals-r50-…` have the schedule of Mask R-CNN, 160,000 steps, but NMS at 0.5, where the paper's
tables have 0.3, and an RPN that learns along. `timm` stands for ImageNet weights like those that these results began with:
torchvision's first (of X101-64×4d there are only later ones). `-a1` begins with weights of a longer recipe (timm's a1_in1k;
ResNet strikes back, arXiv 2110.00476), for which mmdetection searched rate and decay of AdamW (`configs/resnet_strikes_back`).

    maskwright train mask-rcnn-r50-fpn --data coco --set backbone_weights=timm --out runs/r50
    maskwright train keypoint-rcnn-r50-fpn --data coco --set backbone_weights=timm --out runs/people
    maskwright train mask-rcnn-r50-fpn-a1 --data coco --out runs/a1
    maskwright train mask-rcnn-r50-fpn-cityscapes --data cityscapes --set backbone_weights=timm --out runs/streets
    maskwright train mask-rcnn-r50-fpn-cityscapes-from-coco --data cityscapes --init runs/r50 --out runs/streets2

Cost, hours on eight V100s by detectron2's seconds a step:

              Faster R-CNN      Mask R-CNN        keypoints
    1x  R50   FPN 5, C4 14,     FPN 7, C4 15,     FPN 8
              DC5 10            DC5 12
    3x  R50   FPN 16            FPN 20            FPN 24
        R101  FPN 21, C4 46,    FPN 26, C4 49,    FPN 29
              DC5 34            DC5 41
        X101  FPN 48            FPN 52            FPN 55

Cityscapes takes 1.6 h, from COCO a sixth of it; X101-64×4d 61 h by Detectron's 1.22 s a step. On eight GPUs of 2017 160,000
steps took 32 h with R50-FPN, 44 h with R101-FPN (Mask R-CNN, sec. 4.1), Cityscapes 4 h. Of torchvision's, of `-a1`, of
`-rivals-…` and of masks and keypoints together, none is known.
Not run by us at these sizes.

Small sizes: from scratch, for data sets of hundreds of images.

    maskwright train mask-rcnn-small --data nuclei --out runs/nuclei

30 epochs of mask-rcnn-small on 531 images took 93 minutes of two cores.
"""

from maskwright.recipes.known import Training, lite, small
from maskwright.recipes.recipe import AugmentOptions, OptimizerOptions, ScheduleOptions, Stage

_SGD_1X = Stage(
    epochs=12,
    batch_size=16,
    optimizer=OptimizerOptions(
        kind="sgd", lr=0.02, lr_images=16, momentum=0.9, weight_decay=1e-4, bias_weight_decay=1e-4, norm_weight_decay=0.0
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


_PEOPLE_1X = _SGD_1X.model_copy(update={"epochs": 25.0})
_PEOPLE_3X = _SGD_3X.model_copy(update={"epochs": 76.0})
"""About as many steps: half of COCO's images show people with keypoints."""

_TORCHVISION = _SGD_1X.model_copy(
    update={
        "epochs": 26.0,  # torchvision, references/detection
        "optimizer": _SGD_1X.optimizer.model_copy(update={"norm_weight_decay": 1e-4}),
        "schedule": _SGD_1X.schedule.model_copy(update={"drops": (16 / 26, 22 / 26)}),
        "augment": AugmentOptions(),
    }
)


_PAPER = _SGD_1X.model_copy(
    update={
        "epochs": 21.64,
        "schedule": _SGD_1X.schedule.model_copy(update={"drops": (120 / 160,)}),
        "augment": AugmentOptions(),
    }
)
"""Mask R-CNN, sec. 3.1: 160,000 steps of COCO's 118,287 images, one scale; the warm-up is detectron2's, as the paper
describes none."""

_PAPER_RESNEXT = _PAPER.model_copy(
    update={
        "epochs": 10.82,
        "batch_size": 8,
        "optimizer": _PAPER.optimizer.model_copy(update={"lr": 0.01, "lr_images": 8}),
    }
)
"""Sec. 3.1: as many steps, an image on each of eight GPUs."""

_CITYSCAPES = _SGD_1X.model_copy(
    update={
        "epochs": 64.5,
        "batch_size": 8,
        "optimizer": _SGD_1X.optimizer.model_copy(update={"lr": 0.01, "lr_images": 8}),
        "schedule": _SGD_1X.schedule.model_copy(update={"drops": (18 / 24,)}),
        "augment": AugmentOptions(short_sides=tuple(range(800, 1025, 32))),
    }
)
"""Mask R-CNN, appendix A: 24,000 steps of 8 of the 2,975 images; the scales are detectron2's."""

_FROM_COCO = _CITYSCAPES.model_copy(
    update={"epochs": 10.75, "schedule": _CITYSCAPES.schedule.model_copy(update={"warmup_steps": 400, "drops": (3 / 4,)})}
)
"""Mask R-CNN, appendix A: 4,000 steps; the rate, which the paper does not tell, is that of maskrcnn-benchmark, the warm-up,
a tenth, is ours."""

_DETECTRON = _SGD_1X.model_copy(
    update={
        "batch_size": 8,
        "optimizer": _SGD_1X.optimizer.model_copy(
            update={"lr": 0.01, "lr_images": 8, "bias_weight_decay": 0.0, "bias_lr_factor": 2.0}
        ),
        "schedule": _SGD_1X.schedule.model_copy(update={"warmup_steps": 500, "warmup_factor": 1 / 3}),
        "augment": AugmentOptions(),
    }
)
"""Detectron's of ResNeXt: an image on each of eight GPUs, for as many epochs, at one scale."""


_A1 = _SGD_1X.model_copy(
    update={
        "optimizer": OptimizerOptions(
            kind="adamw", lr=2e-4, weight_decay=0.05, bias_weight_decay=0.05, norm_weight_decay=0.0
        ),  # for batches of 16
        "schedule": _SGD_1X.schedule.model_copy(update={"warmup_steps": 500, "drops": (8 / 12, 11 / 12)}),
        "augment": AugmentOptions(),
    }
)
"""mmdetection's 1x, at one scale; there scale and shift of the backbone's norms learn, here they are fixed."""


_KEYPOINT_TORCHVISION = _TORCHVISION.model_copy(
    update={
        "epochs": 46.0,
        "schedule": _TORCHVISION.schedule.model_copy(update={"drops": (36 / 46, 43 / 46)}),
        "augment": _SGD_1X.augment,
    }
)


_1X = Training((_SGD_1X,))
_3X = Training((_SGD_3X,))
_160K = Training((_PAPER,))
_STREETS = Training((_CITYSCAPES,))
_STREETS_FROM_COCO = Training((_FROM_COCO,))
_RESNEXT = Training((_DETECTRON,))
_RESNEXT_160K = Training((_PAPER_RESNEXT,))
_FROM_A1 = Training((_A1,))
_AS_TORCHVISION = Training((_TORCHVISION,))
_POINTS_AS_TORCHVISION = Training((_KEYPOINT_TORCHVISION,), train_on="keypoints")
_POINTS_1X = Training((_PEOPLE_1X,), train_on="keypoints")
_POINTS_3X = Training((_PEOPLE_3X,), train_on="keypoints")

RECIPES = (
    _1X.of("faster-rcnn-r50-fpn", "Faster R-CNN, R50-FPN, 1x: expect box AP 37.9 (detectron2 model zoo)."),
    _1X.of("mask-rcnn-r50-fpn", "Mask R-CNN, R50-FPN, 1x: expect box AP 38.6, mask AP 35.2 (detectron2 model zoo)."),
    _FROM_A1.of(
        "faster-rcnn-r50-fpn",
        "Faster R-CNN, R50-FPN, 1x with AdamW from timm's A1 weights: mmdetection's, from its own A1, reaches box AP 40.8.",
        suffix="-a1",
        backbone_weights="timm:a1_in1k",
    ),
    _FROM_A1.of(
        "mask-rcnn-r50-fpn",
        "Mask R-CNN, R50-FPN, likewise: mmdetection's, from its own A1, reaches box AP 41.2, mask AP 38.2.",
        suffix="-a1",
        backbone_weights="timm:a1_in1k",
    ),
    _1X.of("faster-rcnn-r50-c4", "Faster R-CNN, R50-C4, 1x: expect box AP 35.7 (detectron2 model zoo)."),
    _1X.of("faster-rcnn-r50-dc5", "Faster R-CNN, R50-DC5, 1x: expect box AP 37.3 (detectron2 model zoo)."),
    _1X.of("mask-rcnn-r50-c4", "Mask R-CNN, R50-C4, 1x: expect box AP 36.8, mask AP 32.2 (detectron2 model zoo)."),
    _1X.of("mask-rcnn-r50-dc5", "Mask R-CNN, R50-DC5, 1x: expect box AP 38.3, mask AP 34.2 (detectron2 model zoo)."),
    _3X.of("faster-rcnn-r50-fpn", "Faster R-CNN, R50-FPN, 3x: expect box AP 40.2 (detectron2 model zoo).", suffix="-3x"),
    _3X.of(
        "mask-rcnn-r50-fpn", "Mask R-CNN, R50-FPN, 3x: expect box AP 41.0, mask AP 37.2 (detectron2 model zoo).", suffix="-3x"
    ),
    _3X.of("faster-rcnn-r101-fpn", "Faster R-CNN, R101-FPN, 3x: expect box AP 42.0 (detectron2 model zoo)."),
    _3X.of("faster-rcnn-x101-fpn", "Faster R-CNN, X101-32×8d-FPN, 3x: expect box AP 43.0 (detectron2 model zoo)."),
    _3X.of("mask-rcnn-r101-fpn", "Mask R-CNN, R101-FPN, 3x: expect box AP 42.9, mask AP 38.6 (detectron2 model zoo)."),
    _3X.of("mask-rcnn-x101-fpn", "Mask R-CNN, X101-32×8d-FPN, 3x: expect box AP 44.3, mask AP 39.5 (detectron2 model zoo)."),
    _3X.of("faster-rcnn-r101-c4", "Faster R-CNN, R101-C4, 3x: expect box AP 41.1 (detectron2 model zoo)."),
    _3X.of("faster-rcnn-r101-dc5", "Faster R-CNN, R101-DC5, 3x: expect box AP 40.6 (detectron2 model zoo)."),
    _3X.of("mask-rcnn-r101-c4", "Mask R-CNN, R101-C4, 3x: expect box AP 42.6, mask AP 36.7 (detectron2 model zoo)."),
    _3X.of("mask-rcnn-r101-dc5", "Mask R-CNN, R101-DC5, 3x: expect box AP 41.9, mask AP 37.3 (detectron2 model zoo)."),
    _160K.of(
        "mask-rcnn-r50-fpn", "Mask R-CNN, R50-FPN, 160,000 steps: expect mask AP 33.6 (Mask R-CNN, table 2a).", suffix="-paper"
    ),
    _160K.of(
        "mask-rcnn-r101-fpn",
        "Mask R-CNN, R101-FPN, 160,000 steps: expect mask AP 35.4 (Mask R-CNN, table 2a).",
        suffix="-paper",
    ),
    _STREETS.of(
        "mask-rcnn-r50-fpn",
        "Mask R-CNN, R50-FPN, Cityscapes: expect its benchmark's AP 31.5 on val (Mask R-CNN, table 7), 36.4 from COCO.",
        suffix="-cityscapes",
        short_px=1024,
        long_px=2048,
    ),
    _STREETS_FROM_COCO.of(
        "mask-rcnn-r50-fpn",
        "The same from a run on COCO, with --init RUN; what knows riders starts anew: expect AP 36.4 on val (table 7).",
        suffix="-cityscapes-from-coco",
        short_px=1024,
        long_px=2048,
    ),
    _RESNEXT.of(
        "mask-rcnn-x101-64x4d-fpn", "Mask R-CNN, X101-64×4d-FPN, 1x: expect box AP 42.4, mask AP 37.5 (Detectron's model zoo)."
    ),
    _RESNEXT_160K.of(
        "mask-rcnn-x101-64x4d-fpn",
        "Mask R-CNN, X101-64×4d-FPN, 160,000 steps of 8: expect mask AP 36.7 (Mask R-CNN, table 2a).",
        suffix="-paper",
    ),
    _160K.of(
        "mask-rcnn-rivals-r50-fpn",
        "Mask R-CNN, R50-FPN, 160,000 steps: expect mask AP 33.6, with an MLP for the mask 31.5 (Mask R-CNN, table 2e).",
    ),
    _160K.of(
        "mask-rcnn-rivals-r50-c4",
        "Mask R-CNN, R50-C4: expect mask AP 30.3; RoIWarp 27.1, RoIPool 26.9; softmax 24.8, agnostic 29.7 (tables 2b, 2c).",
    ),
    _160K.of(
        "mask-rcnn-rivals-r50-c5",
        "Mask R-CNN, R50-C5, one map of stride 32: expect mask AP 30.9, with RoIPool 23.6 (Mask R-CNN, table 2d).",
    ),
    _AS_TORCHVISION.of(
        "faster-rcnn-r50-fpn-torchvision",
        "Faster R-CNN, R50-FPN, with torchvision's parts and schedule: its own reaches box AP 37.0.",
    ),
    _AS_TORCHVISION.of(
        "mask-rcnn-r50-fpn-torchvision",
        "Mask R-CNN, R50-FPN, with torchvision's parts and schedule: its own reaches box AP 37.9, mask AP 34.6.",
    ),
    _AS_TORCHVISION.of(
        "faster-rcnn-r50-fpn-torchvision-v2",
        "Faster R-CNN, R50-FPN, with the parts of torchvision's second version: its own, trained longer, reaches box AP 46.7.",
    ),
    _AS_TORCHVISION.of(
        "mask-rcnn-r50-fpn-torchvision-v2",
        "Mask R-CNN, R50-FPN, likewise: its own, trained longer, reaches box AP 47.4, mask AP 41.8.",
    ),
    _POINTS_AS_TORCHVISION.of(
        "keypoint-rcnn-r50-fpn-torchvision",
        "Keypoint R-CNN, R50-FPN, with torchvision's parts, 46 epochs: its own reaches box AP 54.6, keypoint AP 65.0.",
    ),
    _160K.of(
        "mask-rcnn-r50-c4",
        "Mask R-CNN, R50-C4, 160,000 steps, 64 RoIs of 7×7 cells: expect mask AP 30.3 (Mask R-CNN, table 2a).",
        suffix="-paper",
        roi_side=7,
        per_image=64,
        num_proposals=300,
    ),
    _160K.of(
        "mask-rcnn-r101-c4",
        "Mask R-CNN, R101-C4, 160,000 steps, 64 RoIs of 7×7 cells: expect mask AP 32.7 (Mask R-CNN, table 2a).",
        suffix="-paper",
        roi_side=7,
        per_image=64,
        num_proposals=300,
    ),
    _POINTS_1X.of(
        "keypoint-rcnn-r50-fpn",
        "Keypoint R-CNN, R50-FPN, 90,000 steps: expect box AP 53.6, keypoint AP 64.0 (detectron2 zoo), the paper 50.7, 64.2.",
    ),
    _POINTS_1X.of(
        "keypoint-rcnn-rivals-r50-fpn",
        "Keypoint R-CNN, R50-FPN, 90,000 steps: expect keypoint AP 64.2, with RoIPool 59.8 (Mask R-CNN, table 6).",
    ),
    _POINTS_1X.of(
        "mask-keypoint-rcnn-r50-fpn",
        "Masks and keypoints, R50-FPN: expect box AP 52.0, mask AP 45.1, keypoint AP 64.7 (Mask R-CNN, table 5).",
    ),
    _POINTS_3X.of(
        "keypoint-rcnn-r50-fpn",
        "Keypoint R-CNN, R50-FPN, 3x: expect box AP 55.4, keypoint AP 65.5 (detectron2 model zoo).",
        suffix="-3x",
    ),
    _POINTS_3X.of(
        "keypoint-rcnn-r101-fpn", "Keypoint R-CNN, R101-FPN, 3x: expect box AP 56.4, keypoint AP 66.1 (detectron2 model zoo)."
    ),
    _POINTS_3X.of(
        "keypoint-rcnn-x101-fpn",
        "Keypoint R-CNN, X101-32×8d-FPN, 3x: expect box AP 57.3, keypoint AP 66.0 (detectron2 model zoo).",
    ),
    small(
        "keypoint-rcnn-small",
        "Keypoint R-CNN, small: OKS AP 1.6 on 464 photos of people after two hours of one core (docs/mask-rcnn.md).",
    ),
    lite("keypoint-rcnn-lite", "Keypoint R-CNN, lite."),
    lite("mask-keypoint-rcnn-lite", "Masks and keypoints, lite."),
    lite("faster-rcnn-lite", "Faster R-CNN, lite."),
    lite("mask-rcnn-lite", "Mask R-CNN, lite."),
    small("mask-keypoint-rcnn-small", "Masks and keypoints, small: not run on photos."),
    small("faster-rcnn-small", "Faster R-CNN, small: box AP 26.1 on nuclei after 399 steps (docs/mask-rcnn.md)."),
    small("mask-rcnn-small", "Mask R-CNN, small: mask AP 50.7 on nuclei in an hour and a half of two cores (docs/results.md)."),
    small(
        "mask-rcnn-rivals-c5-small",
        "Mask R-CNN, small, on its body's last map alone, with other RoI operators: not run on photos.",
    ),
    small(
        "mask-rcnn-c4-small", "Mask R-CNN, small, without a pyramid: mask AP 3.4 on nuclei after 399 steps (docs/mask-rcnn.md)."
    ),
)
