"""From batches to weights."""

from maskwright.training.loop import train

__all__ = ["train"]
