"""What README and docs say is so."""

import inspect
import re
import shlex
from pathlib import Path

import pytest

import maskwright
from maskwright.inference import Result
from maskwright.recipes.recipe import DataOptions, Recipe, Stage
from maskwright.systems import SYSTEMS
from tests.processes import maskwright as run

ROOT = Path(maskwright.__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md"]


def test_every_public_name_is_in_the_reference():
    text = (ROOT / "docs" / "reference.md").read_text()
    for name in maskwright.__all__:
        assert f"mw.{name}(" in text, name
    for name in ("to_coco", "to_geojson", "plot", "boxes", "scores", "labels", "masks", "names"):
        assert hasattr(Result, name)
        assert f"result.{name}" in text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_files_named_exist(page):
    text = page.read_text()
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (page.parent / target).exists(), target
    for target in re.findall(r"`((?:maskwright/|tests/|docs/|examples/)?[a-z_]+/[a-z_/]+\.py)", text):
        if target.endswith("/new.py"):  # the system a contributor would add
            continue
        assert (ROOT / target).exists() or (ROOT / "maskwright" / target).exists(), target


def test_options_in_commands_exist():
    helps = {}
    for page in PAGES:
        for line in re.findall(r"^(?:uv run )?(maskwright [a-z]+ .*?)(?:\s{2,}#.*)?$", page.read_text(), re.MULTILINE):
            words = shlex.split(line.replace("\\", ""))
            verb = words[1]
            if verb not in helps:
                helps[verb] = run(verb, "--help").stdout
            for word in words[2:]:
                if word.startswith("--"):
                    assert word in helps[verb], f"{page.name}: {line}"
    assert set(helps) >= {"train", "evaluate", "predict"}


def test_recipe_fields_in_the_docs_exist():
    fields = set(Recipe.model_fields) | set(Stage.model_fields) | set(DataOptions.model_fields)
    arguments = {argument for builder in SYSTEMS.values() for argument in inspect.signature(builder).parameters}
    for page in PAGES:
        for name in re.findall(r"--set \"?([a-z_]+)", page.read_text()):
            assert name in fields | arguments | {"name"}, f"{page.name}: {name}"
        for name in re.findall(r"\barguments\.([a-z_]+)", page.read_text()):
            assert name in arguments, f"{page.name}: {name}"


def test_examples_are_the_ones_described():
    images = list((ROOT / "examples" / "nuclei" / "images").iterdir())
    assert len(images) == 48
    weights = ROOT / "examples" / "nuclei" / "weights.safetensors"
    assert weights.stat().st_size <= 12e6
    assert sum(p.stat().st_size for p in images) < 4e6
