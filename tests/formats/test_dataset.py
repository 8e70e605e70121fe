import numpy as np
import pytest
import torch
from PIL import Image

from maskwright.formats import Box, Categories, DatasetBuilder, ObjectRecord, mask_of_polygons
from maskwright.formats.coco import read_coco
from tests.conftest import make_coco


def test_image_of_another_size_is_refused_with_the_remedy(tmp_path):
    data = make_coco(tmp_path, images=1, size=(96, 128))
    path = tmp_path / "images" / "train_0.png"
    Image.new("RGB", (50, 40)).save(path)
    dataset = read_coco(tmp_path / "annotations" / "train.json", tmp_path / "images")
    with pytest.raises(ValueError, match=r"upright image is 40 x 50 .* says 96 x 128: use the image that was annotated"):
        dataset.read(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (128, 96)).save(path, exif=exif)
    with pytest.raises(ValueError, match=r"remove the EXIF orientation tag"):
        dataset.read(0)
    assert data["images"][0]["height"] == 96


def test_exif_image_matches_annotations_of_the_upright_view(tmp_path):
    make_coco(tmp_path, images=1)
    path = tmp_path / "images" / "train_0.png"
    upright = Image.open(path)
    pixels = np.asarray(upright).copy()
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    sample = read_coco(tmp_path / "annotations" / "train.json", tmp_path / "images").read(0)
    assert (sample.image.numpy() == pixels).all()


def test_dataset_is_held_compactly(tmp_path):
    make_coco(tmp_path, images=6)
    dataset = read_coco(tmp_path / "annotations" / "train.json", tmp_path / "images")
    held = [*vars(dataset).values(), *vars(dataset._columns).values(), *vars(dataset._columns.masks).values()]
    assert not any(isinstance(v, (list, dict)) for v in held)  # forked workers copy what they touch of Python objects


def test_subset_keeps_annotations_with_their_images(tmp_path):
    make_coco(tmp_path, images=5)
    dataset = read_coco(tmp_path / "annotations" / "train.json", tmp_path / "images")
    part = dataset.subset([3, 1])
    assert part.image_ids.tolist() == [400, 200]
    assert torch.equal(part.instances(0).boxes, dataset.instances(3).boxes)
    assert torch.equal(part.instances(1).masks.to_dense(), dataset.instances(1).masks.to_dense())
    assert len(dataset.subset([])) == 0


def test_columns_of_an_image_are_what_was_annotated_to_the_last_bit(tmp_path):
    builder = DatasetBuilder(tmp_path, tmp_path, Categories(("cell",), (3,)))
    odd = Box(0.1, 0.2, 0.7, 1e-9)  # (0.1 + 0.7) - 0.1 is not 0.7
    for image_id, name in ((8, "a.png"), (5, "b.png")):
        builder.add_image(image_id, name, (10, 20))
    for object_id, image_id, box in ((1, 5, Box(-4, 2, 30, 3)), (2, 8, odd), (3, 5, odd)):
        builder.add(builder.admit(object_id, image_id=image_id, category_id=3), ObjectRecord(box=box, is_crowd=object_id == 3))
    dataset = builder.build()
    assert [dataset.columns(i).ids.tolist() for i in range(2)] == [[2], [1, 3]]
    columns = dataset.columns(1)
    assert columns.corners.tolist() == [[-4, 2], [0.1, 0.2]]
    assert columns.extents.tolist() == [[30, 3], [0.7, 1e-9]]
    assert columns.is_crowd.tolist() == [False, True]
    assert columns.areas.tolist() == [90, 0.7 * 1e-9]
    assert dataset.boxes(1)[0].tolist() == [0, 2, 20, 5]
    assert dataset.instances(1, slice(1, 2)).boxes.tolist() == dataset.instances(1).boxes[1:].tolist()
    assert len(columns) == 2


def test_masks_are_those_of_all_objects_or_of_none(tmp_path):
    builder = DatasetBuilder(tmp_path, tmp_path, Categories(("cell",), (3,)))
    builder.add_image(1, "a.png", (10, 20))
    triangle = ObjectRecord(mask=mask_of_polygons([[1, 1, 9, 1, 9, 9]], (10, 20)))
    builder.add(builder.admit(1, image_id=1, category_id=3), triangle)
    assert builder.build().instances(0).masks is not None
    builder.add(builder.admit(2, image_id=1, category_id=3), ObjectRecord(box=Box(1, 1, 5, 5)))
    dataset = builder.build()
    assert not dataset.has_masks
    assert dataset.ids_without_mask() == [2]
    assert dataset.instances(0).masks is None
