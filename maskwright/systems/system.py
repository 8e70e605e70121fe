"""The contract every system keeps: two verbs, `loss` and `predict`, and what the rest of the workbench must know."""

from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from functools import wraps
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from maskwright.structures import ImageBatch, InputSpec, Instances, Masks


class Task(StrEnum):
    """What a system answers; decides how it is scored and compared."""

    INSTANCES = "instances"
    BOXES = "boxes"
    PROPOSALS = "proposals"
    KEYPOINTS = "keypoints"
    MASKS_AND_KEYPOINTS = "masks and keypoints"

    @property
    def has_masks(self) -> bool:
        """Whether masks are answered, and learnt from."""
        return self in (Task.INSTANCES, Task.PROPOSALS, Task.MASKS_AND_KEYPOINTS)

    @property
    def has_keypoints(self) -> bool:
        """Whether keypoints are."""
        return self in (Task.KEYPOINTS, Task.MASKS_AND_KEYPOINTS)


class Loss(NamedTuple):
    """One term of the loss and what it is averaged over.

    Whoever trains adds totals and counts over micro-batches and processes before dividing, which gives the gradient of one
    big batch.
    """

    total: Tensor
    """Sum of the term, float32 scalar."""
    count: Tensor  # type: ignore[assignment]  # the field's word; a loss has no use for tuple.count
    """What to divide by; where it adds up to 0, the total is not divided."""


class System(Protocol):
    """A network with its losses and post-processing. Systems are `torch.nn.Module`s; `loss` and `predict` are all they add.

    Neither verb asks whether the module is in training mode.
    """

    input: InputSpec
    """How an image becomes pixels."""
    task: Task
    """What it answers."""
    max_detections: int
    """Objects answered for an image at most."""

    def loss(self, images: ImageBatch, targets: list[Instances]) -> dict[str, Loss]:
        """Loss terms by name; targets in the input frame, crowd rows included; images carry keys for random sampling."""

    def predict(self, images: ImageBatch) -> list[Instances]:
        """Objects of each image, original frame, best score first."""

    def class_rows(self) -> dict[str, int]:
        """Parameters whose first rows belong to classes in order, and how many rows each class has."""

    # What torch.nn.Module gives.
    def parameters(self) -> Iterator[nn.Parameter]: ...  # noqa: D102
    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...  # noqa: D102
    def modules(self) -> Iterator[nn.Module]: ...  # noqa: D102
    def state_dict(self) -> dict[str, Tensor]: ...  # noqa: D102
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any: ...  # noqa: D102
    def to(self, device: torch.device | str) -> Any: ...  # noqa: D102
    def train(self, mode: bool = True) -> Any: ...  # noqa: D102
    def eval(self) -> Any: ...  # noqa: D102


def masks_of(target: Instances) -> Masks:
    """The masks a system learns from.

    Raises:
        ValueError: there are none.
    """
    if target.masks is None:
        raise ValueError(
            "the targets have no masks: train a box system such as faster-rcnn-small or fcos-small, or add segmentations"
        )
    return target.masks


S = TypeVar("S", bound=System)


def loss_by_size(verb: Callable[[S, ImageBatch, list[Instances]], dict[str, Loss]]) -> Callable[..., dict[str, Loss]]:
    """Have `loss` look at images of one size at a time, unless the system's input pads them: its terms add up.

    What norms and convolutions see of an image then never depends on what shares its batch.
    """

    @wraps(verb)
    def loss(self: S, images: ImageBatch, targets: list[Instances]) -> dict[str, Loss]:
        if self.input.size_divisor is not None:
            return verb(self, images, targets)
        terms: dict[str, Loss] = {}
        for places, part in images.alike():
            for name, term in verb(self, part, [targets[i] for i in places]).items():
                known = terms.get(name)
                terms[name] = term if known is None else Loss(known.total + term.total, known.count + term.count)
        return terms

    return loss


def predict_by_size(verb: Callable[[S, ImageBatch], list[Instances]]) -> Callable[..., list[Instances]]:
    """Have `predict` look at images of one size at a time, likewise."""

    @wraps(verb)
    def predict(self: S, images: ImageBatch) -> list[Instances]:
        if self.input.size_divisor is not None:
            return verb(self, images)
        found: dict[int, Instances] = {}
        for places, part in images.alike():
            found.update(zip(places, verb(self, part), strict=True))
        return [found[i] for i in range(len(images))]

    return predict
