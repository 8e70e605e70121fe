"""`maskwright demo`: the whole way on the nuclei that ship with the repository."""

import time
from pathlib import Path

from PIL import Image
from rich.console import Console

from maskwright import api
from maskwright.formats.catalog import open_split
from maskwright.reports import contact_sheet
from maskwright.reports.tables import metric_tables

EXAMPLES = Path(__file__).parent.parent / "examples" / "nuclei"
SYSTEM = "mask-rcnn-small"


def run_demo(out: Path, *, device: str, console: Console) -> None:
    """Train, evaluate, predict, draw; say what was done and where it is.

    Raises:
        ValueError: not run from a clone of the repository, or the folder is taken.
    """
    if not EXAMPLES.is_dir():
        raise ValueError(f"{EXAMPLES}: the examples are not here: run the demo in a clone of the repository")
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out}: the folder is not empty: remove it, or choose another with --out")
    began = time.monotonic()
    console.print(f"1. Fine-tune {SYSTEM} on 32 images of {EXAMPLES}, from the weights beside them.", highlight=False)
    api.train(
        SYSTEM,
        data=EXAMPLES,
        out=out,
        init=EXAMPLES / "weights.safetensors",
        changes=[
            "epochs=16",
            "evaluate_every=8",
            "optimizer.lr=0.0001",
            "schedule.warmup_steps=20",
            "augment.vertical_flip=0.5",
            "augment.transpose=0.5",
            "ema_decay=0.98",
        ],
        device=device,
        console=console,
    )
    console.print("2. Evaluate the best model on 16 validation images it never saw.")
    evaluation = api.evaluate(out, data=EXAMPLES, device=device, console=console)
    for table in metric_tables(evaluation.metrics):
        console.print(table)
    console.print("3. Predict them, and write pictures, outlines and COCO masks.")
    dataset = open_split(EXAMPLES, "val")
    val = [dataset.image_path(i) for i in range(len(dataset))]
    predictions = api.predict(
        out, val, out=out / "predictions", formats=("coco", "geojson", "png"), device=device, console=console
    )
    pictures = [Image.open(path) for path in predictions.written if path.suffix == ".png"]
    contact_sheet(pictures[:8], columns=4, tile_px=480).save(out / "overview.png")
    console.print(
        f"\nDone in {time.monotonic() - began:.0f} s: "
        f"{predictions.num_objects} nuclei found in {predictions.num_images} images.\n"
        f"  {out / 'overview.png'}: eight of them at a glance\n"
        f"  {out / 'predictions'}: a picture and a GeoJSON for each image, predictions.json with all masks\n"
        f"  {out / 'report.html'}: metrics with intervals, curves, errors, pictures\n"
        f"  {out / 'best'}: the model, for maskwright predict {out} IMAGES --out DIR",
        highlight=False,
    )
