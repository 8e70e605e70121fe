import json

import numpy as np
import pytest

from maskwright.formats.packing import Form, PackedMask, PackedMasks
from maskwright.structures import rle

SIZE = (300, 400)


def ring(*corners):
    return np.array(corners, dtype=np.float64)


@pytest.mark.parametrize(
    ("rings", "form"),
    [
        ([ring((1, 2), (90, 2), (90, 40))], Form.WHOLE),
        ([ring((-1, 2), (32767, 2), (5, 5), (4, 4))], Form.WHOLE),
        ([ring((0, 0), (32768, 2), (5, 5))], Form.HUNDREDTHS),
        ([ring((0.07, 0.29), (101.1, 8.2), (7.35, 255.99)), ring((10, 11), (12.5, 13), (14, 15), (1, 1))], Form.HUNDREDTHS),
        ([ring((1 / 3, 2), (90, 2), (90, 40))], Form.FLOATS),
        ([ring((1.005, 2), (90, 2), (90, 40)), ring((0, 0), (9, 9), (3, 1))], Form.FLOATS),
        ([ring((1e9, 2), (90, 2), (90, 40))], Form.FLOATS),
    ],
)
def test_polygons_come_back_to_the_last_bit(rings, form):
    packed = PackedMask.of_rings(rings)
    assert packed.form == form
    assert [back.tobytes() for back in packed.rings] == [given.tobytes() for given in rings]
    assert packed.counts is None


def test_every_number_of_two_decimals_is_exact_in_hundredths():
    corners = np.array([float(f"{k / 100:.2f}") for k in range(-20_000, 200_000)]).reshape(-1, 2)
    packed = PackedMask.of_rings([corners])
    assert packed.form == Form.HUNDREDTHS
    assert packed.rings[0].tobytes() == corners.tobytes()


def test_polygons_take_no_more_than_their_text(tmp_path):
    generator = np.random.default_rng(0)
    for decimals in (0, 2, 17):
        corners = generator.uniform(10, 640, (40, 2)).round(decimals)
        whole = corners.astype(int).tolist() if decimals == 0 else corners.tolist()
        text = json.dumps([[value for corner in whole for value in corner]], separators=(",", ":"))
        assert len(PackedMask.of_rings([corners]).data) <= len(text)


def test_run_lengths_come_back_as_they_were_given():
    counts = np.array([7, 5, 0, 20, 300 * 400 - 32])
    text = rle.counts_to_string(counts)
    listed, compressed = PackedMask.of_counts(counts), PackedMask.of_text(text)
    assert listed.counts == counts.tolist()
    assert compressed.counts == PackedMask.of_text(text.encode()).counts == text
    assert listed.rings is compressed.rings is None
    for packed in (listed, compressed):
        starts, ends = packed.runs(SIZE)
        assert (starts.tolist(), ends.tolist()) == ([7], [32])  # the empty stretch between two runs is none
        assert packed.to_rle(SIZE) == {"size": [300, 400], "counts": packed.counts}
    assert PackedMask.of_runs(compressed.runs(SIZE), SIZE).runs(SIZE)[0].tolist() == [7]


def test_polygons_become_the_pixels_they_cover():
    packed = PackedMask.of_rings([ring((10, 20), (14, 20), (14, 30), (10, 30))])
    starts, ends = packed.runs(SIZE)
    assert (ends - starts).tolist() == [10] * 4
    encoded = packed.to_rle(SIZE)
    assert encoded["size"] == [300, 400]
    assert rle.runs_from_coco(encoded, SIZE)[0].tolist() == starts.tolist()


def test_rows_are_kept_one_after_the_other():
    rows = [PackedMask.of_text("ab"), PackedMask(Form.NOTHING, b""), PackedMask.of_counts(np.array([1, 2, 3]))]
    masks = PackedMasks(
        forms=np.array([row.form for row in rows], dtype=np.uint8),
        starts=np.cumsum([0] + [len(row.data) for row in rows]),
        data=np.frombuffer(b"".join(row.data for row in rows), dtype=np.uint8),
    )
    assert [masks[i] for i in range(len(masks))] == rows
    assert masks.exists.tolist() == [True, False, True]
    turned = masks.take(np.array([2, 1, 0, 2]))
    assert [turned[i] for i in range(4)] == [rows[2], rows[1], rows[0], rows[2]]
    assert len(masks.take(np.array([], dtype=np.int64))) == 0
