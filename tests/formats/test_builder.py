import numpy as np
import pytest

from maskwright.formats import Box, Categories, DatasetBuilder, ObjectRecord, mask_of_polygons, mask_of_rle, mask_of_runs
from maskwright.structures import KeypointSchema

SIZE = (20, 30)
CATEGORIES = Categories(("cat", "dog"), (90, 2), KeypointSchema(("nose", "tail")))


def builder(tmp_path, **options):
    made = DatasetBuilder(tmp_path / "x", tmp_path, CATEGORIES, **options)
    made.add_image(4, "a\\b.png", SIZE)
    return made


def test_what_is_left_out_comes_from_the_mask(tmp_path):
    made = builder(tmp_path)
    polygon = mask_of_polygons([[2.5, 3, 12.5, 3, 12.5, 9, 2.5, 9]], SIZE)
    runs = mask_of_runs((np.array([22, 42]), np.array([25, 44])), SIZE)
    listed = mask_of_rle({"size": list(SIZE), "counts": [22, 3, 17, 2, 556]}, SIZE)
    for number, mask in enumerate((polygon, runs, listed)):
        made.add(made.admit(number, image_id=4, category_id=2), ObjectRecord(mask=mask))
    stated = ObjectRecord(mask=polygon, box=Box(1, 1, 2, 2), area=7.5, keypoints=np.ones((2, 3), dtype=np.float32))
    made.add(made.admit(3, image_id=4, category_id=90), stated)
    dataset = made.build()
    columns = dataset.columns(0)
    assert dataset.file_name(0) == "a/b.png"
    assert np.concatenate([columns.corners, columns.extents], axis=1).tolist() == [
        [2.5, 3, 10, 6], [1, 2, 2, 3], [1, 2, 2, 3], [1, 1, 2, 2],
    ]  # fmt: skip
    assert columns.areas.tolist() == [60, 5, 5, 7.5]
    assert columns.labels.tolist() == [1, 1, 1, 0]
    assert columns.keypoints[:, 0, 0].tolist() == [0, 0, 0, 1]
    assert dataset.instances(0).masks.areas().tolist() == [60, 5, 5, 60]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (ObjectRecord, "has neither a box nor a mask"),
        (lambda: ObjectRecord(box=Box(30, 0, 5, 5)), r"the box at \(30, 0\) of 5 x 5 px is empty or outside"),
        (lambda: ObjectRecord(box=Box(3, 3, 0, 5)), ".* is empty or outside the image of 20 x 30 px: remove it"),
        (lambda: ObjectRecord(box=Box(3, 3, 5, -1)), r"the box at \(3, 3\) of 5 x -1 px is empty"),
        (lambda: ObjectRecord(box=Box(0, 0, 5, 5), area=float("nan")), "area is nan, expected a number of px²"),
        (lambda: ObjectRecord(mask=mask_of_polygons([[40, 1, 50, 1, 50, 9]], SIZE)), "the polygon lies outside the image"),
        (lambda: ObjectRecord(mask=mask_of_runs((np.array([], int), np.array([], int)), SIZE)), "the mask is empty"),
        (lambda: ObjectRecord(mask=mask_of_rle({"size": [30, 20], "counts": [600]}, SIZE)), "RLE is 30 x 20"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_noted_and_stops_or_is_left_out(tmp_path, record, message):
    for invalid in ("stop", "skip"):
        made = builder(tmp_path, invalid=invalid)
        with made.noting("shape 9"):
            made.add(made.admit(9, image_id=4, category_id=2), record())
        if invalid == "stop":
            with pytest.raises(ValueError, match=rf"x: 1 bad entries; correct them, or leave .*\n  shape 9: {message}"):
                made.build()
        else:
            dataset = made.build()
            assert (dataset.num_instances, len(dataset), len(dataset.problems)) == (0, 1, 1)


def test_missing_keys_are_named_and_other_errors_are_not_hidden(tmp_path):
    made = builder(tmp_path, invalid="skip")
    with made.noting("shape 9"):
        {}["points"]
    assert made.problems == ["shape 9: the key 'points' is missing"]
    with pytest.raises(AttributeError), made.noting("shape 9"):
        _ = made.nothing


def test_ids_are_checked_before_classes_are_chosen(tmp_path):
    made = builder(tmp_path, classes=["dog"])
    assert made.admit(1, image_id=4, category_id=90) is None
    place = made.admit(2, image_id=4, category_id=2)
    assert (place.label, place.size, place.image) == (0, SIZE, 0)
    for wrong, message in (
        ({"object_id": 1, "image_id": 4, "category_id": 2}, "the id stands twice"),
        ({"object_id": 5, "image_id": 1, "category_id": 2}, "image_id 1 is not among"),
        ({"object_id": 6, "image_id": 4, "category_id": 1}, "category_id 1 is not among"),
    ):
        with pytest.raises(ValueError, match=message):
            made.admit(wrong.pop("object_id"), **wrong)
    with pytest.raises(ValueError, match="no class is named bird; there are cat, dog"):
        builder(tmp_path, classes=["bird"])
    with pytest.raises(ValueError, match="category id 5 stands twice"):
        DatasetBuilder(tmp_path, tmp_path, Categories(("a", "b"), (5, 5)))


def test_images_and_objects_without_numbers_are_counted(tmp_path):
    made = DatasetBuilder(tmp_path, tmp_path, CATEGORIES, classes=["dog"])
    box = ObjectRecord(box=Box(1, 1, 2, 2))
    made.add_counted("a.png", SIZE, [(2, box), (90, box)])
    made.add_counted("b.png", SIZE, [(90, box), (2, box)])
    dataset = made.build()
    assert dataset.image_ids.tolist() == [1, 2]
    assert [dataset.columns(i).ids.tolist() for i in range(2)] == [[1], [4]]
    with pytest.raises(ValueError, match="there are no images"):
        DatasetBuilder(tmp_path, tmp_path, CATEGORIES).build()


def test_objects_keep_their_order_within_an_image_however_images_are_mixed(tmp_path):
    made = DatasetBuilder(tmp_path, tmp_path, CATEGORIES)
    for image_id in range(5):
        made.add_image(image_id, f"{image_id}.png", SIZE)
    of_image = np.random.default_rng(0).integers(0, 5, 200).tolist()
    for object_id, image_id in enumerate(of_image):
        made.add(made.admit(object_id, image_id=image_id, category_id=2), ObjectRecord(box=Box(1, 1, object_id + 1, 2)))
    dataset = made.build()
    for image_id in range(5):
        columns = dataset.columns(image_id)
        assert columns.ids.tolist() == [number for number, image in enumerate(of_image) if image == image_id]
        assert columns.extents[:, 0].tolist() == [number + 1 for number in columns.ids]
