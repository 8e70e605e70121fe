import json

import numpy as np
import pytest
import torch
from PIL import Image

import maskwright as mw
from maskwright.formats.dataset import Categories
from maskwright.formats.images import read_image
from maskwright.inference import Result, writer
from maskwright.inference.scoring import match_categories
from maskwright.structures import Instances, Intensity, Masks, polygons
from tests.conftest import make_coco

CATEGORIES = Categories(("cell", "debris"), (30, 4))


def ringed() -> Result:
    dense = torch.zeros(3, 20, 24, dtype=torch.bool)
    dense[0, 2:12, 2:12] = True
    dense[0, 5:8, 5:8] = False  # a hole
    dense[0, 15:18, 15:18] = True  # a second part
    dense[1, 0:4, 18:24] = True
    masks = Masks.from_dense(dense)
    return Result(
        Instances(
            (20, 24), boxes=masks.boxes(), labels=torch.tensor([1, 0, 0]), scores=torch.tensor([0.9, 0.8, 0.7]), masks=masks
        ),
        CATEGORIES,
        np.zeros((20, 24, 3), dtype=np.uint8),
        Intensity(),
    )


def test_result_speaks_names_and_original_ids():
    result = ringed()
    assert result.names == ["debris", "cell", "cell"]
    assert result.category_ids == [4, 30, 30]
    assert [entry["category_id"] for entry in result.to_coco(7)] == [4, 30, 30]
    assert {entry["image_id"] for entry in result.to_coco(7)} == {7}
    back = Masks.from_rles([entry["segmentation"] for entry in result.to_coco()], (20, 24))
    assert torch.equal(back.to_dense(), result.masks.to_dense())
    assert result.plot().size[0] > 600


def test_geojson_keeps_holes_and_parts():
    collection = json.loads(json.dumps(ringed().to_geojson()))
    first, second, third = collection["features"]
    assert first["geometry"]["type"] == "MultiPolygon"
    assert sorted(len(part) for part in first["geometry"]["coordinates"]) == [1, 2]
    assert first["properties"]["classification"]["name"] == "debris"
    assert first["properties"]["score"] == pytest.approx(0.9)
    assert second["geometry"] == {"type": "Polygon", "coordinates": [[[18, 0], [24, 0], [24, 4], [18, 4], [18, 0]]]}
    area = sum(polygons.signed_area(np.array(ring[:-1])) for part in first["geometry"]["coordinates"] for ring in part)
    assert area == 100 - 9 + 9
    assert third["geometry"]["coordinates"] == []


def test_every_source_gives_the_same_answer(tiny_run):
    model = mw.load(tiny_run, device="cpu", precision="float32")
    path = tiny_run.parent / "data" / "images" / "val_0.png"
    pixels = read_image(path)
    answers = model.predict([path, str(path), Image.open(path), pixels], threshold=0)
    assert len(answers[0]) > 0
    for answer in answers[1:]:
        assert torch.equal(answer.boxes, answers[0].boxes)
        assert answer.masks.to_rles() == answers[0].masks.to_rles()
    alone = model.predict(path, threshold=0)
    assert torch.equal(alone.boxes, answers[0].boxes)
    assert answers[0].masks.image_size == (96, 128)
    assert model.names == ("box", "disc")


def test_threshold_and_limit(tiny_run):
    model = mw.load(tiny_run, device="cpu", precision="float32")
    path = tiny_run.parent / "data" / "images" / "val_0.png"
    everything = model.predict(path, threshold=0)
    middle = float(everything.scores.median())
    assert len(model.predict(path, threshold=middle)) == int((everything.scores >= middle).sum())
    assert len(model.predict(path, threshold=0, max_detections=2)) == 2
    assert len(model.predict(path, threshold=0)) == len(everything)  # the limit was for one call
    with pytest.raises(ValueError, match="got threshold 50"):
        model.predict(path, threshold=50)


def test_odd_images_are_predicted(tiny_run, tmp_path):
    model = mw.load(tiny_run, device="cpu", precision="float32")
    for shape in ((1, 1), (3, 1024), (900, 7)):
        result = model.predict(np.full((*shape, 3), 127, dtype=np.uint8), threshold=0)
        assert result.instances.image_size == shape
        result.to_geojson()
    Image.fromarray(np.full((40, 40), 30000, dtype=np.uint16)).save(tmp_path / "deep.png")
    assert model.predict(tmp_path / "deep.png").instances.image_size == (40, 40)


def test_wrong_arrays_are_refused(tiny_run):
    model = mw.load(tiny_run, device="cpu")
    for wrong in (np.zeros((5, 5), dtype=np.uint8), np.zeros((5, 5, 3)), np.zeros((0, 5, 3), dtype=np.uint8)):
        with pytest.raises(ValueError, match=r"expected RGB uint8 \(H, W, 3\)"):
            model.predict(wrong)


def test_folders_are_predicted_and_bad_images_named(tiny_run, tmp_path, console):
    folder = tmp_path / "in"
    make_coco(folder, images=2)
    (folder / "images" / "broken.png").write_bytes(b"no image")
    Image.new("RGB", (30, 30)).save(folder / "images" / "train_0.jpg")  # the same stem twice
    answer = mw.predict(
        tiny_run,
        [folder / "images"],
        out=tmp_path / "out",
        formats=("coco", "geojson", "png"),
        threshold=0,
        device="cpu",
        console=console,
    )
    assert answer.num_images == 3
    assert len(answer.failures) == 1
    assert "broken.png" in answer.failures[0]
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "predictions.json", "train_0.jpg.png", "train_0.jpg.geojson", "train_0.png.png", "train_0.png.geojson",
        "train_1.png", "train_1.geojson",
    }  # fmt: skip
    data = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [image["file_name"] for image in data["images"]] == ["train_0.jpg", "train_0.png", "train_1.png"]
    assert data["categories"] == [{"id": 7, "name": "box"}, {"id": 3, "name": "disc"}]
    assert {a["category_id"] for a in data["annotations"]} <= {3, 7}
    assert all(0 <= a["score"] <= 1 for a in data["annotations"])


def test_predict_mistakes(tiny_run, tmp_path):
    with pytest.raises(ValueError, match="no format is named svg"):
        mw.predict(tiny_run, [tmp_path], out=tmp_path / "out", formats=("svg",))
    with pytest.raises(ValueError, match="there are no images in this folder"):
        mw.predict(tiny_run, [tmp_path], out=tmp_path / "out")
    with pytest.raises(ValueError, match="there is no such image or folder"):
        mw.predict(tiny_run, [tmp_path / "nope.png"], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="got max_detections 0"):
        mw.load(tiny_run, device="cpu").predict(np.zeros((9, 9, 3), dtype=np.uint8), max_detections=0)
    image = tiny_run.parent / "data" / "images" / "val_0.png"
    for name in ("device", "path", "precision", "system", "proposals"):
        with pytest.raises(ValueError, match=f"mask-rcnn-small has no argument {name}"):
            mw.predict(tiny_run, image, out=tmp_path / "out", arguments={name: "cpu"})


def test_images_are_never_overwritten_nor_output_predicted(tiny_run, tmp_path, console):
    make_coco(tmp_path, images=1)
    folder = tmp_path / "images"
    before = (folder / "train_0.png").read_bytes()
    for sources in ([folder], [folder / "train_0.png"]):
        with pytest.raises(ValueError, match=r"would overwrite train_0\.png"):
            mw.predict(tiny_run, sources, out=folder, device="cpu", console=console)
    assert (folder / "train_0.png").read_bytes() == before
    mw.predict(tiny_run, folder, out=folder, formats=("coco",), device="cpu", console=console)  # which writes no pictures
    assert sorted(path.name for path in folder.iterdir()) == ["predictions.json", "train_0.png"]
    (folder / "predictions.json").unlink()
    for _ in range(2):
        answer = mw.predict(tiny_run, [folder], out=folder / "pred", device="cpu", console=console)
        assert answer.num_images == 1


def test_write_error_keeps_what_was_found(tiny_run, tmp_path, console, monkeypatch):
    make_coco(tmp_path, images=3)
    usual = writer._write

    def full(result, out, name, formats):
        if name == "train_2":
            raise OSError(28, "No space left on device")
        return usual(result, out, name, formats)

    monkeypatch.setattr(writer, "_write", full)
    with pytest.raises(OSError, match="No space"):
        mw.predict(tiny_run, [tmp_path / "images"], out=tmp_path / "out", device="cpu", console=console)
    assert len(json.loads((tmp_path / "out" / "predictions.json").read_text())["images"]) == 3


def test_what_predict_wrote_can_be_scored_by_file_name(tiny_run, tmp_path, console):
    data = tiny_run.parent / "data"
    val = sorted((data / "images").glob("val_*.png"))
    mw.predict(tiny_run, val[::-1], out=tmp_path, formats=("coco",), threshold=0, device="cpu", console=console)
    scored = mw.score(tmp_path / "predictions.json", data=data, max_detections=(1, 10, 20))
    direct = mw.evaluate(mw.load(tiny_run, device="cpu"), data=data, max_detections=(1, 10, 20), console=console)
    assert scored.metrics["segm"].stats() == pytest.approx(direct.metrics["segm"].stats(), abs=0.02)


def test_classes_are_matched_by_name_or_id_or_not_at_all(tiny_run, tmp_path, console):
    data = make_coco(tmp_path / "d", split="val", seed=2)
    file = tmp_path / "d" / "annotations" / "val.json"
    swapped = {7: 3, 3: 7}
    data["categories"] = [{"id": 7, "name": "disc"}, {"id": 3, "name": "box"}]
    for a in data["annotations"]:
        a["category_id"] = swapped[a["category_id"]]
    file.write_text(json.dumps(data))
    by_name = mw.evaluate(tiny_run, data=tmp_path / "d", device="cpu", console=console)
    usual = mw.evaluate(tiny_run, data=tiny_run.parent / "data", device="cpu", console=console)
    assert by_name.metrics["segm"].per_class == pytest.approx(usual.metrics["segm"].per_class)
    data["categories"] = [{"id": 70, "name": "x"}, {"id": 30, "name": "y"}]
    for a in data["annotations"]:
        a["category_id"] *= 10
    file.write_text(json.dumps(data))
    with pytest.raises(ValueError, match="have no names in common"):
        mw.evaluate(tiny_run, data=tmp_path / "d", device="cpu", console=console)
    numbers, words = Categories(("1", "2"), (7, 3)), Categories(("a", "b"), (3, 7))
    assert match_categories(numbers, words, "here", console) is numbers  # names that are mere numbers say nothing
    assert match_categories(words, numbers, "here", console) is words
    for model, data in ((numbers, Categories(("a", "b"), (3, 8))), (words, Categories(("c", "d"), (3, 7)))):
        with pytest.raises(ValueError, match="have no names in common"):
            match_categories(model, data, "here", console)
