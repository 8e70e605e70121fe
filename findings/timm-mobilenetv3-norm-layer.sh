#!/usr/bin/env bash
# timm 1.0.31: the networks of its MobileNetV3 file (v3, v4, LCNet, FBNetV3, HardCoRe-NAS) cannot be given a norm.
#
# `norm_layer` is an argument of most of timm's networks, and documented for this class too; EfficientNet, which is built of the
# same blocks, takes it. Here create_model("mobilenetv3_large_100", norm_layer=...) raises "TypeError: dict() got multiple values
# for keyword argument 'norm_layer'": the functions behind the names fill in batch norm themselves. Whoever trains at small batch
# with group norm has to replace the layers afterwards. Seen on 2026-11-30, Python 3.11, x86_64, torch 2.15.0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/uv" && "$folder/uv/bin/pip" install -q uv
uv="$folder/uv/bin/uv"
"$uv" venv -q --python 3.11 "$folder/env"
"$uv" pip install -q --python "$folder/env" timm==1.0.31 torch==2.15.0 torchvision==0.29.2
"$folder/env/bin/python" - <<'PYTHON'
import timm
import torch
from torch import nn

with torch.device("meta"):
    timm.create_model("efficientnet_b0", norm_layer=nn.BatchNorm2d)
    for name in ("mobilenetv3_large_100", "mobilenetv4_conv_small", "lcnet_100", "fbnetv3_b", "hardcorenas_a"):
        try:
            timm.create_model(name, norm_layer=nn.BatchNorm2d)
        except TypeError as error:
            assert "multiple values for keyword argument 'norm_layer'" in str(error), error
            print(f"{name}: {error}")
        else:
            raise SystemExit(f"{name} takes norm_layer now")
PYTHON
