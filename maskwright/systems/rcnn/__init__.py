"""Proposals from anchors, then a box, a mask, keypoints for each: Faster, Mask and Keypoint R-CNN, and their rivals."""
