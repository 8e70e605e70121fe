import pytest

from maskwright.systems import SYSTEMS
from maskwright.weights.published import PUBLISHED, fetch
from tests.published import publish, torch_hub

NAME = "mask-rcnn-r50-fpn-torchvision"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    return torch_hub(tmp_path / "torch", monkeypatch)


def test_entries_are_those_of_coco_and_their_names_end_with_a_hash():
    assert set(PUBLISHED) == {name for name in SYSTEMS if "torchvision" in name}
    files = {name: published.entry.url.rsplit("/", 1)[1] for name, published in PUBLISHED.items()}
    assert files[NAME] == "maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth"  # torchvision 0.29
    assert files["fcos-r50-torchvision"] == "fcos_resnet50_fpn_coco-99b0c9b7.pth"
    for name, published in PUBLISHED.items():
        assert len(published.digest) == 8
        assert files[name].endswith(f"-{published.digest}.pth")
        assert ("_v2_" in files[name]) == name.endswith("-v2")


def test_what_is_there_needs_no_network(hub, tmp_path, monkeypatch):
    file = publish(NAME, {"a": 1}, hub, monkeypatch)
    monkeypatch.setattr(PUBLISHED[NAME].entry.value, "url", f"https://nowhere.invalid/models/{file.name}")
    heard = []
    assert fetch(PUBLISHED[NAME], heard.append) == file
    assert heard == []


def test_what_is_not_there_is_downloaded_once(hub, tmp_path, monkeypatch):
    there = publish(NAME, {"a": 1}, tmp_path / "there", monkeypatch)
    heard = []
    for _ in range(2):
        file = fetch(PUBLISHED[NAME], heard.append)
        assert file == hub / there.name
        assert file.read_bytes() == there.read_bytes()
    assert heard == [f"downloading {there.as_uri()} to {file}"]


def test_another_file_is_refused_whoever_put_it_there(hub, tmp_path, monkeypatch):
    file = publish(NAME, {"a": 1}, hub, monkeypatch, digest="0123abcd")
    with pytest.raises(ValueError, match=r"-0123abcd\.pth: its SHA-256 is .*, expected 0123abcd\.\.\.: .* downloaded anew"):
        fetch(PUBLISHED[NAME], print)
    file.unlink()
    publish(NAME, {"a": 1}, tmp_path / "there", monkeypatch, digest="0123abcd")
    with pytest.raises(ValueError, match=r"cannot be downloaded \(invalid hash value \(expected \"0123abcd\""):
        fetch(PUBLISHED[NAME], print)
    assert list(hub.iterdir()) == []


def test_without_a_network_the_file_and_its_place_are_named(hub, monkeypatch):
    url = "file:///nowhere/maskrcnn-0123abcd.pth"
    monkeypatch.setattr(PUBLISHED[NAME].entry.value, "url", url)
    place = f"put it where it is looked for, as {hub / 'maskrcnn-0123abcd.pth'}, or start from .* with --init RUN|FILE"
    with pytest.raises(ValueError, match=rf"{url} cannot be downloaded \(.*nowhere.*\): {place}".replace("|", r"\|")):
        fetch(PUBLISHED[NAME], print)
    hub.rmdir()
    hub.write_text("a file in the way")
    with pytest.raises(ValueError, match=rf"{url} cannot be downloaded \(.*{hub}"):
        fetch(PUBLISHED[NAME], print)
