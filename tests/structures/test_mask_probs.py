import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from maskwright.structures import MaskProbs, Masks, MaskTiles, masks
from maskwright.structures.mask_probs import certainty
from maskwright.systems.rcnn.mask_rcnn import mask_targets


def paste_by_grid_sample(probs: torch.Tensor, box: list[float], size: tuple[int, int]) -> torch.Tensor:
    """The formula of the spec, § 11.1: pixel centres, zero outside the grid, dense."""
    x0, y0, x1, y1 = box
    x = (torch.arange(size[1]) + 0.5 - x0) / (x1 - x0) * 2 - 1
    y = (torch.arange(size[0]) + 0.5 - y0) / (y1 - y0) * 2 - 1
    grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1)[None]
    return F.grid_sample(probs[None, None], grid.to(probs), align_corners=False)[0, 0]


def test_constant_grid_fills_the_pixels_whose_centres_it_covers():
    boxes = torch.tensor([[2.0, 3.0, 12.0, 13.0], [2.6, 3.6, 12.6, 13.6]])
    pasted = MaskProbs(torch.full((2, 28, 28), 0.9), boxes).paste((20, 20))
    assert pasted.areas().tolist() == [100, 100]  # spec § 11.1
    assert pasted.boxes().tolist() == [[2, 3, 12, 13], [3, 4, 13, 14]]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.2, 0.9))
def test_paste_equals_grid_sample(seed, threshold):
    g = torch.Generator().manual_seed(seed)
    size = (37, 53)
    probs = torch.rand(3, 14, 14, generator=g, dtype=torch.float64)
    corner = torch.rand(3, 2, generator=g, dtype=torch.float64) * 50 - 8
    boxes = torch.cat([corner, corner + 1 + torch.rand(3, 2, generator=g, dtype=torch.float64) * 60], dim=1)
    pasted = MaskProbs(probs, boxes).paste(size, threshold).to_dense()
    for grid, box, ours in zip(probs, boxes.tolist(), pasted, strict=True):
        theirs = paste_by_grid_sample(grid, box, size)
        sure = (theirs - threshold).abs() > 1e-5
        y, x = torch.meshgrid(torch.arange(size[0]) + 0.5, torch.arange(size[1]) + 0.5, indexing="ij")
        inside = (x >= box[0]) & (x <= box[2]) & (y >= box[1]) & (y <= box[3])
        assert torch.equal(ours[sure & inside], (theirs >= threshold)[sure & inside])
        assert not ours[~inside].any()


def test_object_outside_the_image_keeps_its_row():
    pasted = MaskProbs(torch.ones(2, 4, 4), torch.tensor([[50.0, 50, 60, 60], [0.0, 0, 4, 4]])).paste((10, 10))
    assert pasted.areas().tolist() == [0, 16]


def test_degenerate_box_and_no_boxes_paste_to_nothing():
    assert MaskProbs(torch.ones(1, 4, 4), torch.tensor([[3.2, 3.2, 3.2, 9.0]])).paste((10, 10)).areas().tolist() == [0]
    assert len(MaskProbs(torch.zeros(0, 28, 28), torch.zeros(0, 4)).paste((10, 10))) == 0


def test_many_full_frame_masks_stay_within_the_budget(monkeypatch):
    monkeypatch.setattr(masks, "BITMAP_BUDGET_BYTES", 100_000)
    pasted = MaskProbs(torch.ones(20, 4, 4), torch.tensor([[0.0, 0, 200, 200]]).repeat(20, 1)).paste((200, 200), 0.1)
    assert pasted.areas().tolist() == [40_000] * 20
    assert pasted.nbytes < 200_000


def round_trip(bitmap: torch.Tensor, side: int) -> float:
    m = Masks.from_dense(bitmap[None])
    boxes = m.boxes()
    targets = mask_targets(m, boxes, torch.tensor([0]), side=side)
    back = MaskProbs(targets, boxes).paste(m.image_size).to_dense()[0]
    return float((back & bitmap).sum() / (back | bitmap).sum())


def test_targets_pasted_back_give_the_mask():
    rectangle = torch.zeros(100, 120, dtype=torch.bool)
    rectangle[20:60, 30:90] = True
    assert round_trip(rectangle, 28) == 1.0  # spec § 21, 18
    y, x = torch.meshgrid(torch.arange(120), torch.arange(140), indexing="ij")
    ellipse = ((x - 70) / 50.5) ** 2 + ((y - 60) / 35.5) ** 2 <= 1
    assert round_trip(ellipse, 28) >= 0.96


def test_vote_averages_within_groups():
    probs = torch.stack([torch.full((4, 4), 0.9), torch.full((4, 4), 0.5), torch.ones(4, 4)])
    boxes = torch.tensor([[0.0, 0, 8, 8], [0.0, 0, 8, 8], [10.0, 10, 14, 14]])
    weights = torch.tensor([[3.0, 1.0, 2.0], [0.0, 0.0, 5.0]])
    tiles, groups = MaskTiles(probs, boxes), [torch.tensor([0, 1]), torch.tensor([2])]
    assert tiles.vote(groups, weights, (20, 20), 0.79).boxes().tolist() == [[0, 0, 8, 8], [10, 10, 14, 14]]  # the mean is 0.8
    assert tiles.vote(groups, weights, (20, 20), 0.81).areas().tolist() == [0, 16]


def test_vote_counts_a_row_as_zero_outside_its_window():
    tiles = MaskTiles(torch.ones(2, 4, 4), torch.tensor([[0.0, 0, 10, 10], [10.0, 0, 20, 10]]))
    groups, weights = [torch.tensor([0, 1]), torch.tensor([0])], torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    assert tiles.vote(groups, weights, (10, 18), 0.5).boxes().tolist() == [[0, 0, 18, 10], [0, 0, 10, 10]]  # cut at the image
    assert tiles.vote(groups, weights, (10, 18), 0.51).areas().tolist() == [0, 100]
    assert len(tiles.vote([], torch.ones(0, 2), (10, 18), 0.5)) == 0
    with pytest.raises(ValueError, match="add up to nothing"):
        tiles.vote([torch.tensor([0])], torch.zeros(1, 2), (10, 18), 0.5)


def test_certainty_is_the_mean_inside():
    probs = torch.tensor([[[0.9, 0.7], [0.1, 0.5]], [[0.4, 0.3], [0.2, 0.1]]])
    assert certainty(probs, probs >= 0.5).tolist() == pytest.approx([0.7, 0.0])
    assert certainty(torch.zeros(0, 2, 2), torch.zeros(0, 2, 2, dtype=torch.bool)).shape == (0,)


def test_grids_need_a_box_each():
    with pytest.raises(ValueError, match="one box"):
        MaskProbs(torch.ones(2, 4, 4), torch.ones(1, 4))
