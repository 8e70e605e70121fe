"""Losses of masks as a whole."""

import torch
from torch import Tensor


def lovasz_hinge(logits: Tensor, wanted: Tensor) -> Tensor:
    """The Lovász extension of the Jaccard loss of each mask, with hinge errors (Berman et al., CVPR 2018, algorithm 1).

    Args:
        logits: positive inside, (R, M) for M pixels; pixels to be left out have a very negative one and are not wanted.
        wanted: bool (R, M).

    Returns:
        float32 (R,); 1 where all logits are 0 and something is wanted, 0 where every pixel is right by a margin of 1.
    """
    signs = 2.0 * wanted.to(torch.float32) - 1.0
    errors, order = (1.0 - logits.to(torch.float32) * signs).sort(dim=1, descending=True)
    sorted_wanted = wanted.gather(1, order).to(torch.float32)
    count = sorted_wanted.sum(dim=1, keepdim=True)
    shared = count - sorted_wanted.cumsum(dim=1)
    union = count + (1.0 - sorted_wanted).cumsum(dim=1)
    jaccard = 1.0 - shared / union
    weights = torch.diff(jaccard, dim=1, prepend=torch.zeros_like(count))
    return (errors.relu() * weights).sum(dim=1)


def logits_of_energy(energy: Tensor) -> Tensor:
    """The logit of φ = exp(-energy), finite with finite gradients at φ = 0 and φ = 1: ln φ - ln(1 - φ), float32."""
    kept = energy.to(torch.float32).clamp(1e-6, 20.7233)  # φ from 1e-9 on; 1 - φ from the resolution of float32 on
    return -kept - torch.log(-torch.expm1(-kept))
