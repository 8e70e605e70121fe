"""Runs of MNC and of FCIS.

Paper sizes: the paper's schedule on the images of VOC 2012 that SBD annotates, 40,000 steps of 8 images, 28.5 epochs of its
5,623 and as many mirrored ones, from ImageNet weights of the backbone.

    maskwright train mnc-vgg16 --data sbd --set backbone_weights=timm --out runs/mnc

where sbd/ is SBD's folder with the lists of SDS in it (docs/mnc.md).

Cost: 0.36 s an image at inference on a K40 (the paper); of training nothing is known. Expect mAP^r 63.5 at IoU 0.5 and 41.5 at
0.7 (MNC, table 2), 65.0 and 46.3 by the released code. Not run by us at this size.

Small sizes: as the other small systems.

    maskwright train mnc-small --data nuclei --out runs/mnc-nuclei
"""

from maskwright.recipes.known import KnownRecipe, lite, paper, small, small_recipe
from maskwright.recipes.recipe import OptimizerOptions, Recipe, ScheduleOptions, Stage

_VGG = Stage(
    epochs=57,  # as every image comes mirrored too, 40,000 steps of 8 are 28.5 of the paper's
    batch_size=8,
    optimizer=OptimizerOptions(
        kind="sgd", lr=0.001, lr_images=8, weight_decay=5e-4, bias_weight_decay=5e-4, norm_weight_decay=5e-4, bias_lr_factor=2.0
    ),
    schedule=ScheduleOptions(kind="step", warmup_steps=0, drops=(0.8,)),
    frozen=tuple(f"backbones.0.network.features_{i}." for i in (0, 2, 5, 7)),  # up to conv2_2 (the code)
)

_RELEASED = _VGG.model_copy(update={"epochs": 35.6})

_R101 = _VGG.model_copy(
    update={"epochs": 22.0, "frozen": tuple(f"backbones.0.network.{part}." for part in ("conv1", "bn1", "layer1"))}
)
"""A proposal: eight times the steps of VOC, and conv1 and the first stage frozen."""

_FCIS = _R101.model_copy(
    update={
        "epochs": 44.0,
        "batch_size": 4,
        "optimizer": OptimizerOptions(
            kind="sgd", lr=2e-3, lr_images=4, weight_decay=5e-4, bias_weight_decay=5e-4, norm_weight_decay=5e-4
        ),
        "schedule": ScheduleOptions(kind="step", warmup_steps=0, drops=(14 / 22,)),
        "frozen": tuple(f"features.0.network.{part}." for part in ("conv1", "bn1", "layer1")),
    }
)
"""The code's on VOC: 22 epochs of each image and its mirror, the rate falling after 14; 0.0005 for the sum over four GPUs."""

BOXES = ("rpn_objectness", "rpn_box")
MASKS = ("mask",)
CATEGORIES = ("class", "box", "mask_class")


def _stepwise() -> Recipe:
    """Like Faster R-CNN's four steps, but from one network.

    Boxes; then all heads and the features, no gradient passing between stages; then, on features that stay, boxes, and the
    other heads.
    """
    recipe = small_recipe("mnc-stepwise-small")
    (whole,) = recipe.stages
    heads = (*MASKS, *CATEGORIES)
    boxes = whole.model_copy(update={"losses": BOXES, "is_scored": False})
    rest = whole.model_copy(update={"losses": (*BOXES, *heads), "is_scored": False})
    again = whole.model_copy(update={"losses": BOXES, "frozen": ("backbones.",), "is_scored": False})
    last = whole.model_copy(update={"losses": heads, "frozen": ("backbones.", "rpn.")})
    return recipe.model_copy(update={"stages": (boxes, rest, again, last)})


def _unshared() -> Recipe:
    recipe = small_recipe("mnc-unshared-small")
    (whole,) = recipe.stages
    boxes = whole.model_copy(update={"losses": BOXES, "is_scored": False})
    masks = whole.model_copy(update={"losses": MASKS, "is_scored": False, "frozen": ("backbones.0.", "rpn.")})
    frozen = ("backbones.0.", "backbones.1.", "rpn.", "mask_head.")
    categories = whole.model_copy(update={"losses": CATEGORIES, "frozen": frozen})
    return recipe.model_copy(update={"stages": (boxes, masks, categories)})


RECIPES = (
    paper("mnc-vgg16", "MNC, VGG-16: expect mAP^r 63.5 at IoU 0.5, 41.5 at 0.7 (MNC, table 2).", _VGG),
    paper(
        "mnc-vgg16-released",
        "MNC, VGG-16, with the released parts and schedule, 25,000 steps: expect mAP^r 65.0 at IoU 0.5, 46.3 at 0.7 "
        "(the code).",
        _RELEASED,
    ),
    paper(
        "mnc-r101",
        "MNC, ResNet-101, on COCO: expect mask AP 24.6 (MNC, sec. 7.2); the schedule is ours, as none was published.",
        _R101,
    ),
    paper(
        "fcis-r101",
        "FCIS, ResNet-101, on VOC: expect mAP^r 65.7 at IoU 0.5, 52.1 at 0.7 (FCIS); there without hard RoIs, taken here.",
        _FCIS,
    ),
    lite("fcis-lite", "FCIS, lite."),
    lite("mnc-lite", "MNC, lite."),
    small("fcis-small", "FCIS, small."),
    small("mnc-small", "MNC, small."),
    KnownRecipe(
        "mnc-stepwise-small", "One stage after the other on shared features, in four steps (MNC, table 1, b).", _stepwise()
    ),
    KnownRecipe("mnc-unshared-small", "One stage after the other, each on features of its own (MNC, table 1, a).", _unshared()),
)
