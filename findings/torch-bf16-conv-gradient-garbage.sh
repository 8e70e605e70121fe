#!/usr/bin/env bash
# torch 2.15.0: on CPUs with AVX-512 bf16 the weight gradient of a bf16 convolution with stride 2 holds uninitialized memory
# where its input is one cell wide.
#
# A 3x3 convolution, stride 2, padding 1, on a map of (H, 1), under bfloat16 autocast: the taps that see nothing but padding get
# no gradient written, neither zero nor anything else. What lay in memory stays: usually harmless numbers, sometimes NaN. The
# coarsest levels of a feature pyramid (FCOS, RetinaNet: P6, P7) are such maps on small images; a training stops with a loss that
# is not finite, now and then. float32, stride 1, wider maps, and processors limited to AVX2 are right. A column of zeros beside
# the map changes no answer and avoids it. Seen on 2026-12-01, Python 3.11, x86_64: 10 to 35 of 40 gradients once freed memory
# holds NaN.
set -euo pipefail
if ! grep -q avx512_bf16 /proc/cpuinfo; then
    echo "this processor has no AVX-512 bf16: nothing to see here"
    exit 0
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/uv" && "$folder/uv/bin/pip" install -q uv
uv="$folder/uv/bin/uv"
"$uv" venv -q --python 3.11 "$folder/env"
"$uv" pip install -q --python "$folder/env" torch==2.15.0 numpy
"$folder/env/bin/python" - <<'PYTHON'
import math

import torch
from torch import nn


def wrong(height: int, width: int, *, stride: int, dtype: torch.dtype, trials: int = 40) -> int:
    """Gradients that are not finite, of zero everywhere."""
    found = 0
    for _ in range(trials):
        rubbish = [torch.full((128 * 128 * 9,), math.nan, dtype=kind) for kind in (torch.float32, torch.bfloat16)]
        del rubbish
        conv = nn.Conv2d(128, 128, 3, stride=stride, padding=1)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            answer = conv(torch.randn(2, 128, height, width))
        (answer.float() * 0).sum().backward()
        found += not bool(torch.isfinite(conv.weight.grad).all())
    return found


narrow = [wrong(height, 1, stride=2, dtype=torch.bfloat16) for height in (1, 2)]
others = [
    wrong(1, 1, stride=1, dtype=torch.bfloat16),
    wrong(1, 2, stride=2, dtype=torch.bfloat16),
    wrong(1, 1, stride=2, dtype=torch.float32),
]
print(f"not finite, of 40: one cell wide, stride 2, bfloat16 {narrow}; stride 1, two cells wide, float32 {others}")
assert min(narrow) > 0, "the gradient is written now"
assert others == [0, 0, 0], others
PYTHON
