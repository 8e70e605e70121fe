"""Masks are small, also while they are handled."""

import re
from pathlib import Path

import pytest
import torch

from maskwright.structures import MaskProbs, Masks

STATUS = Path("/proc/self/status")


def peak_rise(work):
    """Bytes by which resident memory rises at its highest."""

    def read(field):
        return 1024 * int(re.search(rf"{field}:\s+(\d+)", STATUS.read_text())[1])

    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("the kernel does not let peaks be reset")
    before = read("VmRSS")
    held = work()
    rise = read("VmHWM") - before
    return rise, held


@pytest.mark.skipif(not STATUS.exists(), reason="reads /proc")
def test_many_objects_on_a_large_image_are_pasted_and_selected_within_their_own_size():
    size = (3000, 4000)
    g = torch.Generator().manual_seed(0)
    corners = torch.rand(300, 2, generator=g) * 0.8
    boxes = torch.cat([corners, corners + 0.18], dim=1) * torch.tensor([4000.0, 3000, 4000, 3000])  # 10 image areas in all
    probs = torch.rand(300, 28, 28, generator=g)
    rise, masks = peak_rise(lambda: MaskProbs(probs, boxes).paste(size))
    assert masks.nbytes < 120e6
    assert rise < 3 * masks.nbytes
    rise, some = peak_rise(lambda: masks[torch.arange(300).flip(0)])
    assert len(some) == 300
    assert rise < 2 * masks.nbytes
    rise, _ = peak_rise(masks.to_rles)
    assert rise < masks.nbytes


def test_rows_in_any_order_and_number():
    dense = torch.rand(5, 9, 8, generator=torch.Generator().manual_seed(0)) > 0.5
    masks = Masks.from_dense(dense)
    for rows in ([4, 0, 0], [], [2]):
        assert torch.equal(masks[torch.tensor(rows, dtype=torch.int64)].to_dense(), dense[rows])
    assert torch.equal(masks[1:4].to_dense(), dense[1:4])
    assert torch.equal(masks[dense[:, 0, 0]].to_dense(), dense[dense[:, 0, 0]])
