"""What all conversions of foreign checkpoints share: renaming by rules, and what is learnt of the network on the way."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights
from torchvision.models.segmentation import FCN_ResNet50_Weights

from maskwright.structures import COCO_PERSON, KeypointSchema

COCO_ROWS: list[str] = MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]  # by COCO's id, "N/A" where there is none
VOC_ROWS: tuple[str, ...] = tuple(FCN_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1.meta["categories"][1:])


@dataclass(frozen=True)
class Converted:
    """Tensors by our names, and what they tell of the network.

    Args:
        system: the builder with the parts these weights were trained with.
        arguments: of that builder, the number of classes included.
        names, ids: of the classes, row by row.
        keypoints: what they are, where there are any.
        norm_eps_unknown: whether norms were frozen, with an eps the file does not tell.
        assumed: further arguments, which the file does not tell for certain: whoever knows better may give others.
    """

    tensors: dict[str, Tensor]
    system: str
    arguments: dict[str, Any]
    names: tuple[str, ...]
    ids: tuple[int, ...]
    keypoints: KeypointSchema | None = None
    norm_eps_unknown: bool = False
    assumed: dict[str, Any] = field(default_factory=dict)


class Source(Protocol):
    """A module that knows one kind of checkpoint."""

    def recognizes(self, state: Mapping[str, Tensor]) -> bool:
        """Whether the names are those of this source."""

    def convert(self, state: Mapping[str, Tensor]) -> Converted:
        """Tensors by our names."""


def rename(
    state: Mapping[str, Tensor],
    rules: Sequence[tuple[str, str]],
    tables: Mapping[str, Mapping[str, str]],
    *,
    unused: str = r".*num_batches_tracked",  # counts the steps of a norm that was trained; nothing depends on it
) -> dict[str, Tensor]:
    """Tensors by our names, every one of them used.

    Args:
        rules: patterns of foreign names with named groups, and our names with these groups in braces. Names that end in #0, #1
            are parts of one tensor, put together row by row.
        tables: what groups are replaced by, by group and text found; others stay as they are.
        unused: pattern of names without meaning for the network.

    Raises:
        ValueError: names that no rule knows.
    """
    tensors: dict[str, Tensor] = {}
    unknown = []
    for theirs, value in state.items():
        if re.fullmatch(unused, theirs):
            continue
        for pattern, ours in rules:
            if match := re.fullmatch(pattern, theirs):
                groups = {key: text for key, text in match.groupdict().items() if text is not None}
                tensors[ours.format(**{key: tables.get(key, {}).get(text, text) for key, text in groups.items()})] = value
                break
        else:
            unknown.append(theirs)
    if unknown:
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise ValueError(f"left over: {', '.join(unknown[:5])}{more}")
    for name in [name for name in tensors if name.endswith("#0")]:
        whole, first = name.removesuffix("#0"), tensors.pop(name)
        if f"{whole}#1" not in tensors:
            raise ValueError(f"{whole} has only the first of its two parts")
        tensors[whole] = torch.cat([first, tensors.pop(f"{whole}#1")])
    return tensors


def person_keypoints(layer: Tensor | None) -> KeypointSchema:
    """COCO's keypoints, for the layer (C, J, k, k) that tells them.

    Raises:
        ValueError: there is no such layer, or it tells others, whose names nobody knows.
    """
    joints = 0 if layer is None or layer.ndim != 4 else layer.shape[1]
    if joints != len(COCO_PERSON.names):
        raise ValueError(f"it has {joints} keypoints whose names the file does not hold: only COCO's 17 can be imported")
    return COCO_PERSON


def numbered(num_classes: int) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names and ids of classes of which only the number is known."""
    return tuple(str(row) for row in range(1, num_classes + 1)), tuple(range(1, num_classes + 1))
