import copy
import json
import re

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO

from maskwright.formats.coco import read_coco, to_coco
from maskwright.formats.coco_results import check_results, to_coco_results
from maskwright.structures import COCO_PERSON, Instances, Masks
from tests.conftest import EXAMPLES

BASE = {
    "images": [
        {"id": 5, "file_name": "sub/a.png", "height": 20, "width": 30},
        {"id": 9, "file_name": "b.png", "height": 10, "width": 10},
    ],
    "categories": [{"id": 90, "name": "cat"}, {"id": 2, "name": "dog"}],
    "annotations": [
        {
            "id": 1,
            "image_id": 5,
            "category_id": 2,
            "bbox": [1, 2, 8, 6],
            "area": 48,
            "iscrowd": 0,
            "segmentation": [[1, 2, 9, 2, 9, 8, 1, 8]],
        },
        {
            "id": 2,
            "image_id": 5,
            "category_id": 90,
            "bbox": [0, 0, 30, 20],
            "area": 4,
            "iscrowd": 1,
            "segmentation": {"size": [20, 30], "counts": [0, 4, 596]},
        },
    ],
}


def read(path, **options):
    return read_coco(path, path.parent, **options)


def changed(**fields):
    data = copy.deepcopy(BASE)
    data["annotations"][0].update(fields)
    return data


def test_everything_of_a_file_is_read(write_annotations):
    dataset = read(write_annotations(BASE))
    assert len(dataset) == 2
    assert dataset.categories.names == ("cat", "dog")
    assert dataset.categories.ids == (90, 2)
    first, second = dataset.instances(0), dataset.instances(1)
    assert first.boxes.tolist() == [[1, 2, 9, 8], [0, 0, 30, 20]]
    assert first.labels.tolist() == [1, 0]
    assert first.crowd.tolist() == [False, True]
    assert first.masks.areas().tolist() == [48, 4]
    assert dataset.file_name(0) == "sub/a.png"
    assert len(second) == 0
    assert second.masks is not None


def test_masks_equal_pycocotools_on_the_sample():
    path = EXAMPLES / "annotations" / "val.json"
    dataset, oracle = read_coco(path, EXAMPLES / "images"), COCO(str(path))
    assert len(dataset) == 16
    for i, image_id in enumerate(dataset.image_ids):
        annotations = oracle.loadAnns(oracle.getAnnIds(int(image_id)))
        expected = np.stack([oracle.annToMask(a) for a in annotations])
        assert (dataset.instances(i).masks.to_dense().numpy() == expected).all()


def test_writing_gives_back_what_was_read(write_annotations):
    data = to_coco(read(write_annotations(BASE)))
    for key in ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation"):
        assert [a[key] for a in data["annotations"]] == [a[key] for a in BASE["annotations"]]
    assert data["categories"] == BASE["categories"]


def test_several_parts_make_one_mask(write_annotations):
    two = [[1, 1, 5, 1, 5, 5, 1, 5], [10, 10, 14, 10, 14, 14, 10, 14]]
    instances = read(write_annotations(changed(segmentation=two))).instances(0)
    assert instances.masks.areas()[0] == 32


def test_keypoints_are_carried_half_a_pixel_on(write_annotations):
    data = changed(keypoints=[3, 4, 2] + [0, 0, 0] * 16, num_keypoints=1)
    own = next(c for c in data["categories"] if c["id"] == data["annotations"][0]["category_id"])
    other = next(c for c in data["categories"] if c is not own)
    own["keypoints"] = list(COCO_PERSON.names)
    dataset = read(write_annotations(data))
    points = dataset.instances(0).keypoints
    assert points[0, 0].tolist() == [3.5, 4.5, 2]
    assert points[0, 1].tolist() == [0, 0, 0]
    assert dataset.categories.keypoints is COCO_PERSON
    assert to_coco(dataset)["annotations"][0]["keypoints"][:6] == [3, 4, 2, 0, 0, 0]
    assert dataset.without_keypoints().instances(0).keypoints is None
    other["keypoints"] = ["tail", "head"]  # a class may have points of its own: those of the first that is used are read
    assert read(write_annotations(data), classes=[own["name"]]).instances(0).keypoints[0, 0].tolist() == [3.5, 4.5, 2]
    assert read(write_annotations(data), classes=[other["name"]]).categories.keypoints.names == ("tail", "head")


def test_classes_choose_and_order(write_annotations):
    dataset = read(write_annotations(BASE), classes=["dog"])
    assert dataset.categories.names == ("dog",)
    assert dataset.instances(0).labels.tolist() == [0]
    assert dataset.num_instances == 1
    with pytest.raises(ValueError, match="no class is named bird; there are cat, dog"):
        read(write_annotations(BASE), classes=["bird"])


def test_box_is_made_from_a_mask_where_it_is_missing(write_annotations):
    data = changed()
    del data["annotations"][0]["bbox"], data["annotations"][0]["area"]
    instances = read(write_annotations(data)).instances(0)
    assert instances.boxes[0].tolist() == [1, 2, 9, 8]


def test_box_over_the_edge_is_cut_for_training_and_kept_for_scoring(write_annotations):
    dataset = read(write_annotations(changed(bbox=[-3, 2, 50, 6])))
    assert dataset.instances(0).boxes[0].tolist() == [0, 2, 30, 8]
    assert to_coco(dataset)["annotations"][0]["bbox"] == [-3, 2, 50, 6]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_id": 77}, "annotation 1: image_id 77 is not among 'images'"),
        ({"category_id": 77}, "annotation 1: category_id 77 is not among 'categories'"),
        ({"id": 2}, "annotation 2: the id stands twice"),
        ({"bbox": [1, 2, 0, 6]}, "annotation 1: bbox .* is empty or outside"),
        ({"bbox": [40, 2, 5, 6]}, "annotation 1: bbox .* is empty or outside"),
        ({"bbox": [1, 2, float("nan"), 6]}, "annotation 1: bbox holds nan"),
        ({"bbox": "1234"}, "annotation 1: bbox is '1234', expected four"),
        ({"image_id": 5.5}, "annotation 1: image_id is 5.5, expected a whole number"),
        ({"category_id": True}, "annotation 1: category_id is True"),
        ({"id": -1}, "annotation -1: id is -1"),
        ({"id": 10**30}, "annotation 10+: id is 10+"),
        ({"iscrowd": "0"}, "annotation 1: iscrowd is '0', expected 0 or 1"),
        ({"segmentation": [["1", "2", "3", "4", "5", "6"]]}, "annotation 1: polygon is not a flat list of numbers"),
        ({"bbox": [1, 2, 3]}, "annotation 1: bbox .* four finite numbers"),
        ({"area": -1}, "annotation 1: area is -1"),
        ({"segmentation": [[1, 2, 3, 4]]}, "annotation 1: polygon has 4 numbers"),
        ({"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}, "annotation 1: polygon has 7 numbers"),
        ({"segmentation": [[1, 2, 3, 4, 5, float("inf")]]}, "annotation 1: polygon holds a coordinate"),
        ({"segmentation": [[100, 2, 110, 2, 110, 8]]}, "annotation 1: the polygon lies outside the image of 20 x 30"),
        ({"segmentation": [[0, 0, 1e9, 0, 5, 5]]}, "annotation 1: the polygon reaches to"),
        ({"segmentation": {"size": [30, 20], "counts": [600]}}, "annotation 1: RLE is 30 x 20 but the image is 20 x 30"),
        ({"segmentation": {"size": [20, 30], "counts": [600]}}, "annotation 1: the mask is empty"),
        ({"segmentation": {"size": [20, 30], "counts": [5]}}, "annotation 1: RLE counts add up to 5"),
        ({"segmentation": "xyz"}, "annotation 1: segmentation is neither"),
        ({"segmentation": None, "bbox": None}, "annotation 1: has neither"),
    ],
)
def test_bad_annotations_are_named_and_can_be_skipped(write_annotations, fields, message):
    path = write_annotations(changed(**fields))
    with pytest.raises(ValueError, match=rf"annotations\.json: 1 bad entries; correct them.*\n  {message}"):
        read(path)
    dataset = read(path, invalid="skip")
    assert len(dataset.problems) == 1
    assert dataset.num_instances == 1


def test_missing_keys_are_named(write_annotations):
    data = changed()
    del data["annotations"][0]["image_id"]
    with pytest.raises(ValueError, match="annotation 1: the key 'image_id' is missing"):
        read(write_annotations(data))


@pytest.mark.parametrize("name", ["../a.png", "/etc/passwd", "C:\\a.png", "x/../../a.png"])
def test_file_names_stay_in_the_image_folder(write_annotations, name):
    data = copy.deepcopy(BASE)
    data["images"][1]["file_name"] = name
    with pytest.raises(ValueError, match="image 9: file name .* leaves the image folder"):
        read(write_annotations(data))


def test_classes_are_named_once(write_annotations):
    for classes in (["dog", "dog"], []):
        with pytest.raises(ValueError, match="name each class once"):
            read(write_annotations(BASE), classes=classes)


@pytest.mark.parametrize(("keypoints", "skeleton"), [(5, []), (["a"], 5), (["a"], [None]), (["a"], [[1]]), ([None], [])])
def test_odd_keypoint_schemas_are_named(write_annotations, keypoints, skeleton):
    data = copy.deepcopy(BASE)
    data["categories"][0].update(keypoints=keypoints, skeleton=skeleton)
    with pytest.raises(ValueError, match=r"annotations\.json: 'keypoints' and 'skeleton' of cat"):
        read(write_annotations(data))


def test_missing_area_is_counted_in_pixels(write_annotations):
    data = changed(segmentation=[[0, 0, 20, 0, 0, 20]], bbox=[0, 0, 20, 20])
    del data["annotations"][0]["area"]
    area = to_coco(read(write_annotations(data)))["annotations"][0]["area"]
    assert area == Masks.from_polygons([[[0, 0, 20, 0, 0, 20]]], (20, 30)).areas()[0]


def test_predictions_are_matched_by_file_name_only_where_it_tells_images_apart(write_annotations):
    path = write_annotations(BASE)
    dataset = read(path)
    own = {"images": [{"id": 1, "file_name": "a.png"}], "categories": [{"id": 1, "name": "dog"}]}
    entry = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 0.5}
    (matched,) = check_results(path, {**own, "annotations": [entry]}, dataset)
    assert (matched["image_id"], matched["category_id"]) == (5, 2)
    for wrong in ({"image_id": 9}, {"image_id": None}, {"category_id": [1]}):
        with pytest.raises(ValueError, match="names an image or category that is not listed"):
            check_results(path, {**own, "annotations": [{**entry, **wrong}]}, dataset)
    with pytest.raises(ValueError, match=r"images x\.png are not in"):
        check_results(path, {**own, "images": [{"id": 1, "file_name": "x.png"}], "annotations": []}, dataset)
    with pytest.raises(ValueError, match="classes bird are not in"):
        check_results(path, {**own, "categories": [{"id": 1, "name": "bird"}], "annotations": []}, dataset)
    data = copy.deepcopy(BASE)
    data["images"][1]["file_name"] = "other/a.png"
    with pytest.raises(ValueError, match=r"images a\.png are not in"):
        check_results(path, {**own, "annotations": [entry]}, read(write_annotations(data)))


def test_doubled_ids_of_images_and_categories_are_refused(write_annotations):
    data = copy.deepcopy(BASE)
    data["images"][1]["id"] = 5
    with pytest.raises(ValueError, match="image 5: the id stands twice"):
        read(write_annotations(data))
    data = copy.deepcopy(BASE)
    data["categories"][1]["name"] = "cat"
    with pytest.raises(ValueError, match="category name cat stands twice"):
        read(write_annotations(data))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the JSON is empty"),
        ('{"images": [', "the JSON breaks at line 1, column 13"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0", "a Git LFS pointer"),
        ("[1, 2]", "not COCO annotations"),
        ('{"images": [], "annotations": []}', "not COCO annotations"),
        ('{"images": [], "annotations": [], "categories": []}', "there are no categories"),
        ("[" * 100000, "nested too deeply|breaks at"),
    ],
)
def test_broken_files_are_named(write_annotations, text, message):
    with pytest.raises(ValueError, match=rf"annotations\.json: .*({message})"):
        read(write_annotations(text))


def test_missing_and_binary_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="nope.json: there is no such file"):
        read(tmp_path / "nope.json")
    (tmp_path / "a.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not a JSON text"):
        read(tmp_path / "a.json")


def test_many_problems_are_summed_up(write_annotations):
    data = copy.deepcopy(BASE)
    data["annotations"] = [{**BASE["annotations"][0], "id": i, "image_id": 77} for i in range(25)]
    with pytest.raises(ValueError, match=re.compile("25 bad entries.*and 15 more", re.DOTALL)):
        read(write_annotations(data))


def test_results_carry_original_ids_and_masks(write_annotations):
    dataset = read(write_annotations(BASE))
    found = Instances(
        (20, 30),
        boxes=torch.tensor([[1.0, 2, 9, 8]]),
        labels=torch.tensor([1]),
        scores=torch.tensor([0.5]),
        masks=Masks.from_polygons([[[1, 2, 9, 2, 9, 8, 1, 8]]], (20, 30)),
    )
    (entry,) = to_coco_results(found, 5, dataset.categories)
    assert entry["category_id"] == 2
    assert entry["bbox"] == [1, 2, 8, 6]
    assert entry["score"] == 0.5
    assert json.loads(json.dumps(entry))["segmentation"]["size"] == [20, 30]
    assert check_results(write_annotations([entry]), [entry], dataset) == [entry]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_id": 1234}, "entry 0: image_id 1234 is not in the data set"),
        ({"category_id": 1}, "entry 0: category_id 1 is not in the data set"),
        ({"score": float("nan")}, "entry 0: score holds nan"),
        ({"score": "0.5"}, "entry 0: score holds '0.5'"),
        ({"bbox": [1, 2, 3]}, "entry 0: bbox is"),
        ({"segmentation": {"size": [3, 3], "counts": [9]}}, "entry 0: RLE is 3 x 3"),
    ],
)
def test_foreign_results_are_checked(write_annotations, fields, message):
    path = write_annotations(BASE)
    dataset = read(path)
    entry = {"image_id": 5, "category_id": 2, "bbox": [0, 0, 1, 1], "score": 0.5, **fields}
    with pytest.raises(ValueError, match=message):
        check_results(path, [entry], dataset)
    with pytest.raises(ValueError, match="expected a list of COCO results"):
        check_results(path, {"a": 1}, dataset)
