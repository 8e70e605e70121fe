"""The command line: parse, call, print."""

import sys
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import typer
from rich.console import Console

app = typer.Typer(
    name="maskwright",
    help="A workbench for instance segmentation: train, evaluate and run Mask R-CNN, EmbedMask, SharpMask and their kin.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
console = Console(markup=False)

ImagesOption = Annotated[Path | None, typer.Option(help="Image folder of a single annotation file.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, ...")]
SkipOption = Annotated[bool, typer.Option("--skip-invalid", help="Leave bad annotations out instead of stopping.")]
ArgumentsOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="An argument of the system in place of the saved one: short_px=600. Can be repeated."),
]


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder to make.")] = Path("runs/demo"),
    device: DeviceOption = "auto",
) -> None:
    """Train, evaluate and predict on the nuclei that ship with the repository (a few minutes on two cores)."""
    from maskwright.demo import run_demo

    run_demo(out, device=device, console=console)


@app.command()
def systems(name: Annotated[str | None, typer.Argument(help="One of them, to see its parts and arguments.")] = None) -> None:
    """List the systems, or the parts and arguments of one."""
    from maskwright.overview import system_tables, systems_table

    for table in [systems_table()] if name is None else system_tables(name):
        console.print(table)


@app.command()
def recipes(name: Annotated[str | None, typer.Argument(help="One of them, to see all of it.")] = None) -> None:
    """List the recipes: what is trained, how long, and what to expect; or all fields of one."""
    from maskwright.overview import recipe_lines, recipe_text

    for text in recipe_lines() if name is None else [recipe_text(name)]:
        console.print(text, highlight=False, soft_wrap=True)


@app.command()
def train(
    system: Annotated[
        str | None, typer.Argument(help="A system or a recipe, see 'maskwright systems', 'maskwright recipes'.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder with train and val splits, or one COCO annotation file.")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder to make.")] = None,
    epochs: Annotated[float | None, typer.Option(help="In place of the recipe's.")] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Of training, in place of epochs; steps are measured once, validation comes on top.")
    ] = None,
    images: ImagesOption = None,
    val_fraction: Annotated[float | None, typer.Option(help="Share of a single file's images kept for validation.")] = None,
    classes: Annotated[str | None, typer.Option(help="Names of the classes to use, separated by commas.")] = None,
    init: Annotated[
        str | None, typer.Option(help="Run or weights file to start from, or coco: torchvision's weights of the system.")
    ] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="A recipe field, like optimizer.lr=0.01.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Run folder to go on with; takes no other options.")] = None,
    skip_invalid: SkipOption = False,
    device: DeviceOption = "auto",
) -> None:
    """Train a system on your images."""
    from maskwright import api

    if resume is not None:
        others = (system, data, out, epochs, minutes, images, val_fraction, classes, init, set_)
        if any(option is not None for option in others) or skip_invalid:
            raise ValueError("--resume RUN goes on with a run as it was: leave the other options away")
        api.resume(resume, device=device, console=console)
    else:
        if system is None or data is None or out is None:
            raise ValueError(
                "train needs SYSTEM, --data and --out: maskwright train mask-rcnn-small --data my/coco --out runs/a"
            )
        api.train(
            system,
            data=data,
            out=out,
            epochs=epochs,
            minutes=minutes,
            images=images,
            val_fraction=val_fraction,
            classes=None if classes is None else [name.strip() for name in classes.split(",")],
            skip_invalid=skip_invalid,
            init=init,
            changes=set_ or [],
            device=device,
            console=console,
        )


@app.command()
def compare(
    entries: Annotated[
        list[str],
        typer.Argument(help="Each '[NAME: ]WHAT... [name=value...]': a system, run folders, or COCO results."),
    ],
    data: Annotated[Path, typer.Option(help="Folder with train and val splits; everything is scored on val.")],
    out: Annotated[Path, typer.Option(help="Folder to write into; what is there is gone on with.")] = Path("compare"),
    minutes: Annotated[float | None, typer.Option(help="Of training for each run; its steps are measured once.")] = None,
    seeds: Annotated[int, typer.Option(help="Runs of each system.")] = 3,
    images: ImagesOption = None,
    val_fraction: Annotated[float | None, typer.Option(help="Share of a single file's images kept for validation.")] = None,
    classes: Annotated[str | None, typer.Option(help="Names of the classes to use, separated by commas.")] = None,
    max_detections: Annotated[str | None, typer.Option(help="Limits on the detections of an image, like 1,10,300.")] = None,
    by: Annotated[
        Literal["boxes", "masks", "keypoints"] | None, typer.Option(help="What all are ranked by, not each by what it answers.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="A recipe field of all that is trained, like epochs=12.")
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Train systems, score them beside runs and anybody's results, and write one report with what can be told apart."""
    from maskwright.comparison import compare
    from maskwright.reports.ranking import in_words
    from maskwright.reports.tables import comparison_tables

    answer = compare(
        entries,
        data=data,
        out=out,
        minutes=minutes,
        seeds=seeds,
        changes=set_ or [],
        images=images,
        val_fraction=val_fraction,
        classes=None if classes is None else [name.strip() for name in classes.split(",")],
        max_detections=None if max_detections is None else _limits(max_detections),
        by=by,
        device=device,
        console=console,
    )
    for table in comparison_tables(answer):
        console.print(table)
    for ranked in answer.tables:
        for sentence in in_words(ranked):
            console.print(sentence, highlight=False)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    data: Annotated[Path | None, typer.Option(help="Where its data set is now, if it was moved.")] = None,
    images: ImagesOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Score a run on its validation images and write its report.html: intervals, curves, errors, pictures."""
    from maskwright import api
    from maskwright.reports.tables import evaluation_tables

    for table in evaluation_tables(api.report(run, data=data, images=images, device=device, console=console)):
        console.print(table)


@app.command()
def evaluate(
    run: Annotated[Path | None, typer.Argument(help="Run folder or weights file.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder with splits, or one COCO annotation file.")] = None,
    predictions: Annotated[Path | None, typer.Option(help="Score this COCO results file instead of a run.")] = None,
    split: Annotated[Literal["train", "val"], typer.Option(help="Which split of a folder.")] = "val",
    images: ImagesOption = None,
    max_detections: Annotated[
        str | None,
        typer.Option(help="Limits on the detections of an image; by default 1, 10 and the model's own (a file: 100)."),
    ] = None,
    class_agnostic: Annotated[bool, typer.Option("--class-agnostic", help="Ignore classes.")] = False,
    out: Annotated[Path | None, typer.Option(help="Also write the detections, a COCO results file.")] = None,
    report: Annotated[
        Path | None, typer.Option(help="Page to write; by default report-DATA.html in the run folder, or beside the file.")
    ] = None,
    skip_invalid: SkipOption = False,
    set_: ArgumentsOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Score a run, or anybody's COCO results file, by COCO's protocol."""
    from maskwright import api
    from maskwright.formats.files import write_json
    from maskwright.recipes.recipe import parse_assignments
    from maskwright.reports.tables import evaluation_tables

    if data is None or (run is None) == (predictions is None):
        raise ValueError("maskwright evaluate needs --data, and either RUN or --predictions results.json")
    for name, file in (("--out", out), ("--report", report)):
        if file is not None and file.exists() and not file.is_file():
            raise ValueError(f"{file}: is not a file: choose another {name}")
    if predictions is not None and (set_ or device != "auto"):
        raise ValueError("--predictions has no model: leave --set and --device away")
    common: dict[str, Any] = {
        "data": data,
        "split": split,
        "images": images,
        "max_detections": None if max_detections is None else _limits(max_detections),
        "class_agnostic": class_agnostic,
        "skip_invalid": skip_invalid,
        "report": report or _page_of(cast(Path, run or predictions), data, split),
        "console": console,
    }
    if predictions is not None:
        answer = api.score(predictions, **common)
    else:
        answer = api.evaluate(cast(Path, run), arguments=parse_assignments(set_ or []), device=device, **common)
    for table in evaluation_tables(answer):
        console.print(table)
    if out is not None:
        write_json(out, answer.results)
        console.print(f"detections written to {out}", highlight=False)


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="Run folder or weights file.")],
    images: Annotated[list[Path], typer.Argument(help="Images, and folders of images.")],
    out: Annotated[Path, typer.Option(help="Folder to write into.")],
    format: Annotated[str, typer.Option(help="Of cityscapes, coco, geojson, png; separated by commas.")] = "coco,png",
    threshold: Annotated[float, typer.Option(help="Leave out objects with lower scores.")] = 0.5,
    max_detections: Annotated[int | None, typer.Option(help="Objects of an image at most.")] = None,
    set_: ArgumentsOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Find objects in images, and write masks and pictures."""
    from maskwright import api
    from maskwright.recipes.recipe import parse_assignments

    answer = api.predict(
        run,
        list(images),
        out=out,
        formats=[name.strip() for name in format.split(",")],
        threshold=threshold,
        max_detections=max_detections,
        arguments=parse_assignments(set_ or []),
        device=device,
        console=console,
    )
    console.print(
        f"{answer.num_objects} objects in {answer.num_images} images, {len(answer.written)} files in {out}", highlight=False
    )
    if answer.failures:
        raise ValueError("could not be read:\n  " + "\n  ".join(answer.failures))


@app.command("import")
def import_(
    weights: Annotated[Path, typer.Argument(help="Checkpoint of another toolkit; it is never executed.")],
    system: Annotated[str, typer.Option(help="What it is of: mask-rcnn-r50-fpn, fcos-r50, embedmask-r50, ...")],
    out: Annotated[Path, typer.Option(help="Run folder to make.")],
    classes: Annotated[str | None, typer.Option(help="Names of the classes, separated by commas; COCO's by default.")] = None,
    norm_eps: Annotated[
        float | None, typer.Option(help="Of torchvision's frozen norms; by default 0 for its published R-CNNs, else 1e-5.")
    ] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="A further argument, like short_px=640.")] = None,
) -> None:
    """Make a run of a checkpoint of torchvision, detectron2 or a system's authors."""
    from maskwright import api
    from maskwright.recipes.recipe import parse_assignments

    api.import_weights(
        weights,
        system=system,
        out=out,
        classes=None if classes is None else [name.strip() for name in classes.split(",")],
        norm_eps=norm_eps,
        arguments=parse_assignments(set_ or []),
        say=lambda text: console.print(text, highlight=False, soft_wrap=True),
    )
    console.print(f"imported into {out}: try 'maskwright predict {out} IMAGES --out pred/'", highlight=False, soft_wrap=True)


def _page_of(what: Path, data: Path, split: str) -> Path:
    """Where a page about a run folder, a weights file or a results file goes; that of the training stays as it is."""
    name = data.resolve().stem + ("-train" if split == "train" else "")
    return what / f"report-{name}.html" if what.is_dir() else what.with_name(f"{what.stem}.report.html")


def _limits(text: str) -> list[int]:
    try:
        limits = [int(part) for part in text.split(",")]
    except ValueError:
        limits = []
    if not limits or min(limits) < 1:
        raise ValueError(f"got --max-detections {text!r}, expected positive numbers separated by commas, for example 1,10,300")
    return limits


def main() -> None:
    """Run the command line; a user's mistake ends with its message and exit code 2."""
    try:
        app()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":
            raise
        print(f"error: lower batch_size or arguments.short_px, or raise micro_batches: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(f"error: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        sys.exit(2)
