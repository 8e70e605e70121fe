"""First values of layers that are trained from scratch."""

from torch import nn


def init_normal(layer: nn.Conv2d | nn.Linear, *, std: float, bias: float = 0.0) -> None:
    """Weights from N(0, std²), biases constant."""
    nn.init.normal_(layer.weight, std=std)
    if layer.bias is not None:
        nn.init.constant_(layer.bias, bias)
