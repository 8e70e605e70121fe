"""Dropout whose draws belong to an image, so that neither workers, processes nor a pause in training change them."""

from collections.abc import Sequence

import torch
from torch import Tensor


def keyed_dropout(x: Tensor, generators: Sequence[torch.Generator] | None, *, p: float = 0.5) -> Tensor:
    """Leave out each value of (B, …) with probability `p` and scale up the others; each row draws from a generator of its own.

    Args:
        generators: on the CPU, one for each row; None leaves everything as it is, for prediction.
    """
    if generators is None or p == 0:
        return x
    kept = torch.stack([torch.rand(x.shape[1:], generator=generator) >= p for generator in generators])
    return x * kept.to(x) / (1 - p)
