"""Predictions for files, written where people look for them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from maskwright.formats.cityscapes import check_cityscapes, write_cityscapes
from maskwright.formats.coco_results import CocoFile
from maskwright.formats.files import atomic_write, write_json
from maskwright.formats.images import ImageError, list_images
from maskwright.inference.predictor import Model, load_with
from maskwright.inference.results import Result
from maskwright.runs.progress import shown

FORMATS = ("cityscapes", "coco", "geojson", "png")


@dataclass(frozen=True)
class Predictions:
    """What was done: counts, the files written, and the images that could not be read with the reason."""

    num_images: int
    num_objects: int
    written: list[Path]
    failures: list[str]


def predict_files(
    run: str | Path | Model,
    sources: str | Path | Sequence[str | Path],
    *,
    out: str | Path,
    formats: Sequence[str] = ("coco", "png"),
    threshold: float = 0.5,
    max_detections: int | None = None,
    arguments: Mapping[str, Any] | None = None,
    device: str = "auto",
    console: Console | None = None,
) -> Predictions:
    """Predict images and folders, and write files.

    These are predictions.json (COCO), overlays (PNG), outlines (GeoJSON), and, as the benchmark of Cityscapes takes them, a
    mask for each object and NAME.txt, which lists them.

    An image that cannot be read is named at the end; the others are not held up by it.

    Args:
        run: a run folder, a weights file, or a model already loaded.
        sources: an image or a folder searched with its sub-folders, or several of them.
        out: the folder to write into.
        formats: of "cityscapes", "coco", "geojson", "png".
        threshold: objects with lower scores are left out.
        max_detections: objects of an image at most.
        arguments: of the system in place of the saved ones, where `run` is a path; for example {"short_px": 600}.

    Raises:
        ValueError: no images, an unknown format, one that does not fit the model, or a run that cannot be opened.
    """
    out = Path(out)
    _check(formats, out)
    files = _find([sources] if isinstance(sources, (str, Path)) else sources, out)
    names = _unique_names([name for _, name in files])
    if "png" in formats:
        _protect_inputs([path for path, _ in files], out, names)
    model = run if isinstance(run, Model) else load_with(run, arguments or {}, device=device)
    if "cityscapes" in formats:
        check_cityscapes(model.categories, has_masks=model.system.task.has_masks)
    coco = CocoFile(model.categories)
    written: list[Path] = []
    failures: list[str] = []
    try:
        with shown(console, "predict", total=len(files)) as bar:
            for (path, name), unique in zip(files, names, strict=True):
                try:
                    result = model.predict(path, threshold=threshold, max_detections=max_detections)
                    coco.add(result.instances, name)
                    written += _write(result, out, unique, formats)
                except ImageError as error:
                    failures.append(str(error))
                bar.advance()
    finally:  # whatever ends the loop, what was found so far is not lost
        if "coco" in formats and coco.images:
            write_json(out / "predictions.json", coco.to_dict())
            written.append(out / "predictions.json")
    return Predictions(len(coco.images), len(coco.annotations), written, failures)


def _check(formats: Sequence[str], out: Path) -> None:
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise ValueError(f"no format is named {', '.join(unknown)}: there are {', '.join(FORMATS)}")
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: is a file, expected a folder to write into")


def _write(result: Result, out: Path, name: str, formats: Sequence[str]) -> list[Path]:
    written = []
    if "png" in formats:
        path, picture = out / f"{name}.png", result.plot()
        atomic_write(path, lambda temporary: picture.save(temporary, "PNG"))
        written.append(path)
    if "geojson" in formats:
        path = out / f"{name}.geojson"
        write_json(path, result.to_geojson())
        written.append(path)
    if "cityscapes" in formats:
        written += write_cityscapes(result.instances, result.categories, out / name)
    return written


def _protect_inputs(inputs: Sequence[Path], out: Path, names: Sequence[str]) -> None:
    """Pictures may not take the place of the images they show."""
    taken = {path.resolve() for path in inputs}
    lost = [name for name in names if (out / f"{name}.png").resolve() in taken]
    if lost:
        raise ValueError(f"{out}: would overwrite {lost[0]}.png, one of the images to predict: choose another --out")


def _find(sources: Sequence[str | Path], out: Path) -> list[tuple[Path, str]]:
    """Files with their names relative to the folder they were found in; earlier output below it is left out."""
    found: list[tuple[Path, str]] = []
    for source in map(Path, sources):
        if source.is_dir():
            inside = list_images(source)
            if source.resolve() in out.resolve().parents:
                inside = [path for path in inside if out.resolve() not in path.resolve().parents]
            if not inside:
                raise ValueError(f"{source}: there are no images in this folder")
            found += [(path, path.relative_to(source).as_posix()) for path in inside]
        elif source.exists():
            found.append((source, source.name))
        else:
            raise ValueError(f"{source}: there is no such image or folder")
    if not found:
        raise ValueError("there are no images to predict: name images or folders")
    return found


def _unique_names(names: Sequence[str]) -> list[str]:
    """Names for output files: without the suffix where that is enough to tell them apart."""
    stems = [str(Path(name).with_suffix("")) for name in names]
    taken: set[str] = set()
    unique = []
    for name, stem in zip(names, stems, strict=True):
        candidate = stem if stems.count(stem) == 1 else name
        number = 2
        while candidate in taken:
            candidate = f"{name}-{number}"
            number += 1
        taken.add(candidate)
        unique.append(candidate)
    return unique
