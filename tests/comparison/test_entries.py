import pytest

from maskwright.comparison.entries import parse_entries, parse_entry


def test_systems_with_changes_are_entries():
    entry = parse_entry("embedmask-small arguments.margin=fixed optimizer.lr=0.001")
    assert entry.system == "embedmask-small"
    assert entry.changes == ("arguments.margin=fixed", "optimizer.lr=0.001")
    assert entry.name == "embedmask-small arguments.margin=fixed optimizer.lr=0.001"
    assert entry.slug == "embedmask-small-arguments.margin-fixed-optimizer.lr-0.001"
    assert parse_entry("fixed margin: embedmask-small arguments.margin=fixed").name == "fixed margin"


def test_folders_and_files_are_entries(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "theirs.json").write_text("[]")
    both = parse_entry(f"mine: {tmp_path}/a {tmp_path}/b cut=log")
    assert both.name == "mine"
    assert [path.name for path in both.runs] == ["a", "b"]
    assert both.changes == ("cut=log",)
    assert parse_entry(f"{tmp_path}/a").name == "a"
    assert parse_entry(f"{tmp_path}/theirs.json").results == (tmp_path / "theirs.json",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a system, run folders or results files"),
        ("mask-rcnn-smal", "did you mean mask-rcnn-small"),
        ("runs/nothing", "runs/nothing: there is no such run folder or results file"),
        ("theirs.json", "theirs.json: there is no such"),
        ("x: a nothing", "nothing does not exist"),
        ("x: a theirs2.json", "cannot be seeds of one entry"),
        ("theirs2.json cut=log", "have no arguments to change"),
    ],
)
def test_what_is_no_entry_is_named(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "theirs2.json").write_text("[]")
    with pytest.raises(ValueError, match=message):
        parse_entry(text)


def test_names_are_told_apart():
    with pytest.raises(ValueError, match=r"got the name '\?!', expected one with a letter"):
        parse_entries(["?!: mask-rcnn-small"])
    with pytest.raises(ValueError, match="two entries are called 'mask-rcnn-small'"):
        parse_entries(["mask-rcnn-small", "mask-rcnn-small"])
    assert len(parse_entries(["mask-rcnn-small", "again: mask-rcnn-small"])) == 2
