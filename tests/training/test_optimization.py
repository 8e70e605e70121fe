import pytest
import torch

from maskwright.recipes import find_recipe
from maskwright.recipes.recipe import OptimizerOptions, ScheduleOptions
from maskwright.systems import SYSTEMS
from maskwright.training.optimization import build_optimizer, learning_rate_factor, moving_average, set_trainable


def test_group_norm_trains_a_paper_size_from_scratch_without_frozen_parts():
    system = SYSTEMS["faster-rcnn-r50-fpn"](num_classes=1, norm="group")
    stage = find_recipe("faster-rcnn-r50-fpn").with_changes(["frozen=[]"]).stages[0]
    set_trainable(system, stage)
    assert all(p.requires_grad for p in system.parameters())


def test_step_schedule():
    schedule = ScheduleOptions(kind="step", warmup_steps=10, warmup_factor=0.001, drops=(0.5, 0.75))
    factors = [learning_rate_factor(schedule, step, 100) for step in range(100)]
    assert factors[:2] == pytest.approx([0.001, 0.001 + 0.999 / 10])
    assert factors[9] == pytest.approx(1 - 0.999 / 10)
    assert factors[10] == factors[49] == 1
    assert factors[50] == factors[74] == pytest.approx(0.1)
    assert factors[75] == pytest.approx(0.01)


def test_constant_warm_up():
    schedule = ScheduleOptions(kind="step", warmup_steps=10, warmup_factor=1 / 3, warmup_kind="constant")
    assert {learning_rate_factor(schedule, step, 1000) for step in range(10)} == {1 / 3}
    assert learning_rate_factor(schedule, 10, 1000) == 1


def test_biases_of_norms_have_the_smaller_decay():
    system = SYSTEMS["fcos-small"](num_classes=1)
    options = OptimizerOptions(kind="sgd", lr=0.1, weight_decay=0.3, bias_weight_decay=0.0, norm_weight_decay=0.1)
    groups = {g["weight_decay"]: g["params"] for g in build_optimizer(system, options).param_groups}
    norms = [m for m in system.modules() if isinstance(m, torch.nn.GroupNorm)]
    assert {id(p) for p in groups[0.1]} == {id(m.weight) for m in norms}
    assert {id(m.bias) for m in norms} < {id(p) for p in groups[0.0]}


def test_cosine_schedule():
    schedule = ScheduleOptions(kind="cosine", warmup_steps=0)
    assert learning_rate_factor(schedule, 0, 100) == 1
    assert learning_rate_factor(schedule, 50, 100) == pytest.approx(0.5)
    assert learning_rate_factor(schedule, 100, 100) == pytest.approx(0, abs=1e-12)


def test_norms_and_biases_have_decay_of_their_own():
    system = SYSTEMS["mask-rcnn-small"](num_classes=1)
    options = OptimizerOptions(kind="adamw", lr=0.1, weight_decay=0.3, bias_weight_decay=0.2, norm_weight_decay=0.1)
    groups = {g["weight_decay"]: g["params"] for g in build_optimizer(system, options).param_groups}
    norms = sum(1 for m in system.modules() if isinstance(m, torch.nn.GroupNorm))
    assert len(groups[0.1]) == 2 * norms > 0
    assert all(p.ndim == 1 for p in groups[0.2])
    assert all(p.ndim > 1 for p in groups[0.3])
    assert sum(map(len, groups.values())) == len(list(system.parameters()))


def test_warm_up_never_fills_a_short_stage():
    schedule = ScheduleOptions(kind="step", warmup_steps=1000, drops=(0.5,))
    assert learning_rate_factor(schedule, 10, 100) == 1


def test_gradients_of_an_earlier_stage_are_forgotten():
    system = SYSTEMS["faster-rcnn-small"](num_classes=1)
    system.backbone.network.conv1.weight.grad = torch.ones_like(system.backbone.network.conv1.weight)
    set_trainable(system, find_recipe("faster-rcnn-small").with_changes(["frozen=[backbone.]"]).stages[0])
    assert system.backbone.network.conv1.weight.grad is None


def test_frozen_parts_stay_out_of_the_optimizer():
    system = SYSTEMS["mask-rcnn-small"](num_classes=1)
    stage = find_recipe("mask-rcnn-small").with_changes(["frozen=[backbone.]"]).stages[0]
    set_trainable(system, stage)
    held = {id(p) for g in build_optimizer(system, stage.optimizer).param_groups for p in g["params"]}
    assert not held & {id(p) for p in system.backbone.parameters()}
    assert held >= {id(p) for p in system.fpn.parameters()}


def test_moving_average_follows_quickly_then_slowly():
    system = SYSTEMS["mask-rcnn-small"](num_classes=1)
    average = moving_average(system, 0.9)
    bias = system.rpn.conv.bias
    expected = 0.0
    for step in range(40):
        with torch.no_grad():
            bias.fill_(float(step))
        average.update_parameters(system)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = expected * decay + step * (1 - decay) if step else 0.0
    assert float(average.module.rpn.conv.bias[0].detach()) == pytest.approx(expected, rel=1e-5)
