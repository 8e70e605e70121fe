"""Predictions for files, written where people look for them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from maskwright.data.files import atomic_write, write_json
from maskwright.data.images import list_images
from maskwright.inference.predictor import Model, load
from maskwright.inference.progress import counted
from maskwright.inference.results import Result, to_coco_file

FORMATS = ("coco", "geojson", "png")


@dataclass(frozen=True)
class Predictions:
    """What was written: results by file, and the files that could not be read with the reason."""

    results: list[Result]
    written: list[Path]
    failures: list[str]


def predict_files(
    run: str | Path | Model,
    sources: Sequence[str | Path],
    *,
    out: str | Path,
    formats: Sequence[str] = ("coco", "png"),
    threshold: float = 0.5,
    max_detections: int | None = None,
    device: str = "auto",
    console: Console | None = None,
) -> Predictions:
    """Predict images and folders, and write predictions.json (COCO), overlays (PNG) and outlines (GeoJSON).

    An image that cannot be read is named at the end; the others are not held up by it.

    Args:
        run: a run folder, a weights file, or a model already loaded.
        sources: images, and folders searched with their sub-folders.
        out: the folder to write into.
        formats: of "coco", "geojson", "png".
        threshold: objects with lower scores are left out.
        max_detections: objects of an image at most.

    Raises:
        ValueError: no images, an unknown format, or a run that cannot be opened.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise ValueError(f"no format is named {', '.join(unknown)}: there are {', '.join(FORMATS)}")
    files = _find(sources)
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: is a file, expected a folder to write into")
    model = run if isinstance(run, Model) else load(run, device=device)
    names = _unique_names([name for _, name in files])
    done: list[tuple[Result, str]] = []
    written: list[Path] = []
    failures: list[str] = []
    with counted(console, "predict", len(files)) as count:
        for (path, name), unique in zip(files, names, strict=True):
            try:
                result = model.predict(path, threshold=threshold, max_detections=max_detections)
            except ValueError as error:
                failures.append(str(error))
            else:
                written += _write(result, out, unique, formats)
                done.append((result, name))
            count(1)
    if "coco" in formats and done:
        write_json(out / "predictions.json", to_coco_file([r for r, _ in done], [name for _, name in done]))
        written.append(out / "predictions.json")
    return Predictions([r for r, _ in done], written, failures)


def _write(result: Result, out: Path, name: str, formats: Sequence[str]) -> list[Path]:
    written: list[Path] = []
    if "png" in formats:
        picture = result.plot()
        _keep(written, out / f"{name}.png", lambda path: atomic_write(path, lambda temporary: picture.save(temporary, "PNG")))
    if "geojson" in formats:
        _keep(written, out / f"{name}.geojson", lambda path: write_json(path, result.to_geojson()))
    return written


def _keep(written: list[Path], path: Path, write: Callable[[Path], object]) -> None:
    write(path)
    written.append(path)


def _find(sources: Sequence[str | Path]) -> list[tuple[Path, str]]:
    """Files with their names relative to the folder they were found in."""
    found: list[tuple[Path, str]] = []
    for source in map(Path, sources):
        if source.is_dir():
            inside = list_images(source)
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
