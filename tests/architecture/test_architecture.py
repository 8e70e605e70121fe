"""The import law, names and manners that keep the tree readable."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import maskwright
from maskwright.formats.catalog import FORMATS

PACKAGE = Path(maskwright.__file__).parent

ORDER = (
    "structures → formats, layers, weights → data, systems → recipes, metrics → runs, reports → training, inference → "
    "comparison → api → cli"
)
"""Imports run from the left to the right: a folder may know what stands before its own place, and of that what it needs."""
LAW = {  # what each needs
    "structures": set(),
    "formats": {"structures"},
    "layers": {"structures"},
    "weights": {"structures"},
    "data": {"structures", "formats"},
    "systems": {"structures", "layers"},
    "recipes": {"structures", "systems", "data"},
    "metrics": {"structures", "formats", "data"},
    "runs": {"structures", "systems", "recipes", "weights", "formats"},
    "reports": {"structures", "formats", "metrics"},
    "training": {"structures", "formats", "data", "layers", "weights", "systems", "recipes", "runs", "metrics"},
    "inference": {"structures", "formats", "data", "layers", "systems", "runs", "metrics", "reports"},
    "comparison": {
        *["structures", "formats", "data", "systems", "recipes", "runs", "metrics", "reports", "training", "inference"]
    },
}
MODULES = sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Top folders of the package that a module imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, (path, "relative")
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("maskwright.")}
    return found


def test_imports_are_seen_however_they_are_written(tmp_path):
    file = tmp_path / "module.py"
    file.write_text(
        "import maskwright.formats.coco\nfrom maskwright import recipes\ndef f():\n    from maskwright.runs import a\n"
    )
    assert imports(file) == {"formats", "recipes", "runs"}
    file.write_text("from ..systems import rpn\n")
    with pytest.raises(AssertionError, match="relative"):
        imports(file)


@pytest.mark.parametrize("folder", LAW)
def test_import_law(folder):
    for path in (PACKAGE / folder).rglob("*.py"):
        assert imports(path) <= LAW[folder] | {folder}, path


def test_the_law_runs_from_left_to_right():
    places = [step.split(", ") for step in ORDER.split(" → ")]
    before = {name: {other for step in places[:place] for other in step} for place, step in enumerate(places) for name in step}
    assert {name: known - before[name] for name, known in LAW.items() if known - before[name]} == {}
    assert set(before) == {*LAW, "api", "cli"}
    assert not imports(PACKAGE / "api.py") & {"cli", "overview", "demo"}


def modules_of(path: Path) -> set[str]:
    """Modules, and what may be one, that a module imports, with dots."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            found |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


NEUTRAL = {"builder", "dataset", "files", "format", "images", "packing"}
PAIRS = {("coco_results", "coco")}  # one format in two modules


def test_a_format_knows_no_other_and_the_catalog_alone_knows_them_all():
    known = {
        path.stem: {name.split(".")[2] for name in modules_of(path) if name.startswith("maskwright.formats.")}
        for path in (PACKAGE / "formats").glob("*.py")
    }
    for name in NEUTRAL:
        assert known[name] <= NEUTRAL, name
    for name in set(known) - NEUTRAL - {"catalog", "__init__"}:
        assert {(name, other) for other in known[name] - NEUTRAL} <= PAIRS, name
    assert {form.read.__module__.split(".")[-1] for form in FORMATS} <= known["catalog"]


def test_reading_files_needs_no_network():
    light = {"torch", "numpy", "PIL", "scipy", "maskwright", *sys.stdlib_module_names}  # no torchvision, no timm
    for path in (PACKAGE / "formats").glob("*.py"):
        assert packages(path) <= light, path


def test_only_the_list_of_systems_knows_all_sizes():
    families = {path.parent.name for path in (PACKAGE / "systems").glob("*/sizes.py")}
    assert families == {"proposals", "cascades", "rcnn", "one_stage"}
    for path in MODULES:
        known = {f for f in families if f"maskwright.systems.{f}.sizes" in modules_of(path)}
        assert known == (families if path == PACKAGE / "systems" / "__init__.py" else set()), path


def test_networks_never_see_a_size():
    for path in (PACKAGE / "systems").glob("*/*.py"):
        if path.stem not in ("sizes", "torchvision"):
            assert "maskwright.systems.size" not in modules_of(path), path


def test_every_folder_is_under_the_law():
    assert {p.name for p in PACKAGE.iterdir() if p.is_dir() and p.name != "__pycache__"} == set(LAW)


def packages(path: Path) -> set[str]:
    """Top names of all that a module imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
    return found


def test_structures_need_torch_and_numpy_only():
    allowed = {"torch", "numpy", "maskwright", "__future__"} | set(sys.stdlib_module_names)
    for path in (PACKAGE / "structures").rglob("*.py"):
        assert packages(path) <= allowed, path


def test_metrics_draw_and_print_nothing():
    for path in (PACKAGE / "metrics").rglob("*.py"):
        assert not packages(path) & {"PIL", "rich", "jinja2"}, path
        assert "print(" not in path.read_text(), path


def test_systems_do_not_ask_for_training_mode():
    for path in (PACKAGE / "systems").rglob("*.py"):
        assert "self.training" not in path.read_text()
        assert "is_tracing" not in path.read_text()


def test_only_the_original_file_format_knows_xywh():
    for path in MODULES:
        if path.name not in ("coco.py", "coco_results.py"):
            assert "xywh" not in path.read_text(), path


@pytest.mark.parametrize("word", ["utils", "misc", "common", "helpers"])
def test_no_module_is_a_drawer(word):
    assert not [p for p in MODULES if p.stem == word or p.parent.name == word]


def is_command(node: ast.FunctionDef) -> bool:
    """Whether it is a command of the shell, whose options are its arguments."""
    return any(ast.unparse(decorator).startswith("app.command") for decorator in node.decorator_list)


def test_functions_and_files_stay_short():
    for path in MODULES:
        text = path.read_text()
        assert text.count("\n") <= 600, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60, (path, node.name)
                names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
                assert len([name for name in names if name not in ("self", "cls")]) <= 10 or is_command(node), (path, node.name)


def test_the_door_is_light_and_sorted():
    assert maskwright.__all__ == sorted(maskwright.__all__)
    code = "import json, sys, maskwright; print(json.dumps([m for m in ('torch', 'numpy', 'timm', 'PIL') if m in sys.modules]))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(out.stdout) == []
    for name in maskwright.__all__:
        assert callable(getattr(maskwright, name))
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        _ = maskwright.nope


def test_importing_changes_nothing_global():
    code = (
        "import torch, numpy, PIL.Image as I, warnings\n"
        "before = (torch.get_rng_state().sum().item(), torch.get_num_threads(), I.MAX_IMAGE_PIXELS, len(warnings.filters),"
        " torch.is_grad_enabled(), torch.get_default_dtype())\n"
        "import timm, torchvision, hotcoco, pydantic, rich\n"
        "filters = len(warnings.filters)\n"
        "import maskwright.api, maskwright.cli\n"
        "after = (torch.get_rng_state().sum().item(), torch.get_num_threads(), I.MAX_IMAGE_PIXELS,"
        " before[3] + len(warnings.filters) - filters,"
        " torch.is_grad_enabled(), torch.get_default_dtype())\n"
        "assert before == after, (before, after)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
