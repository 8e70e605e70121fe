"""Runs of EmbedMask.

Paper sizes: the authors' schedules on COCO 2017 from ImageNet weights, of 16 images a step: 1x is 90,000 steps or 12 epochs,
at a short side of 800 px; 3x is 270,000 (37 epochs), a short side of 640 or 800 px. The fused version (V4) draws from 640 to
800 px in both. The loss looks at 64 masks at a time, whatever the number of objects.

    maskwright train embedmask-r50 --data coco --set backbone_weights=timm --out runs/embedmask
    maskwright evaluate runs/embedmask --data coco --set short_px=600 --set long_px=800      # EmbedMask-600: faster

Cost: not measured by us; its authors ran the 1x of V1 to V3 on four GPUs. Expect mask AP 34.7 of R50 1x and 38.1 of R101 3x on
test-dev (V2, the authors' repository), 37.7 of V1's R101 on test-dev (its 3x is inferred), 36.2 and 39.5 on val2017 of the
fused R50 1x and R101 3x. Not run by us at these sizes.

Small sizes: as the other small systems.

    maskwright train embedmask-small --data nuclei --out runs/embedmask-nuclei

Cost and result of this recipe: not measured; of 400 steps of it, see benchmarks/README.md.
"""

from maskwright.recipes.fcos import SGD_1X
from maskwright.recipes.known import lite, paper, small
from maskwright.recipes.recipe import AugmentOptions

_DROPS_3X = (210 / 270, 250 / 270)
_SGD_3X = SGD_1X.model_copy(
    update={
        "epochs": 37.0,
        "schedule": SGD_1X.schedule.model_copy(update={"drops": _DROPS_3X}),
        "augment": AugmentOptions(short_sides=(640, 800)),  # the code draws one of the two, not from between
    }
)
_FUSED_1X = SGD_1X.model_copy(update={"augment": AugmentOptions(short_sides=(640, 672, 704, 736, 768, 800))})
_FUSED_3X = _FUSED_1X.model_copy(
    update={"epochs": 37.0, "schedule": _FUSED_1X.schedule.model_copy(update={"drops": _DROPS_3X})}
)


RECIPES = (
    paper("embedmask-r50", "EmbedMask (V3), R50, 1x.", SGD_1X),
    paper("embedmask-r50-arxiv", "EmbedMask (V1), R50, 1x.", SGD_1X),
    paper(
        "embedmask-r50-scalar", "EmbedMask (V2), R50, 1x: expect mask AP 34.7 on test-dev (the authors' repository).", SGD_1X
    ),
    paper("embedmask-r101", "EmbedMask (V3), R101, 3x.", _SGD_3X),
    paper(
        "embedmask-r101-arxiv",
        "EmbedMask (V1), R101, 3x: expect mask AP 37.7 on test-dev (paperswithcode; 3x is inferred).",
        _SGD_3X,
    ),
    paper(
        "embedmask-r101-scalar", "EmbedMask (V2), R101, 3x: expect mask AP 38.1 on test-dev (the authors' repository).", _SGD_3X
    ),
    paper(
        "embedmask-r50-fused", "EmbedMask (V4), R50, 1x: expect box AP 39.9, mask AP 36.2 (the author's repository).", _FUSED_1X
    ),
    paper(
        "embedmask-r101-fused",
        "EmbedMask (V4), R101, 3x: expect box AP 44.2, mask AP 39.5 (the author's repository).",
        _FUSED_3X,
    ),
    lite("embedmask-lite", "EmbedMask (V3), lite."),
    lite("embedmask-fused-lite", "EmbedMask (V4), lite."),
    small("embedmask-small", "EmbedMask (V3), small."),
    small("embedmask-arxiv-small", "EmbedMask (V1), small."),
    small("embedmask-fused-small", "EmbedMask (V4), small."),
)
