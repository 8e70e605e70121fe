"""Masks of whatever there is, without classes, and detectors on them: DeepMask, SharpMask, Fast R-CNN, MultiPathNet."""
