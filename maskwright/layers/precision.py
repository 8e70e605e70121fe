"""Layers whose answers are scores and coordinates: they compute in float32 whatever the rest of the network does."""

import torch
from torch import Tensor, nn


class Float32Conv2d(nn.Conv2d):
    """A convolution outside autocast."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W), float32."""
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.to(torch.float32))


class Float32ConvTranspose2d(nn.ConvTranspose2d):
    """A transposed convolution outside autocast."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """(B, C, H, W), float32."""
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.to(torch.float32))


class Float32Linear(nn.Linear):
    """A linear layer outside autocast."""

    def forward(self, x: Tensor) -> Tensor:
        """(…, C), float32."""
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.to(torch.float32))


class ClassConv1x1(Float32Conv2d):
    """A 1×1 convolution of which each RoI is given the channel of one class only: the others are never computed."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__(in_channels, num_classes, 1)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
        """x (R, C, H, W) and classes int64 (R,) → float32 (R, H, W)."""
        assert self.bias is not None
        with torch.autocast(x.device.type, enabled=False):
            weight = self.weight.flatten(1)[labels]  # (R, C)
            vectors = x.to(torch.float32).permute(0, 2, 3, 1).flatten(1, 2)  # (R, H·W, C)
            logits = torch.baddbmm(self.bias[labels][:, None, None], vectors, weight[:, :, None])
        return logits.reshape(len(x), *x.shape[2:])


def cast_weights(module: nn.Module, dtype: torch.dtype) -> None:
    """Convert the weights of convolutions and linear layers once, instead of at every call under autocast."""
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)) and not isinstance(
            layer, (Float32Conv2d, Float32ConvTranspose2d, Float32Linear)
        ):
            layer.to(dtype)
