"""Parameter groups, schedules and averaging of weights."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from maskwright.recipes.recipe import OptimizerOptions, ScheduleOptions, Stage
from maskwright.systems import System

_NORMS = (nn.GroupNorm, nn.LayerNorm, nn.modules.batchnorm._BatchNorm)


def set_trainable(system: System, stage: Stage) -> None:
    """Freeze the parts a stage names, and free all others.

    Raises:
        ValueError: a name that begins no parameter.
    """
    names = [name for name, _ in system.named_parameters()]
    buffers = list(system.state_dict())
    idle = [part for part in stage.frozen if not any(name.startswith(part) for name in [*names, *buffers])]
    if idle:
        raise ValueError(f"frozen parts {', '.join(idle)} begin no parameter; there are {', '.join(names[:3])}, ...")
    for name, parameter in system.named_parameters():
        parameter.requires_grad_(not name.startswith(stage.frozen))
        parameter.grad = None  # of an earlier stage


def build_optimizer(system: System, options: OptimizerOptions) -> torch.optim.Optimizer:
    """An optimizer over the trainable parameters, with weight decay and learning rate by kind of parameter.

    A group's "lr_factor" is what the learning rate of a step is multiplied by for it.
    """
    norm_parameters = {id(p) for m in system.modules() if isinstance(m, _NORMS) for p in m.parameters(recurse=False)}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in system.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = []
        if id(parameter) in norm_parameters:
            decays.append(options.norm_weight_decay)
        if name.endswith("bias"):
            decays.append(options.bias_weight_decay)
        factor = options.bias_lr_factor if name.endswith("bias") else 1.0
        groups.setdefault((min(decays, default=options.weight_decay), factor), []).append(parameter)
    listed = [
        {"params": parameters, "weight_decay": decay, "lr": options.lr * factor, "lr_factor": factor}
        for (decay, factor), parameters in groups.items()
    ]
    if options.kind == "sgd":
        return torch.optim.SGD(listed, lr=options.lr, momentum=options.momentum)
    return torch.optim.AdamW(listed, lr=options.lr, betas=(options.momentum, 0.999))


def learning_rate_factor(schedule: ScheduleOptions, step: int, total: int) -> float:
    """What the learning rate is multiplied by at a step of a stage; the warm-up never takes more than a tenth of it."""
    factor = 1.0
    if schedule.kind == "step":
        passed = sum(step >= drop * total for drop in schedule.drops)
        factor = (1.0, *schedule.factors)[passed] if schedule.factors else 0.1**passed
    else:
        factor = 0.5 * (1 + math.cos(math.pi * step / total))
    warmup = min(schedule.warmup_steps, total // 10)
    if step < warmup:
        start = schedule.warmup_factor
        factor *= start if schedule.warmup_kind == "constant" else start + (1 - start) * step / warmup
    return factor


def moving_average(system: System, decay: float) -> AveragedModel:
    """An exponential moving average of the parameters; the decay rises to its value over the first steps."""

    @torch.no_grad()
    def follow(averages: Sequence[Tensor], current: Sequence[Tensor], count: Tensor) -> None:
        steps = int(count)
        torch._foreach_lerp_(list(averages), list(current), 1 - min(decay, (1 + steps) / (10 + steps)))

    return AveragedModel(system, multi_avg_fn=follow)  # type: ignore[arg-type]
