import inspect
import re
from dataclasses import fields

import pytest
import timm
import torch
from pydantic import BaseModel
from safetensors.torch import load_file, save_file

from maskwright.recipes import FAMILIES, RECIPES, DataOptions, find_recipe, parse_recipe, read_recipe
from maskwright.recipes.recipe import AugmentOptions, OptimizerOptions, PatchOptions, Recipe, ScheduleOptions, Stage
from maskwright.runs.checkpoints import build_system
from maskwright.structures import Intensity, ResizeRule
from maskwright.systems import SYSTEMS
from maskwright.training import train
from maskwright.training.optimization import set_trainable
from tests.conftest import Path, add_corners, make_coco, needs_proposals, tiny_recipe, truth_as_proposals


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_survive_yaml(name, tmp_path):
    recipe = find_recipe(name)
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    assert read_recipe(tmp_path / "recipe.yaml") == recipe


def test_fields_are_set_in_the_recipe_and_in_every_stage():
    recipe = find_recipe("mask-rcnn-small")
    two = recipe.model_copy(update={"stages": recipe.stages * 2})
    changed = two.with_changes(
        [
            "optimizer.lr=0.5",
            "seed=4",
            "arguments.num_proposals=33",
            "intensity.policy=window",
            "intensity.low=1",
            "intensity.high=9",
        ][:3]
    )
    assert [stage.optimizer.lr for stage in changed.stages] == [0.5, 0.5]
    assert changed.seed == 4
    assert changed.arguments == {"num_proposals": 33}
    assert recipe.seed == 0


def test_one_stage_can_be_changed_and_numbers_may_have_exponents():
    recipe = find_recipe("mask-rcnn-small")
    two = recipe.model_copy(update={"stages": recipe.stages * 2}).with_changes(["stages.1.epochs=3", "optimizer.lr=1e-3"])
    assert [stage.epochs for stage in two.stages] == [30, 3]
    assert two.stages[0].optimizer.lr == 0.001
    assert find_recipe("mask-rcnn-r50-fpn").with_changes(["augment.short_sides.1=9"]).stages[0].augment.short_sides[:2] == (
        640,
        9,
    )


def test_intensity_is_set_as_a_whole_or_by_field():
    recipe = find_recipe("mask-rcnn-small").with_changes(["intensity={policy: window, low: 10, high: 400}"])
    assert recipe.intensity == Intensity("window", 10, 400)
    by_field = find_recipe("mask-rcnn-small").with_changes(
        ["intensity.policy=percentile", "intensity.low=1", "intensity.high=99"]
    )
    assert by_field.intensity == Intensity("percentile", 1, 99)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("optimizer.lrr=1", "no field 'optimizer.lrr': did you mean lr"),
        ("optimiser.lr=1", "no field 'optimiser.lr': did you mean optimizer"),
        ("sed=1", "no field 'sed': did you mean seed"),
        ("seed.x=1", "no field 'seed.x'"),
        ("seed", "expected name=value"),
        ("optimizer.lr=-1", r"optimizer\.lr: .*greater than 0 \(got -1\)"),
        ("optimizer.kind=adam", "'sgd' or 'adamw'"),
        ("batch_size=many", "valid integer"),
        ("schedule.factors=[0.5]", "got 1 factors for 0 drops"),
        ("patches={kinds: {mask: 1}, batches_per_epoch: 5}", "patches have a scale of their own"),
        ("augment.copy_paste=1.5", r"augment\.copy_paste: .*less than or equal to 1"),
        ("patches={kinds: {masks: 1}, batches_per_epoch: 5}", "'mask', 'score' or 'refined'"),
        ("micro_batches=3", "a batch of 4 cannot be computed in 3 equal parts"),
        ("augment.short_sides=[3]", "both choose the scale"),
        ("augment.jitter=[2,1]", "expected low <= high"),
        ("intensity.policy=window", "need low < high"),
        ("arguments.num_classes=3", "num_classes comes from the data"),
        ("arguments.x.y=3", "no field 'arguments.x.y'"),
        ("epochs=.inf", "finite number"),
        ("optimizer.lr=[", "whose value is not YAML"),
        ("stages.5.epochs=3", "no field 'stages.5.epochs'"),
    ],
)
def test_mistakes_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        find_recipe("mask-rcnn-small").with_changes([change])


def test_objects_are_pasted_into_whole_images_without_proposals():
    with pytest.raises(ValueError, match=r"patches show one object each, into which none is pasted: leave augment\.copy_paste"):
        find_recipe("deepmask-small").with_changes(["augment.copy_paste=0.5"])
    detector = find_recipe("fast-rcnn-small")
    assert detector.with_changes(["augment.copy_paste=0", "proposals=runs/p"]).proposals == "runs/p"
    with pytest.raises(ValueError, match=r"proposals were made on images without pasted objects: leave augment\.copy_paste"):
        detector.with_changes(["augment.copy_paste=0.5", "proposals=runs/p"])


def test_unknown_fields_of_a_file_are_refused(tmp_path):
    data = find_recipe("mask-rcnn-small").model_dump()
    with pytest.raises(ValueError, match="epoch: Extra inputs"):
        parse_recipe({**data, "epoch": 3})
    (tmp_path / "recipe.yaml").write_text("{a: [")
    with pytest.raises(ValueError, match=r"recipe\.yaml: not a recipe"):
        read_recipe(tmp_path / "recipe.yaml")


def test_every_field_is_read_somewhere():
    package = Path(__file__).parents[2] / "maskwright"
    code = "\n".join(p.read_text() for p in package.rglob("*.py") if p.name != "recipe.py") + inspect.getsource(Stage.lr.fget)
    for options in (Recipe, Stage, OptimizerOptions, ScheduleOptions, AugmentOptions, PatchOptions, DataOptions):
        assert issubclass(options, BaseModel)
        for name in options.model_fields:
            assert re.search(rf"\.{name}\b", code), f"{options.__name__}.{name} is read nowhere"
    for f in fields(Intensity):
        assert re.search(rf"\.{f.name}\b", code)


def test_system_arguments_are_checked():
    with pytest.raises(ValueError, match="has no argument num_class: there are num_classes"):
        build_system("mask-rcnn-small", {"num_class": 3})


def test_no_recipe_hides_another():
    assert len(RECIPES) == sum(len(family.RECIPES) for family in FAMILIES)


def test_every_system_has_a_recipe_and_every_recipe_a_system():
    assert set(SYSTEMS) <= set(RECIPES)
    for name in RECIPES:
        recipe = find_recipe(name)
        assert recipe.system == name if name in SYSTEMS else name.startswith(f"{recipe.system}-")
        for stage in recipe.stages:
            assert stage.lr == stage.optimizer.lr  # which is for batches of that size
            assert (stage.optimizer.lr_images is None) == (stage.optimizer.kind == "adamw")


@pytest.mark.parametrize("name", [name for name in RECIPES if name not in SYSTEMS])
def test_recipes_beside_the_usual_ones_fit_their_systems(name):
    recipe = find_recipe(name)
    with torch.device("meta"):
        system = build_system(recipe.system, {"num_classes": 2, **recipe.arguments})
    for stage in recipe.stages:
        set_trainable(system, stage)
        assert any(not p.requires_grad for p in system.parameters())


def test_near_names_are_suggested():
    with pytest.raises(ValueError, match="did you mean mask-rcnn-r50-fpn-cityscapes or"):
        find_recipe("mask-rcnn-r50-fpn-cityscape")
    with pytest.raises(ValueError, match="'maskwright recipes' lists them"):
        find_recipe("zzz")


@pytest.mark.parametrize(
    ("name", "images", "steps", "batch", "lr", "drops"),
    [  # Mask R-CNN, sec. 3.1 and appendix A; detectron2's and Detectron's schedules
        ("mask-rcnn-r50-fpn", 117_266, 90_000, 16, 0.02, (60_000, 80_000)),
        ("mask-rcnn-r50-fpn-3x", 117_266, 270_000, 16, 0.02, (210_000, 250_000)),
        ("mask-rcnn-r50-fpn-paper", 117_266, 160_000, 16, 0.02, (120_000,)),
        ("mask-rcnn-r50-c4-paper", 117_266, 160_000, 16, 0.02, (120_000,)),
        ("mask-rcnn-r101-c4-paper", 117_266, 160_000, 16, 0.02, (120_000,)),
        ("mask-rcnn-r101-fpn-paper", 117_266, 160_000, 16, 0.02, (120_000,)),
        ("mask-rcnn-rivals-r50-c4", 117_266, 160_000, 16, 0.02, (120_000,)),
        ("mask-rcnn-rivals-r50-c5", 117_266, 160_000, 16, 0.02, (120_000,)),
        ("mask-rcnn-rivals-r50-fpn", 117_266, 160_000, 16, 0.02, (120_000,)),
        ("mask-rcnn-x101-64x4d-fpn", 117_266, 180_000, 8, 0.01, (120_000, 160_000)),
        ("mask-rcnn-x101-64x4d-fpn-paper", 117_266, 160_000, 8, 0.01, (120_000,)),
        ("mask-rcnn-r50-fpn-cityscapes", 2_975, 24_000, 8, 0.01, (18_000,)),
        ("mask-rcnn-r50-fpn-cityscapes-from-coco", 2_975, 4_000, 8, 0.01, (3_000,)),
    ],
)
def test_published_schedules(name, images, steps, batch, lr, drops):
    (stage,) = find_recipe(name).stages
    assert (stage.batch_size, stage.lr, stage.optimizer.lr) == (batch, lr, lr)
    assert (stage.optimizer.momentum, stage.optimizer.weight_decay) == (0.9, 1e-4)
    assert stage.epochs * images / batch == pytest.approx(steps, rel=0.025)
    assert [drop * steps for drop in stage.schedule.drops] == pytest.approx(drops)
    assert stage.schedule.warmup_steps <= steps // 10  # more would be cut


@pytest.mark.parametrize("system", ["faster-rcnn-r50-fpn", "mask-rcnn-r50-fpn"])
def test_weights_of_a_longer_recipe_have_one_of_their_own(system):
    recipe = find_recipe(f"{system}-a1")
    (stage,) = recipe.stages
    assert recipe.backbone_weights == "timm:a1_in1k"
    assert (stage.optimizer.kind, stage.lr, stage.batch_size) == ("adamw", 2e-4, 16)  # mmdetection, resnet_strikes_back
    decays = stage.optimizer.weight_decay, stage.optimizer.bias_weight_decay, stage.optimizer.norm_weight_decay
    assert decays == (0.05, 0.05, 0.0)
    assert [drop * stage.epochs for drop in stage.schedule.drops] == [8, 11]
    assert (stage.epochs, stage.schedule.warmup_steps, stage.augment) == (12, 500, AugmentOptions())
    assert find_recipe(system).backbone_weights is None


def test_cityscapes_pixels():
    recipe = find_recipe("mask-rcnn-r50-fpn-cityscapes")
    assert recipe.stages[0].augment.short_sides == tuple(range(800, 1025, 32))
    assert build_system(recipe.system, {"num_classes": 8, **recipe.arguments}).input.resize == ResizeRule(1024, 2048)


def test_rates_follow_the_batch_where_the_recipe_says_so():
    (stage,) = find_recipe("mask-rcnn-r50-fpn").with_changes(["batch_size=4", "micro_batches=2"]).stages
    assert stage.lr == pytest.approx(0.005)
    steps, rate = (
        "steps of 4 images in 2 parts of 2, 12 epochs",
        "learning rate 0.005 (0.02 for 16 images, in proportion)",
    )
    assert stage.in_words(1) == f"{steps}, sgd, {rate}"
    (stage,) = find_recipe("mask-rcnn-r50-fpn").stages
    assert stage.in_words(8) == "steps of 16 images in 8 parts of 2, 12 epochs, sgd, learning rate 0.02"
    (stage,) = find_recipe("mask-rcnn-r50-fpn").with_changes(["batch_size=4", "optimizer.lr=0.01"]).stages
    assert (stage.lr, stage.optimizer.lr_images) == (0.01, None)  # as it is given
    (stage,) = find_recipe("mask-rcnn-r50-fpn").with_changes(["optimizer.lr_images=8", "optimizer.lr=0.01"]).stages
    assert stage.lr == 0.02
    (stage,) = find_recipe("mask-rcnn-small").with_changes(["batch_size=1"]).stages
    assert (stage.lr, stage.in_words()) == (5e-4, "steps of 1 image, 30 epochs, adamw, learning rate 0.0005")


LARGE = [name for name in SYSTEMS if not name.endswith("-small")]


@pytest.mark.parametrize("name", [name for name in RECIPES if name.endswith("-small")])
def test_small_recipes_run_two_steps(name, coco_folder, tmp_path, console):
    if "keypoint" in name:
        add_corners(coco_folder)
    recipe = tiny_recipe(coco_folder, "epochs=1", "batch_size=2", system=name)  # of four images
    metrics = train(recipe, tmp_path / "run", device="cpu", console=console)
    assert -1 <= metrics.ap <= 1
    assert (tmp_path / "run" / "best" / "weights.safetensors").is_file()


USUAL = ("mask-rcnn-r50-fpn", "embedmask-r50")


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in USUAL else pytest.mark.slow) for n in LARGE])
def test_large_recipes_run_two_steps_from_backbone_weights(name, tmp_path, console):
    make_coco(tmp_path / "data", images=2, split="train", size=(64, 64))
    make_coco(tmp_path / "data", images=1, split="val", size=(64, 64))
    if "keypoint" in name:
        add_corners(tmp_path / "data")
    networks = {
        "64x4d": "resnext101_64x4d",
        "r50": "resnet50",
        "r101": "resnet101",
        "x101": "resnext101_32x8d",
        "vgg": "vgg11",
        "vgg16": "vgg16",
    }
    network = next(networks[part] for part in reversed(name.split("-")) if part in networks)
    torch.manual_seed(0)
    save_file(timm.create_model(network, num_classes=0).state_dict(), tmp_path / "weights.safetensors")
    recipe = find_recipe(name).with_changes(
        [
            "epochs=1",
            "batch_size=1",  # of two images
            "workers=0",
            "arguments={max_detections: 5}",
        ]
    )
    if recipe.stages[0].patches is None:
        recipe = recipe.with_changes(["augment.short_sides=[64]"])
    else:
        recipe = recipe.with_changes(["patches.batches_per_epoch=2", "patches.validation_batches=1"])
    if needs_proposals(name):
        recipe = recipe.with_changes([f"proposals={truth_as_proposals(tmp_path / 'data')}"])
    changes = {"data": DataOptions(path=str(tmp_path / "data")), "backbone_weights": str(tmp_path / "weights.safetensors")}
    metrics = train(recipe.model_copy(update=changes), tmp_path / "run", device="cpu", console=console)
    assert -1 <= metrics.ap <= 1
    after = load_file(tmp_path / "run" / "best" / "weights.safetensors")
    started = load_file(tmp_path / "weights.safetensors")
    ours = {key: key.split(".network.", 1)[1].replace("features_", "features.") for key in after if ".network." in key}
    always = set.intersection(*(set(stage.frozen) for stage in recipe.stages))
    for key in (key for key in ours if key.endswith("weight")):
        is_norm = f"{key.removesuffix('weight')}running_mean" in after
        is_same = torch.equal(after[key], started[ours[key]])
        assert is_same == (is_norm or key.startswith(tuple(always))), key
