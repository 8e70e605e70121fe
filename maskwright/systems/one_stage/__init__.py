"""Boxes and masks at once, without pooling RoIs: FCOS, EmbedMask."""
