"""Runs of detectors on proposals. Every one needs `proposals`: the run of a proposal system, or a folder of results files.

Paper sizes: Fast R-CNN as on VOC 2007, 40,000 steps of 2 images (16 epochs of its 5,011); MultiPathNet as on COCO, 320,000
steps of 4 images (11 epochs), the backbone frozen; both from ImageNet weights of the backbone. The folder of VOC itself is read
for its masks (VOC 2012); the boxes of VOC 2007 have to be made a COCO file first, and are scored as COCO's.

    maskwright train fast-rcnn-vgg16 --data voc --set proposals=runs/sharpmask --set backbone_weights=timm --out runs/fast

Cost: MultiPathNet about three days on four Titan X (the paper). Expect AP50 68.2 on VOC 2007 with 100 of DeepMask's proposals,
69.9 with 500 (DeepMask, table 3); on COCO mask AP 25.1 and box AP 33.5 of an ensemble of MultiPathNets on SharpMask's
(SharpMask, table 4). Not run by us at this size.

Small sizes: as the other small systems.

    maskwright train fast-rcnn-small --data nuclei --set proposals=runs/sharpmask-nuclei --out runs/fast-nuclei
"""

from maskwright.recipes.known import lite, paper, small
from maskwright.recipes.recipe import AugmentOptions, OptimizerOptions, ScheduleOptions, Stage

_FROZEN_VGG = tuple(f"features.network.features_{i}." for i in (0, 2, 5, 7))  # up to conv2_2 (Fast R-CNN, sec. 4.5)

_FAST_RCNN = Stage(
    epochs=16,
    batch_size=2,
    optimizer=OptimizerOptions(
        kind="sgd", lr=0.001, lr_images=2, weight_decay=5e-4, bias_weight_decay=0.0, norm_weight_decay=0.0, bias_lr_factor=2.0
    ),
    schedule=ScheduleOptions(kind="step", warmup_steps=0, drops=(0.75,)),
    frozen=_FROZEN_VGG,
)

_MULTIPATH = Stage(
    epochs=11,
    batch_size=4,
    optimizer=OptimizerOptions(
        kind="sgd", lr=0.001, lr_images=4, weight_decay=0.0, bias_weight_decay=0.0, norm_weight_decay=0.0
    ),
    schedule=ScheduleOptions(kind="step", warmup_steps=0, drops=(280 / 320,)),
    frozen=("features.",),
)

_FAST_RCNN_FPN = Stage(
    epochs=12,
    batch_size=16,
    optimizer=OptimizerOptions(
        kind="sgd", lr=0.02, lr_images=16, weight_decay=1e-4, bias_weight_decay=1e-4, norm_weight_decay=0.0
    ),
    schedule=ScheduleOptions(kind="step", warmup_steps=1000, drops=(60 / 90, 80 / 90)),
    augment=AugmentOptions(short_sides=(640, 672, 704, 736, 768, 800)),
    frozen=("features.0.network.conv1.", "features.0.network.bn1.", "features.0.network.layer1."),
)
"""Faster R-CNN's schedule of detectron2, as there is none for it on others' proposals."""


RECIPES = (
    paper(
        "fast-rcnn-vgg16",
        "Fast R-CNN, VGG-16: expect AP50 69.9 on VOC 2007 with 500 of DeepMask's proposals (DeepMask, table 3).",
        _FAST_RCNN,
    ),
    paper("fast-rcnn-r50-fpn", "Fast R-CNN, R50-FPN: no result with these proposals is known to us.", _FAST_RCNN_FPN),
    paper(
        "multipath-vgg16",
        "MultiPathNet, VGG-16: expect box AP 27.9 with DeepMask's proposals (MultiPath, its ablation with all three parts).",
        _MULTIPATH,
    ),
    lite("fast-rcnn-lite", "Fast R-CNN, lite."),
    small("fast-rcnn-small", "Fast R-CNN, small."),
    small("multipath-small", "MultiPathNet, small."),
)
