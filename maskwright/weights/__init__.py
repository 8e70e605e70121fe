"""Other people's weights, read without running code from them."""

from maskwright.weights.backbone import load_backbone, load_part

__all__ = ["load_backbone", "load_part"]
