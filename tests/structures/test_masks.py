import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torchvision.ops import roi_align

from maskwright.structures import Masks, masks, polygons

stacks = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=14), elements=st.booleans())


def dense(m: Masks) -> np.ndarray:
    return m.to_dense().numpy()


@given(stacks)
def test_dense_and_rle_round_trips_are_exact(stack):
    m = Masks.from_dense(torch.from_numpy(stack))
    assert (dense(m) == stack).all()
    assert (dense(Masks.from_rles(m.to_rles(), m.image_size)) == stack).all()
    assert m.areas().tolist() == stack.sum(axis=(1, 2)).tolist()


@given(stacks, st.data())
def test_rows_past_the_budget_answer_like_bitmaps(stack, data):
    budget = data.draw(st.integers(0, stack.size))
    m = Masks.from_dense(torch.from_numpy(stack))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masks, "BITMAP_BUDGET_BYTES", budget)
        tight = Masks.from_dense(torch.from_numpy(stack))
        assert (dense(tight) == stack).all()
        assert tight.to_rles() == m.to_rles()
        assert tight.areas().tolist() == m.areas().tolist()
        order = data.draw(st.lists(st.integers(0, len(stack) - 1), max_size=5))
        assert (dense(tight[order]) == stack[order]).all()
        assert (dense(Masks.cat([tight, m[order]])) == np.concatenate([stack, stack[order]])).all()
        rows = torch.arange(len(stack))
        boxes = torch.tensor([[0.0, 0.0, stack.shape[2], stack.shape[1]]]).repeat(len(stack), 1)
        assert torch.equal(tight.coverage(boxes, rows, side=4, samples=3), m.coverage(boxes, rows, side=4, samples=3))


def test_budget_turns_large_masks_into_runs(monkeypatch):
    monkeypatch.setattr(masks, "BITMAP_BUDGET_BYTES", 150)
    m = Masks.from_dense(torch.ones(3, 10, 10, dtype=torch.bool))
    assert m.is_runs.tolist() == [False, True, True]
    assert m.nbytes < 300
    small = Masks.from_dense(torch.ones(1, 10, 10, dtype=torch.bool))
    assert Masks.cat([small, small, small]).is_runs.tolist() == [False, True, True]


@given(stacks)
def test_outlines_fill_back_to_the_same_pixels(stack):
    m = Masks.from_dense(torch.from_numpy(stack))
    ys, xs = np.mgrid[: stack.shape[1], : stack.shape[2]] + 0.5
    for bitmap, parts in zip(stack, m.to_polygons(), strict=True):
        filled = np.zeros(bitmap.shape, dtype=int)
        for part in parts:
            assert polygons.signed_area(part[0]) > 0
            assert all(polygons.signed_area(hole) < 0 for hole in part[1:])
            inside = np.zeros(bitmap.shape, dtype=int)
            for ring in part:
                assert len({tuple(corner) for corner in ring.tolist()}) == len(ring)  # no ring touches itself
                (x1, y1), (x2, y2) = ring.T, np.roll(ring, -1, axis=0).T
                for a, b, c, d in zip(x1, y1, x2, y2, strict=True):
                    inside += (a == c) & (a > xs) & (min(b, d) < ys) & (ys < max(b, d))
            filled += inside % 2
        assert (filled == bitmap).all()
        assert sum(polygons.signed_area(ring) for part in parts for ring in part) == bitmap.sum()


def test_holes_and_parts_are_told_apart():
    bitmap = np.zeros((9, 12), dtype=bool)
    bitmap[1:8, 1:8] = True
    bitmap[2:7, 2:7] = False
    bitmap[4, 4] = True  # an island in the hole
    bitmap[3, 10] = True
    (parts,) = Masks.from_dense(torch.from_numpy(bitmap[None])).to_polygons()
    assert sorted(len(part) for part in parts) == [1, 1, 2]
    ringed = next(part for part in parts if len(part) == 2)
    assert sorted(map(tuple, ringed[1].tolist())) == [(2, 2), (2, 7), (7, 2), (7, 7)]


@given(stacks, st.integers(1, 20), st.integers(1, 20))
def test_resize_takes_the_pixel_under_each_new_centre(stack, height, width):
    m = Masks.from_dense(torch.from_numpy(stack)).resize((height, width))
    rows = np.floor((np.arange(height) + 0.5) * (stack.shape[1] / height)).astype(int)
    columns = np.floor((np.arange(width) + 0.5) * (stack.shape[2] / width)).astype(int)
    assert (dense(m) == stack[:, rows][:, :, columns]).all()


@given(stacks, st.data())
def test_resized_masks_answer_in_pixels_of_their_image(stack, data):
    """As masks do that were made of these pixels."""
    original = Masks.from_dense(torch.from_numpy(stack))
    size, other = ((data.draw(st.integers(1, 20)), data.draw(st.integers(1, 20))) for _ in range(2))
    m = original.resize(other).resize(size)
    assert torch.equal(m.buffer, original.buffer)
    made = Masks.from_dense(m.to_dense())
    assert m.image_size == made.image_size == made.bitmap_size == m.resampled().bitmap_size == size
    assert (dense(m) == dense(original.resize(size))).all()  # wherever it has been in between
    assert (dense(m.resampled()) == dense(made)).all()
    for f in (Masks.areas, Masks.boxes, Masks.centroids, Masks.union):
        assert torch.equal(f(m), f(made))
    for f in (Masks.to_rles, lambda m: [[ring.tolist() for part in parts for ring in part] for parts in m.to_polygons()]):
        assert f(m) == f(made)
    window = (0, 0, data.draw(st.integers(1, size[1])), data.draw(st.integers(1, size[0])))
    covered = torch.from_numpy(data.draw(hnp.arrays(np.bool_, size)))
    for f in (lambda m: m.crop(window), lambda m: m.flip(horizontal=True), Masks.transpose, lambda m: m.without(covered)):
        assert (dense(f(m)) == dense(f(made))).all()
    order = data.draw(st.lists(st.integers(0, len(stack) - 1), max_size=4))
    assert (dense(m[order].to("cpu")) == dense(made[order])).all()
    for parts in ([m, m[order]], [m, made]):
        assert (dense(Masks.cat(parts)) == np.concatenate([dense(part) for part in parts])).all()
    step, first = data.draw(st.integers(1, 4)), (data.draw(st.integers(0, 3)), data.draw(st.integers(0, 3)))
    assert torch.equal(m.sample((6, 7), step=step, first=first), made.sample((6, 7), step=step, first=first))
    assert torch.equal(m.paired_iou(made), (made.areas() > 0).to(torch.float32))


def test_resized_masks_are_covered_as_the_originals_are():
    """An object of 200 px that is shown at 20 px: cells of one pixel, the mean of ten times ten."""
    yy, xx = np.mgrid[:240, :260]
    discs = np.stack(
        [(yy - 118) ** 2 + (xx - 131) ** 2 < 100**2, abs(yy - 120) + abs(xx - 100) < 77, (yy // 3 + xx // 7) % 2 == 0]
    )
    m = Masks.from_dense(torch.from_numpy(discs)).resize((24, 26))
    boxes, rows = torch.tensor([[3.0, 2.0, 23.0, 22.0], [-2.0, 4.0, 18.0, 24.0], [5.0, 1.0, 25.0, 21.0]]), torch.arange(3)
    exact = torch.nn.functional.avg_pool2d(torch.from_numpy(discs).to(torch.float32)[:, None], 10)[:, 0]  # (3, 24, 26)
    exact = torch.nn.functional.pad(exact, (4, 4, 4, 4))
    corners = boxes[:, :2].int().tolist()
    wanted = torch.stack([e[y + 4 : y + 24, x + 4 : x + 24] for e, (x, y) in zip(exact, corners, strict=True)])
    found = m.coverage(boxes, rows, side=20, samples=10)
    assert torch.allclose(found, wanted, atol=1e-6)
    assert ((found > 0) & (found < 1)).float().mean() > 0.02
    assert not torch.allclose(m.resampled().coverage(boxes, rows, side=20, samples=10), wanted, atol=0.1)
    points = torch.tensor([[13.14, 1.92], [13.14, 1.85], [12.95, 11.95]])
    assert m.at(points, torch.zeros(3, dtype=torch.int64)).tolist() == [True, False, True]


def test_large_masks_of_a_smaller_image_are_made_of_its_pixels(monkeypatch):
    m = Masks.from_dense(torch.ones(3, 20, 30, dtype=torch.bool))
    monkeypatch.setattr(masks, "FINE_BYTES", 1799)
    assert m.resize((10, 15)).bitmap_size == (10, 15)
    assert m.resize((40, 60)).bitmap_size == (20, 30)  # which is the smaller of both
    monkeypatch.setattr(masks, "FINE_BYTES", 1800)
    assert m.resize((10, 15)).bitmap_size == (20, 30)
    assert len(m.resize((10, 15))) == 3


@pytest.mark.parametrize("budget", [10, 10**9])
def test_resized_masks_that_are_kept_as_runs_answer_alike(budget, monkeypatch):
    stack = torch.rand(3, 30, 40, generator=torch.Generator().manual_seed(0)) < 0.5
    plain = Masks.from_dense(stack).resize((13, 17))
    monkeypatch.setattr(masks, "BITMAP_BUDGET_BYTES", budget)
    m = Masks.from_dense(stack).resize((13, 17))
    assert m.is_runs.any() == (budget == 10)
    boxes, rows = torch.tensor([[2.0, 3.0, 11.0, 12.0]]).repeat(3, 1), torch.arange(3)
    assert torch.equal(m.coverage(boxes, rows, side=7, samples=4), plain.coverage(boxes, rows, side=7, samples=4))
    assert torch.equal(m.to_dense(), plain.to_dense())
    assert torch.equal(Masks.cat([m, m]).to_dense(), torch.cat([plain.to_dense()] * 2))
    assert torch.equal(m.areas(), plain.areas())
    assert m.to_rles() == plain.to_rles()
    assert torch.equal(m.sample((4, 5), step=3, first=(1, 1)), plain.sample((4, 5), step=3, first=(1, 1)))


@given(stacks, st.data())
def test_crop_flip_and_transpose_equal_slicing(stack, data):
    m = Masks.from_dense(torch.from_numpy(stack))
    x0 = data.draw(st.integers(0, stack.shape[2] - 1))
    y0 = data.draw(st.integers(0, stack.shape[1] - 1))
    x1 = data.draw(st.integers(x0 + 1, stack.shape[2]))
    y1 = data.draw(st.integers(y0 + 1, stack.shape[1]))
    assert (dense(m.crop((x0, y0, x1, y1))) == stack[:, y0:y1, x0:x1]).all()
    assert (dense(m.flip(horizontal=True)) == stack[:, :, ::-1]).all()
    assert (dense(m.flip(horizontal=False)) == stack[:, ::-1]).all()
    assert (dense(m.transpose()) == stack.transpose(0, 2, 1)).all()


@given(stacks, st.data())
def test_what_covers_masks_is_taken_from_them(stack, data):
    m = Masks.from_dense(torch.from_numpy(stack))
    assert (m.union().numpy() == stack.any(axis=0)).all()
    covered = data.draw(hnp.arrays(np.bool_, stack.shape[1:]))
    assert (dense(m.without(torch.from_numpy(covered))) == stack & ~covered).all()


def test_no_masks_is_an_ordinary_case():
    m = Masks.empty((5, 6))
    assert len(m) == 0
    assert m.to_dense().shape == (0, 5, 6)
    assert m.to_rles() == m.to_polygons() == []
    assert m.boxes().shape == (0, 4)
    assert len(m[torch.zeros(0, dtype=torch.int64)].resize((2, 2))) == 0
    assert m.coverage(torch.zeros((0, 4)), torch.zeros(0, dtype=torch.int64), side=7, samples=2).shape == (0, 7, 7)
    assert len(Masks.cat([m, m])) == len(m.without(torch.ones(5, 6, dtype=torch.bool))) == 0
    assert not m.union().any()


def test_coverage_on_the_example_of_the_spec():
    bitmap = torch.zeros(1, 20, 20, dtype=torch.bool)
    bitmap[0, 5:15, 4:14] = True
    cells = Masks.from_dense(bitmap).coverage(torch.tensor([[0.0, 0, 20, 20]]), torch.tensor([0]), side=4, samples=5)
    on = [0.2, 1.0, 0.8, 0.0]  # Mask R-CNN spec, detectron2's bitmap path before its threshold
    assert torch.allclose(cells[0], torch.tensor([[0.0] * 4, on, on, [0.0] * 4]))


def test_coverage_moves_with_the_mask():
    rng = np.random.default_rng(0)
    bitmap = np.zeros((60, 60), dtype=bool)
    bitmap[10:30, 5:35] = rng.random((20, 30)) < 0.6
    moved = np.roll(bitmap, (13, 17), axis=(0, 1))
    box = torch.tensor([[6.3, 8.1, 31.7, 29.9]])
    row = torch.tensor([0])
    one = Masks.from_dense(torch.from_numpy(bitmap[None])).coverage(box, row, side=14, samples=4)
    two = Masks.from_dense(torch.from_numpy(moved[None])).coverage(
        box + torch.tensor([17.0, 13, 17, 13]), row, side=14, samples=4
    )
    assert one.max() > 0.5
    assert torch.equal(one, two)


def test_coverage_agrees_with_roi_align_of_the_bitmap():
    yy, xx = torch.meshgrid(torch.arange(200), torch.arange(200), indexing="ij")
    disc = (((yy - 90) / 60.0) ** 2 + ((xx - 105) / 80.0) ** 2 <= 1)[None]
    boxes = torch.tensor([[20.2, 25.7, 190.1, 160.3], [60.0, 60, 100, 90], [10, 80, 60, 199]])
    ours = Masks.from_dense(disc).coverage(boxes, torch.zeros(3, dtype=torch.int64), side=28, samples=4) >= 0.5
    rois = torch.cat([torch.zeros(3, 1), boxes], dim=1)
    theirs = roi_align(disc[None].float(), rois, 28, sampling_ratio=0, aligned=True)[:, 0] >= 0.5
    assert (ours == theirs).float().mean() > 0.99


def test_wrong_shapes_and_mixed_sizes_are_refused():
    with pytest.raises(ValueError, match=r"expected \(N, H, W\)"):
        Masks.from_dense(torch.zeros(3, 3))
    with pytest.raises(ValueError, match="only masks of one image join"):
        Masks.cat([Masks.empty((2, 3)), Masks.empty((3, 2))])


def test_masks_at_points_and_at_regular_pixels():
    g = torch.Generator().manual_seed(0)
    dense = torch.rand(4, 37, 53, generator=g) < 0.3
    dense[2] = False
    dense[3, :30] = False
    masks = Masks.from_dense(dense)
    y, x = torch.randint(0, 37, (200,), generator=g), torch.randint(0, 53, (200,), generator=g)
    rows = torch.randint(0, 4, (200,), generator=g)
    points = torch.stack([x, y], dim=1) + torch.rand(200, 2, generator=g) * 0.99
    assert torch.equal(masks.at(points, rows), dense[rows, y, x])
    outside = torch.tensor([[-0.5, 3.0], [53.0, 3.0], [3.0, 37.0], [3.0, -1.0]])
    assert not masks.at(outside, torch.tensor([0, 0, 0, 0])).any()
    for step, first, size in ((4, (1, 2), (9, 13)), (8, (4, 4), (6, 8)), (1, (0, 0), (37, 53)), (5, (7, 0), (2, 20))):
        padded = torch.zeros(4, first[0] + step * size[0] + 40, first[1] + step * size[1] + 60, dtype=torch.bool)
        padded[:, :37, :53] = dense
        expected = padded[:, first[0] :: step, first[1] :: step][:, : size[0], : size[1]]
        assert torch.equal(masks.sample(size, step=step, first=first), expected)
    assert Masks.empty((9, 9)).sample((2, 2), step=4, first=(1, 1)).shape == (0, 2, 2)


def test_masks_kept_as_runs_answer_alike(monkeypatch):
    dense = torch.zeros(2, 40, 40, dtype=torch.bool)
    dense[0, 4:30, 6:33], dense[1, 20:, 1:7] = True, True
    plain = Masks.from_dense(dense)
    monkeypatch.setattr("maskwright.structures.masks.BITMAP_BUDGET_BYTES", 10)
    runs = Masks.from_dense(dense)
    assert runs.is_runs.any()
    assert torch.equal(plain.sample((10, 10), step=4, first=(2, 2)), runs.sample((10, 10), step=4, first=(2, 2)))
    points, rows = torch.tensor([[10.0, 10.0], [3.0, 30.0], [39.0, 1.0]]), torch.tensor([0, 1, 0])
    assert plain.at(points, rows).tolist() == runs.at(points, rows).tolist() == [True, True, False]
    assert torch.equal(plain.centroids(), runs.centroids())


def test_centroids_by_hand():
    dense = torch.zeros(3, 10, 20, dtype=torch.bool)
    dense[0, 2:4, 5:9] = True
    dense[1, 9, 19] = True
    centroids = Masks.from_dense(dense).centroids()
    assert centroids.tolist() == [[7.0, 3.0], [19.5, 9.5], [10.0, 5.0]]
    assert Masks.empty((4, 4)).centroids().shape == (0, 2)
