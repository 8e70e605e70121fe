"""What resuming needs: the state of a run beside the model that is kept, written whole, and read again."""

import json

import torch
from torch import Tensor

from maskwright.formats.files import write_text
from maskwright.runs import save_model
from maskwright.runs.checkpoints import PROPOSER, read_tensors, save_tensors
from maskwright.training.run import METRICS, STATE, Run

POSITION = ("stage", "step", "best", "scores", "time_s", "sums")  # of a run, kept in its checkpoints


def save_last(run: Run, optimizer: torch.optim.Optimizer) -> None:
    """The kept model, and beside it all that training needs to go on."""
    if not run.processes.is_first:
        return
    save_model(run.out / "last", run.card, kept_weights(run))
    tensors = {f"model.{name}": tensor for name, tensor in run.system.state_dict().items()}
    if run.average is not None:
        tensors |= {f"average.{name}": tensor for name, tensor in run.average.state_dict().items()}
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": torch.as_tensor(value) for key, value in values.items() if value is not None}
    position = {name: getattr(run, name) for name in POSITION}
    save_tensors(run.out / "last" / STATE, tensors, {"training": position})


def kept_weights(run: Run) -> dict[str, Tensor]:
    """Of the kept model, and of the system that makes its proposals."""
    brought = {} if run.given is None else run.given.weights
    return {**run.scored.state_dict(), **{f"{PROPOSER}{name}": tensor for name, tensor in brought.items()}}


def restore(run: Run) -> dict[str, Tensor]:
    """Load the last checkpoint into the run; what belongs to the optimizer is returned."""
    tensors, metadata = read_tensors(run.out / "last" / STATE)
    position = metadata["training"]
    for name in POSITION:
        if name in position:  # version 0.1 knew no patience, and kept no scores
            setattr(run, name, position[name])
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "average": {}, "optimizer": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = tensor
    run.system.load_state_dict(parts["model"])
    if run.average is not None:
        run.average.load_state_dict(parts["average"])
    if run.processes.is_first:
        _tidy(run)
    return parts["optimizer"]


def _tidy(run: Run) -> None:
    """Remove what a killed run left behind: temporary files, and metrics of steps that are done again."""
    for temporary in run.out.rglob(".*.tmp"):
        temporary.unlink()
    if not (run.out / METRICS).is_file():
        return
    kept = []
    for text in (run.out / METRICS).read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:  # cut off
            continue
        if (line["stage"], line["step"]) <= (run.stage, run.step):
            kept.append(text)
    write_text(run.out / METRICS, "".join(f"{text}\n" for text in kept))


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Give an optimizer what it knew, as `restore` returned it."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        like = parameters[int(index)]  # in whose order of memory updates are fast
        state.setdefault(int(index), {})[key] = torch.empty_like(like).copy_(tensor) if tensor.shape == like.shape else tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
