"""Runs of FCOS.

Paper size: the authors' 1x schedule on COCO 2017, about 90,000 steps of 16 images (12 epochs), from ImageNet weights;
biases learn twice as fast and do not decay.

    maskwright train fcos-r50 --data coco --set backbone_weights=timm --out runs/fcos

Cost: not measured by us. Expect box AP 38.7 (the authors' repository, "improved" R50 1x). Not run by us at
this size.

Small size: as the other small systems.

    maskwright train fcos-small --data nuclei --out runs/fcos-nuclei
"""

from maskwright.recipes.known import lite, paper, small
from maskwright.recipes.recipe import OptimizerOptions, ScheduleOptions, Stage

SGD_1X = Stage(
    epochs=12,
    batch_size=16,
    optimizer=OptimizerOptions(
        kind="sgd",
        lr=0.01,
        lr_images=16,
        momentum=0.9,
        weight_decay=1e-4,
        bias_weight_decay=0.0,
        norm_weight_decay=1e-4,
        bias_lr_factor=2.0,
    ),
    schedule=ScheduleOptions(
        kind="step", warmup_steps=500, warmup_factor=1 / 3, warmup_kind="constant", drops=(60 / 90, 80 / 90)
    ),
    frozen=("backbone.network.conv1.", "backbone.network.bn1.", "backbone.network.layer1."),  # FREEZE_CONV_BODY_AT 2
)
"""The schedule of FCOS's and EmbedMask's releases: one short side of 800 px, flips only."""

_TORCHVISION = SGD_1X.model_copy(
    update={
        "epochs": 26.0,  # torchvision, references/detection
        "optimizer": SGD_1X.optimizer.model_copy(update={"bias_weight_decay": 1e-4, "bias_lr_factor": 1.0}),
        "schedule": ScheduleOptions(kind="step", warmup_steps=1000, drops=(16 / 26, 22 / 26)),
    }
)


RECIPES = (
    paper("fcos-r50", "FCOS, R50, 1x: expect box AP 38.7 (the authors' repository).", SGD_1X),
    paper(
        "fcos-r50-torchvision", "FCOS, R50, with torchvision's parts and schedule: its own reaches box AP 39.2.", _TORCHVISION
    ),
    lite("fcos-lite", "FCOS, lite."),
    small("fcos-small", "FCOS, small."),
)
