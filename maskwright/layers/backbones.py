"""Backbones: timm networks that declare their strides and channels, cut to what a system uses.

They answer {stride: (B, C, H / stride, W / stride)}.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import timm
import torch
from timm.models.efficientnet import EfficientNetFeatures
from timm.models.mobilenetv3 import MobileNetV3Features
from timm.models.resnet import Bottleneck
from torch import Tensor, nn

from maskwright.layers.norms import GroupNorm, LayerNorm2d, freeze_norms, replace_norms
from maskwright.layers.padding import pad_alike, pad_symmetrically

Norm = Literal["frozen", "group", "layer", "none"]


class Backbone(nn.Module):
    """A timm network as a feature extractor.

    Args:
        name: timm's name of the network, for example "resnet50".
        strides: the feature maps wanted, input px per cell.
        norm: "frozen" batch norm, whose statistics must come with pretrained weights; "group", which trains from scratch;
            "layer", which does so without looking beyond a place; or "none", for networks that have none.
        norm_eps: added to the variance of a frozen norm; None for what timm's network adds.
        stride_in_1x1: whether stages halve the resolution in their first 1×1 convolution, as the original ResNets do
            (weights of Caffe, Detectron, detectron2), and not in the 3×3 one (weights of timm and torchvision).
        padding: of convolutions, see `layers.padding`.
        dilated: whether the coarsest map comes from one stage later, which keeps the resolution by dilation.
        dilates_first: whether already the first 3×3 convolution of that stage is dilated, as in detectron2.
        ceil_mode: whether pooling keeps what is left at the right and the bottom, as Caffe's does.
    """

    def __init__(
        self,
        name: str,
        *,
        strides: Sequence[int],
        norm: Norm,
        norm_eps: float | None = None,
        stride_in_1x1: bool = False,
        padding: Literal["zero", "symmetric"] = "zero",
        dilated: bool = False,
        dilates_first: bool = False,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__()
        known = _strides_of(name)
        if unknown := [s for s in strides if s not in known]:
            raise ValueError(f"got strides {unknown} of {name}, expected some of {known}, which it has")
        if list(strides) != sorted(set(strides)):
            raise ValueError(f"got strides {list(strides)} of {name}, expected each once, the finest first")
        stages = [known.index(s) for s in strides]
        options: dict[str, Any] = {}
        if dilated:
            if strides[-1] == known[-1]:
                raise ValueError(
                    f"got a dilated stage of {name} after stride {strides[-1]}, expected a finer one, as none follows"
                )
            stages[-1] += 1
            options["output_stride"] = strides[-1]
        try:
            network: Any = timm.create_model(name, features_only=True, out_indices=tuple(stages), **options)
        except (AssertionError, TypeError, ValueError, NotImplementedError, IndexError) as error:
            how = f"dilated from stride {strides[-1]} on" if dilated else f"of strides {list(strides)}"
            why = f" ({error})" if str(error) else ""
            raise ValueError(f"{name} cannot be had {how}{why}: choose another backbone, such as resnet34") from None
        if norm == "none" and any(isinstance(layer, nn.BatchNorm2d) for layer in network.modules()):
            raise ValueError(f"{name} has batch norms, got norm='none', expected 'frozen' or 'group'")
        self.name = name
        self.strides = tuple(strides)
        self.channels = dict(zip(network.feature_info.reduction(), network.feature_info.channels(), strict=True))
        self.network: nn.Module = network
        if stride_in_1x1:
            _move_strides(network)
        if dilates_first:
            (*_, stage) = network.children()
            stage[0].conv2.dilation = stage[0].conv2.padding = (2, 2)
        if isinstance(network, (EfficientNetFeatures, MobileNetV3Features)):  # which timm leaves what follows the last map
            network.blocks = network.blocks[: network.feature_info.get_dicts()[-1]["stage"]]
        pad_alike(network)
        if padding == "symmetric":
            pad_symmetrically(network)
        if ceil_mode:
            for layer in network.modules():
                if isinstance(layer, nn.MaxPool2d):
                    layer.ceil_mode = True
        try:
            _set_norms(network, norm, norm_eps, channels=3)
        except RuntimeError as error:
            raise ValueError(f"{name} cannot look at an image ({error}): choose another backbone, such as resnet34") from None

    def forward(self, pixels: Tensor) -> dict[int, Tensor]:
        """Feature maps by stride."""
        return dict(zip(self.strides, self.network(pixels), strict=True))


class Reduced(nn.Module):
    """One map of a backbone with fewer channels, by a 1×1 convolution."""

    def __init__(self, stride: int, channels: int, reduced: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(channels, reduced, 1)

    def forward(self, features: dict[int, Tensor]) -> dict[int, Tensor]:
        """{stride: (B, channels, H, W)} → {stride: (B, reduced, H, W)}."""
        return {self.stride: torch.relu(self.conv(features[self.stride]))}


class ImageNetPart(nn.Module):
    """A part outside the backbone that begins with weights of an ImageNet network, too.

    `pretrained` is timm's name of that network, None for a part that starts afresh; `sources` names, for each layer of the
    part, that of the network in timm's files and in torchvision's.
    """

    pretrained: str | None = None
    sources: Mapping[str, tuple[str, str]]


VGG_HIDDEN = {"fc1": ("pre_logits.fc1", "classifier.0"), "fc2": ("pre_logits.fc2", "classifier.3")}
"""VGG-16's two hidden layers."""


class LastStage(ImageNetPart):
    """The last stage of a ResNet, for features of RoIs.

    Args:
        name: timm's of the network.
        stride: 2 halves the resolution, as in the whole network, 1 keeps it.
        norm, norm_eps, stride_in_1x1: see `Backbone`.
        stage: another than the last, then without ImageNet's weights.
    """

    sources = MappingProxyType({"blocks": ("layer4", "layer4")})

    def __init__(
        self,
        name: str,
        *,
        norm: Norm,
        norm_eps: float | None = None,
        stride_in_1x1: bool = False,
        stride: int = 2,
        stage: str = "layer4",
    ) -> None:
        super().__init__()
        network: nn.Module = timm.create_model(name)
        if stage not in dict(network.named_children()):
            raise ValueError(f"{name} has no stage {stage!r} that could look at RoIs: choose a ResNet")
        self.blocks = network.get_submodule(stage)
        self.pretrained = name if stage == "layer4" else None
        if stride_in_1x1:
            _move_strides(self.blocks)
        if stride == 1:
            for layer in self.blocks.modules():
                if isinstance(layer, nn.Conv2d):
                    layer.stride = (1, 1)
        _set_norms(self.blocks, norm, norm_eps, channels=next(self.blocks.parameters()).shape[1])

    def forward(self, x: Tensor) -> Tensor:
        """(R, C, S, S) → (R, 2·C, S / stride, S / stride)."""
        answer: Tensor = self.blocks(x)
        return answer


@dataclass(frozen=True)
class WeightsOrigin:
    """What weights of a ResNet expect, by whoever trained them; mixing two of them costs accuracy without an error.

    Args:
        stride_in_1x1, norm_eps: of the network, see `Backbone`.
        pixels: the part of `InputSpec` that says what values pixels have; None for what timm says of the network.
    """

    stride_in_1x1: bool = False
    norm_eps: float | None = None
    pixels: dict[str, Any] | None = None

    def backbone(self, name: str, *, strides: Sequence[int], norm: Norm, dilated: bool = False) -> Backbone:
        """The network these weights fit; a dilated stage is detectron2's."""
        options: dict[str, Any] = {"norm_eps": self.norm_eps, "stride_in_1x1": self.stride_in_1x1}
        return Backbone(name, strides=strides, norm=norm, dilated=dilated, dilates_first=dilated, **options)


def _caffe(mean: tuple[float, float, float], std: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> dict[str, Any]:
    return {"channel_order": "bgr", "value_range": 255, "mean": mean, "std": std}


MEAN = (103.53, 116.28, 123.675)  # detectron2


ORIGINS = {
    "timm": WeightsOrigin(),
    "caffe": WeightsOrigin(stride_in_1x1=True, norm_eps=0.0, pixels=_caffe((102.9801, 115.9465, 122.7717))),
    "detectron2": WeightsOrigin(stride_in_1x1=True, pixels=_caffe(MEAN)),
    "detectron2-x101": WeightsOrigin(pixels=_caffe(MEAN, (57.375, 57.12, 58.395))),
}
"""timm and torchvision; maskrcnn-benchmark, FCOS and EmbedMask (which add nothing to a frozen norm's variance); detectron2, and
its ResNeXt."""

Origin = Literal["timm", "caffe", "detectron2", "detectron2-x101"]


def pixels_of(name: str, origin: Origin = "timm") -> dict[str, Any]:
    """What values pixels have for a network's weights of that origin, as `InputSpec` takes it."""
    pixels = ORIGINS[origin].pixels
    if pixels is None:
        trained = timm.get_pretrained_cfg(name) or timm.models.PretrainedCfg()
        pixels = {"mean": trained.mean, "std": trained.std}
    return pixels


def _strides_of(name: str) -> list[int]:
    """Of the maps a network has.

    Raises:
        ValueError: timm does not know it, or not as one that gives maps of images of any size.
    """
    near = ", ".join(difflib.get_close_matches(name, timm.list_models(), n=3)) or "'timm.list_models()' lists them"
    if not timm.is_model(name):  # nor a name that has it look for one on a hub
        raise ValueError(f"timm has no backbone {name!r}; near it: {near}")
    try:
        with torch.device("meta"):
            network: Any = timm.create_model(name, features_only=True)
        if (timm.get_pretrained_cfg(name) or timm.models.PretrainedCfg()).fixed_input_size:
            raise ValueError("its images have one size")
        strides: list[int] = network.feature_info.reduction()
    except (RuntimeError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"timm has no feature maps of the backbone {name!r} ({error}); near it: {near}") from None
    return strides


def _set_norms(network: nn.Module, norm: Norm, eps: float | None, *, channels: int) -> None:
    """Give a network that is just built norms of a kind, in place of batch norms; it takes images of so many channels."""
    if norm == "frozen":
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d) and eps is not None:
                layer.eps = eps
        freeze_norms(network, channels)
    elif norm != "none":
        replace_norms(network, GroupNorm if norm == "group" else LayerNorm2d)


def _move_strides(network: nn.Module) -> None:
    for block in network.modules():
        if isinstance(block, Bottleneck):
            block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
