import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as oracle

from maskwright.structures import rle

bitmaps = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=30), elements=st.booleans())
coordinates = st.floats(-60, 120, allow_nan=False, width=32)
polygons = st.lists(coordinates, min_size=6, max_size=24).map(lambda flat: flat[: len(flat) // 2 * 2])


def encode(bitmap):
    return oracle.encode(np.asfortranarray(bitmap.astype(np.uint8)))


@given(bitmaps)
def test_counts_and_strings_equal_pycocotools(bitmap):
    size = bitmap.shape
    runs = rle.crop_to_runs(bitmap, (0, 0, size[1], size[0]), size)
    text = rle.counts_to_string(rle.runs_to_counts(runs, size))
    assert text == encode(bitmap)["counts"].decode()
    crop, (x0, y0, x1, y1) = rle.runs_to_crop(rle.runs_from_coco({"size": list(size), "counts": text}, size), size)
    back = np.zeros(size, dtype=bool)
    back[y0:y1, x0:x1] = crop
    assert (back == bitmap).all()


@given(bitmaps)
def test_window_and_area_equal_pycocotools(bitmap):
    size = bitmap.shape
    expected = encode(bitmap)
    runs = rle.runs_from_coco({"size": list(size), "counts": expected["counts"]}, size)
    x0, y0, x1, y1 = rle.window_of_runs(runs, size)
    assert int((runs[1] - runs[0]).sum()) == oracle.area(expected)
    crop, window = rle.runs_to_crop(runs, size)
    tight, tight_window = rle.tighten(crop, window)
    if bitmap.any():
        box = oracle.toBbox(expected)
        assert [x0, y0, x1 - x0, y1 - y0] == box.tolist()  # both take the whole height when a run turns a column's corner
        assert all(edge.any() for edge in (tight[0], tight[-1], tight[:, 0], tight[:, -1]))
        rows, columns = np.nonzero(bitmap)
        assert tight_window == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    else:
        assert (x0, y0, x1, y1) == (0, 0, 0, 0)


@settings(max_examples=300)
@given(st.lists(polygons, min_size=1, max_size=3), st.integers(1, 50), st.integers(1, 50))
def test_polygons_fill_the_pixels_pycocotools_fills(parts, height, width):
    runs = rle.runs_from_polygons(parts, (height, width))
    counts = rle.counts_to_string(rle.runs_to_counts(runs, (height, width)))
    assert counts == oracle.merge(oracle.frPyObjects(parts, height, width))["counts"].decode()


def test_uncompressed_counts_with_empty_stretches_are_read():
    runs = rle.runs_from_coco({"size": [2, 3], "counts": [0, 1, 0, 2, 3]}, (2, 3))
    assert [r.tolist() for r in runs] == [[0], [3]]


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"size": [2, 3], "counts": [1, 2]}, "add up to 3, expected 2 x 3 = 6"),
        ({"size": [2, 3], "counts": [-1, 7]}, "range from -1"),
        ({"size": [2, 3], "counts": [float("nan"), 6]}, "flat list of integers"),
        ({"size": [2, 3], "counts": [1.5, 4.5]}, "flat list of integers"),
        ({"size": [2, 3], "counts": [10**30]}, "flat list of integers"),
        ({"size": [2, 3], "counts": [2**40, 2**40]}, "range from"),
        ({"size": [2, 3], "counts": [[1, 2], [3]]}, "flat list"),
        ({"size": [2, 3], "counts": ["a"]}, "flat list"),
        ({"size": [2, 3], "counts": "é"}, "outside '0' to 'o'|COCO's encoding"),
        ({"size": [2, 3], "counts": "P"}, "middle of a number"),
        ({"size": [2, 3], "counts": "oooooooooooo0"}, "damaged"),
        ({"size": [2, 3], "counts": "9"}, "add up to 9"),
        ({"size": [3, 2], "counts": [6]}, "RLE is 3 x 2 but the image is 2 x 3"),
        ({"size": [2**40, 2**40], "counts": [1]}, "at most"),
        ({"size": [0, 3], "counts": []}, "positive sides"),
        ({"size": ["2", 3], "counts": [6]}, "two integers"),
        ({"size": [2], "counts": [6]}, "two integers"),
        ({"counts": [6]}, "needs the keys"),
    ],
)
def test_damaged_encodings_are_refused(segmentation, message):
    with pytest.raises(ValueError, match=message):
        rle.runs_from_coco(segmentation, (2, 3))


@given(st.one_of(st.text(max_size=40), st.binary(max_size=40), st.lists(st.one_of(st.integers(), st.floats()), max_size=12)))
def test_hostile_counts_never_crash(counts):
    try:
        starts, ends = rle.runs_from_coco({"size": [7, 5], "counts": counts}, (7, 5))
    except ValueError:
        return
    assert (starts >= 0).all()
    assert (ends <= 35).all()
    assert (ends > starts).all()


@given(st.lists(st.one_of(st.floats(), st.integers(-(10**40), 10**40), st.none(), st.text(max_size=2)), max_size=12))
def test_hostile_polygons_never_crash(flat):
    try:
        starts, ends = rle.runs_from_polygons([flat], (9, 11))
    except ValueError:
        return
    assert (starts >= 0).all()
    assert (ends <= 99).all()


def test_polygon_far_outside_is_refused_before_it_costs_memory():
    with pytest.raises(ValueError, match="far outside the image"):
        rle.runs_from_polygons([[0, 0, 1e12, 5, 5, 5]], (10, 10))
    with pytest.raises(ValueError, match="px long"):
        rle.runs_from_polygons([[0, 0, 1e9, 5, 5, 5]], (10, 10))
