#!/usr/bin/env bash
# torchvision 0.29.2: a box that moves by 0.0006 px moves its whole mask by a pixel.
#
# `paste_masks_in_image` enlarges the box by a cell and cuts the result to whole pixels before it draws. Where an enlarged side
# lies at a whole number, the last bits of a convolution decide on which row the mask begins: another instruction set, number of
# threads or batch size is enough. The masks of boxes that begin at 20.4997 and at 20.5003 px share 75 % of their pixels (a
# small object; masks of 14 x 14 px). A test that compares masks across machines or implementations has to leave such boxes out.
# Seen on 2026-11-30, Python 3.11, x86_64, torch 2.15.0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/uv" && "$folder/uv/bin/pip" install -q uv
uv="$folder/uv/bin/uv"
"$uv" venv -q --python 3.11 "$folder/env"
"$uv" pip install -q --python "$folder/env" torch==2.15.0 torchvision==0.29.2
"$folder/env/bin/python" - <<'PYTHON'
import torch
from torchvision.models.detection.roi_heads import paste_masks_in_image

probs = torch.zeros(1, 1, 28, 28)
probs[..., :14, :] = 1  # the upper half of the box


def rows(top: float) -> tuple[torch.Tensor, list[int]]:
    box = torch.tensor([[10.0, top, 24.0, top + 14.0]])
    mask = paste_masks_in_image(probs, box, (64, 64), padding=1)[0, 0] > 0.5
    return mask, mask.any(dim=1).nonzero().flatten()[[0, -1]].tolist()


(before, first), (after, second) = rows(20.4997), rows(20.5003)
iou = float((before & after).sum() / (before | after).sum())
print(f"rows {first} and {second}: IoU {iou:.2f} after a move of 0.0006 px")
assert (first, second, round(iou, 2)) == ([20, 26], [21, 27], 0.75), "torchvision pastes otherwise now"
PYTHON
