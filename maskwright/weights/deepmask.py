"""Weights of the authors' DeepMask and SharpMask (facebookresearch/deepmask, Torch7), in our names.

Layers are told by their place: in a Sequential, and within a bottleneck. The frozen norms are a·x + b there; here they are
norms of variance 1, whose weight takes up the number that is added to it.
"""

import math
import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from maskwright.weights.conversion import Converted

_NORM_EPS = 1e-5  # of our frozen norms
_STAGES = {5: "layer1", 6: "layer2", 7: "layer3"}  # places in the trunk
_REDUCE, _ENCODE = 9, 12
_CONVS = {1: "conv1", 4: "conv2", 7: "conv3"}  # places in a bottleneck's branch, and of their norms:
_NORMS = {2: "bn1", 5: "bn2", 8: "bn3"}
_EXPECTED = {"iSz": 160, "oSz": 56}


def recognizes(state: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of a DeepMask or SharpMask."""
    return any(re.match(r"model\.trunk\.modules\.12\.weight$", name) for name in state)


def convert(state: Mapping[str, Tensor]) -> Converted:
    """Tensors by our names.

    Raises:
        ValueError: layers that are missing, or a model of another size.
    """
    told = {name: _option(state, name) for name in _EXPECTED}
    wrong = [
        f"{name} is {'not told' if value is None else int(value)}" for name, value in told.items() if value != _EXPECTED[name]
    ]
    if wrong:
        raise ValueError(f"{', '.join(wrong)}, expected {_EXPECTED}: only the released sizes are read")
    tensors: dict[str, Tensor] = {}
    _trunk(state, tensors)
    _layer(state, "model.scoreBranch.modules.2", "head.score.hidden", tensors, (1024, 512, 1, 1))
    _layer(state, "model.scoreBranch.modules.5", "head.score.logit", tensors, (1, 1024, 1, 1))
    is_sharp = any(name.startswith("model.netvs.") for name in state)
    coarse = "model.maskBranchDM" if is_sharp else "model.maskBranch"
    for kind, value in _parameters(state, coarse)[0].items():
        tensors[f"mask_head.logits.{kind}"] = value
    if not is_sharp:
        return Converted(tensors, "deepmask-r50", {"num_classes": 1}, ("object",), (1,))
    for kind, value in _parameters(state, "model.netvs.0")[0].items():
        tensors[f"refinement.encode.{kind}"] = value
    for i in range(4):
        horizontal, vertical = _parameters(state, f"model.neths.{i + 1}"), _parameters(state, f"model.netvs.{i + 1}")
        layers = dict(zip(("thin1", "thin2", "merge_features"), horizontal, strict=True))
        layers |= dict(zip(("mask", "merge_mask"), vertical, strict=True))
        for name, parameters in layers.items():
            tensors |= {f"refinement.stages.{i}.{name}.{kind}": value for kind, value in parameters.items()}
    for kind, value in _parameters(state, "model.refs.4.modules.6")[0].items():
        tensors[f"refinement.logits.{kind}"] = value
    width = int(_option(state, "km") or 32)
    return Converted(tensors, "sharpmask-r50", {"num_classes": 1, "width": width}, ("object",), (1,))


def _option(state: Mapping[str, Tensor], name: str) -> float | None:
    value = state.get(f"config.{name}")
    return None if value is None else float(value)


def _trunk(state: Mapping[str, Tensor], tensors: dict[str, Tensor]) -> None:
    trunk = "model.trunk.modules"
    tensors["backbone.network.conv1.weight"] = _kernel(state, f"{trunk}.1")
    _norm(state, f"{trunk}.2", "backbone.network.bn1", tensors)
    for place, stage in _STAGES.items():
        for block in _children(state, f"{trunk}.{place}.modules"):
            ours = f"backbone.network.{stage}.{block - 1}"
            both = f"{trunk}.{place}.modules.{block}.modules.1.modules"  # branch and shortcut
            for number, name in _CONVS.items():
                tensors[f"{ours}.{name}.weight"] = _kernel(state, f"{both}.1.modules.{number}")
            for number, name in _NORMS.items():
                _norm(state, f"{both}.1.modules.{number}", f"{ours}.{name}", tensors)
            if any(name.startswith(f"{both}.2.modules.") for name in state):
                tensors[f"{ours}.downsample.0.weight"] = _kernel(state, f"{both}.2.modules.1")
                _norm(state, f"{both}.2.modules.2", f"{ours}.downsample.1", tensors)
    _layer(state, f"{trunk}.{_REDUCE}", "head.reduce.0", tensors, (128, 1024, 1, 1))
    _layer(state, f"{trunk}.{_ENCODE}", "head.encode", tensors, (512, 128, 10, 10))


def _layer(state: Mapping[str, Tensor], theirs: str, ours: str, tensors: dict[str, Tensor], shape: tuple[int, ...]) -> None:
    """A linear layer or 1×1 convolution, as a convolution of a shape."""
    for kind, value in _parameters(state, theirs)[0].items():
        if kind == "weight" and value.numel() != math.prod(shape):
            raise ValueError(f"{theirs} is {tuple(value.shape)}, expected {shape}")
        tensors[f"{ours}.{kind}"] = value.reshape(shape) if kind == "weight" else value


def _kernel(state: Mapping[str, Tensor], path: str) -> Tensor:
    """Of a convolution that a norm follows.

    Raises:
        ValueError: it has a bias, which ours has not.
    """
    layer = _parameters(state, path)[0]
    if "bias" in layer and layer["bias"].any():
        raise ValueError(f"{path} has a bias before its norm: such files are not read yet")
    return layer["weight"]


def _norm(state: Mapping[str, Tensor], theirs: str, ours: str, tensors: dict[str, Tensor]) -> None:
    missing = [name for name in ("a", "b") if f"{theirs}.{name}" not in state]
    if missing:
        raise ValueError(f"{theirs} has no {' and '.join(missing)}: expected a frozen norm there")
    scale, shift = (state[f"{theirs}.{name}"].flatten().float() for name in ("a", "b"))
    tensors[f"{ours}.weight"] = scale * math.sqrt(1 + _NORM_EPS)
    tensors[f"{ours}.bias"] = shift
    tensors[f"{ours}.running_mean"] = torch.zeros_like(scale)
    tensors[f"{ours}.running_var"] = torch.ones_like(scale)


def _parameters(state: Mapping[str, Tensor], path: str) -> list[dict[str, Tensor]]:
    """Weight and bias of every layer below a path, in order, whatever stands between them.

    Raises:
        ValueError: there is none.
    """
    layers: dict[tuple[int, ...], dict[str, Tensor]] = {}
    for name, value in state.items():
        found = re.fullmatch(re.escape(path) + r"((?:\.modules\.\d+)*)\.(weight|bias)", name)
        if found:
            place = tuple(map(int, re.findall(r"\d+", found[1])))
            layers.setdefault(place, {})[found[2]] = value.float().contiguous()
    if not layers:
        raise ValueError(f"{path} holds no layer")
    return [layers[place] for place in sorted(layers)]


def _children(state: Mapping[str, Tensor], path: str) -> Iterator[int]:
    """Numbers of the modules below a path."""
    found = {int(m[1]) for name in state if (m := re.match(re.escape(path) + r"\.(\d+)\.", name))}
    return iter(sorted(found))
