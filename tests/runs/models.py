"""What tests of runs share."""

import torch

from maskwright.formats.dataset import Categories
from maskwright.runs import ModelCard
from maskwright.systems import SYSTEMS


def small(names, ids=None, seed=0):
    """A network with these classes, and its card."""
    torch.manual_seed(seed)
    system = SYSTEMS["mask-rcnn-small"](num_classes=len(names))
    categories = Categories(tuple(names), tuple(ids or range(1, len(names) + 1)))
    return system, ModelCard("mask-rcnn-small", {"num_classes": len(names)}, categories, system.input)
