"""Normalization layers that train with any batch, or not at all."""

import copy
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from maskwright.layers.padding import PaddedConv2d


class GroupNorm(nn.GroupNorm):
    """Group normalization in the precision of its input, by default 16 channels to a group (Wu and He, table 3), or nearly.

    Statistics are gathered in float32 inside the kernel; keeping bf16 activations as they are halves the traffic of a layer
    that does nothing but move memory.
    """

    def __init__(self, num_channels: int, *, per_group: int = 16) -> None:
        wanted = max(1, num_channels // per_group)
        super().__init__(num_groups=next(n for n in range(wanted, 0, -1) if num_channels % n == 0), num_channels=num_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, …), normalized."""
        dtype = self.weight.dtype if x.device.type == "cpu" else x.dtype  # only the CPU kernel takes both at once
        with torch.autocast(x.device.type, enabled=False):
            return F.group_norm(x, self.num_groups, self.weight.to(dtype), self.bias.to(dtype), self.eps)


class LayerNorm2d(nn.LayerNorm):
    """Normalization over the channels of each place alone, so that windows answer the same cut out as within an image."""

    def __init__(self, num_channels: int) -> None:
        super().__init__(num_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W), normalized."""
        dtype = self.weight.dtype if x.device.type == "cpu" else x.dtype  # only the CPU kernel takes both at once
        with torch.autocast(x.device.type, enabled=False):
            weight, bias = self.weight.to(dtype), self.bias.to(dtype)
            return F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, weight, bias, self.eps).permute(0, 3, 1, 2)


BranchNorm = Literal["group", "frozen"]
"""Of parts beside the backbone: trained with any batch, or fixed, as pretrained weights bring it along."""


def normed_conv(in_channels: int, channels: int, kernel: int = 3, *, norm: BranchNorm) -> nn.Sequential:
    """A convolution without bias that keeps the size, and its norm."""
    conv = nn.Conv2d(in_channels, channels, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_uniform_(conv.weight, a=1)
    pair = nn.Sequential(conv, GroupNorm(channels) if norm == "group" else nn.BatchNorm2d(channels))
    if norm == "frozen":
        freeze_norms(pair, in_channels)
    return pair


class FrozenNorm(nn.Module):
    """Batch normalization with fixed statistics and affine numbers, all of them buffers; and its activation, where it has one.

    Right after a convolution it belongs to it, which applies it (`NormedConv2d`): y = conv(x; w·s) + b, with
    s = weight / √(running_var + eps) and b = bias - running_mean·s, is conv then norm without a pass over memory for the
    norm, forwards or backwards. Elsewhere it does so itself.
    """

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.eps = norm.eps
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, getattr(norm, name).detach().clone())
        self.act: nn.Module = norm.act if isinstance(norm, BatchNormAct2d) else nn.Identity()
        self.is_done_before = False

    def factors(self) -> tuple[Tensor, Tensor]:
        """s and b, each (C,)."""
        weight, bias, mean, variance = (self.get_buffer(n) for n in ("weight", "bias", "running_mean", "running_var"))
        scale: Tensor = weight * (variance + self.eps).rsqrt()
        return scale, bias - mean * scale

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W), normalized and activated."""
        if not self.is_done_before:
            scale, shift = (numbers.to(x.dtype)[:, None, None] for numbers in self.factors())
            x = x * scale + shift
        answer: Tensor = self.act(x)
        return answer


class NormedConv2d(nn.Module):
    """A convolution, and the frozen norm that follows it."""

    def __init__(self, conv: nn.Conv2d, norm: FrozenNorm) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self._parts = (conv, norm)  # in a tuple: the norm stays a child of the network, under the name that weight files know
        norm.is_done_before = True

    def extra_repr(self) -> str:
        """Numbers for print(module)."""
        return repr(self._parts[0])

    def factors(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the convolution that does both."""
        scale, shift = self._parts[1].factors()
        return self.weight * scale[:, None, None, None], shift if self.bias is None else self.bias * scale + shift

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W), normalized."""
        conv, padding = self._parts[0], self._parts[0].padding
        if isinstance(conv, PaddedConv2d):
            x, padding = conv.pad(x), 0  # type: ignore[assignment]
        geometry: Any = (conv.stride, padding, conv.dilation, conv.groups)
        if x.device.type == "cpu" and conv.groups == conv.in_channels and torch.is_grad_enabled():
            with torch.autocast("cpu", enabled=False):  # PyTorch 2.15: backwards faster than in bf16
                return F.conv2d(x.float(), *self.factors(), *geometry).to(x.dtype)
        return F.conv2d(x, *self.factors(), *geometry)

    def folded(self) -> nn.Conv2d:
        """The same as one convolution, its norm fixed for good."""
        conv = copy.deepcopy(self._parts[0])
        conv.weight, conv.bias = (nn.Parameter(numbers, requires_grad=False) for numbers in self.factors())
        return conv


@torch.no_grad()
def freeze_norms(network: nn.Module, channels: int) -> None:
    """Replace batch norms by frozen ones, each applied by the convolution whose answer it takes, or else by itself.

    Args:
        network: newly built; it looks once at an image without numbers, to show who follows whom.
        channels: of that image.
    """
    answered: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # by the answer's address, which holding it keeps from others
    conv_of: dict[nn.Module, tuple[nn.Conv2d, int]] = {}
    uses = _Uses()

    def remember(layer: Any, _: Any, answer: Tensor) -> None:
        answered[id(answer)] = (layer, answer)
        uses.count[id(answer)] = 0  # whatever lay there before

    def look_up(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        address = id(inputs[0])
        if address in answered:
            conv_of[layer] = (answered[address][0], address)

    hooks = []
    for layer in network.modules():
        if type(layer) is nn.Conv2d or isinstance(layer, PaddedConv2d):  # others do more than convolve
            hooks.append(layer.register_forward_hook(remember))
        elif isinstance(layer, nn.BatchNorm2d):
            hooks.append(layer.register_forward_pre_hook(look_up))
    numbers = {name: tensor.to("meta") for name, tensor in network.state_dict().items()}
    is_training = network.training
    image = torch.empty(1, channels, 256, 256, device="meta")
    with uses:
        answers = torch.func.functional_call(network.eval(), numbers, image)
    network.train(is_training)
    for hook in hooks:
        hook.remove()
    taken = uses.count + Counter(map(id, [answers] if isinstance(answers, Tensor) else answers))
    _exchange(
        network,
        {norm: FrozenNorm(norm) for norm in network.modules() if isinstance(norm, nn.BatchNorm2d)},
        {norm: conv for norm, (conv, address) in conv_of.items() if taken[address] == 1},
    )


class _Uses(TorchFunctionMode):
    """How often each tensor is computed with, by its address."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[int] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = func(*args, **(kwargs or {}))
        if not isinstance(answer, (torch.Size, int, bool)):  # what is asked of a tensor's shape is no computation
            given = (part for each in args for part in (each if isinstance(each, (list, tuple)) else (each,)))
            self.count.update(id(part) for part in given if isinstance(part, Tensor))
        return answer


def _exchange(network: nn.Module, frozen: Mapping[nn.Module, FrozenNorm], conv_of: Mapping[nn.Module, nn.Conv2d]) -> None:
    """Put frozen norms in the place of others, and normed convolutions in that of those before them."""
    exchanged: dict[nn.Module, nn.Module] = dict(frozen)
    exchanged |= {conv: NormedConv2d(conv, frozen[norm]) for norm, conv in conv_of.items()}
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if child in exchanged:
                setattr(parent, name, exchanged[child])


def replace_norms(network: nn.Module, kind: type[GroupNorm] | type[LayerNorm2d]) -> None:
    """Replace batch norms by others, whose affine numbers begin as theirs."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                norm = kind(child.num_features)
                norm.load_state_dict({key: getattr(child, key) for key in ("weight", "bias")})
                setattr(parent, name, nn.Sequential(norm, child.act) if isinstance(child, BatchNormAct2d) else norm)


def fold_frozen_norms(network: nn.Module) -> None:
    """Multiply frozen norms into their convolutions for good, for inference."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, NormedConv2d):
                setattr(parent, name, child.folded())
            elif isinstance(child, FrozenNorm) and child.is_done_before:
                setattr(parent, name, child.act)


def has_frozen_norms(modules: Iterable[nn.Module]) -> bool:
    """Whether there are norms whose statistics come from pretrained weights."""
    return any(isinstance(m, FrozenNorm) for m in modules)
