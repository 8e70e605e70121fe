"""A format of somebody else's: FOLDER/train.csv and val.csv beside pictures/, a rectangle or run lengths on each line.

picture,height,width,kind,left,top,right,bottom,runs
a.png,96,128,box,10,20,40,60,
a.png,96,128,disc,,,,,"[500, 12, 84, 14, 11678]"
"""

import csv
import json
from pathlib import Path

from maskwright.formats import Categories, DatasetBuilder, Format, ObjectRecord, Source, mask_of_polygons, mask_of_rle

KINDS = Categories(names=("box", "disc"), ids=(7, 3))
COLUMNS = ["picture", "height", "width", "kind", "left", "top", "right", "bottom", "runs"]


def find(data, split, *, keypoints):
    table = data / f"{split}.csv"
    return Source(table, data / "pictures") if table.is_file() else None


def read(path: Path, image_folder: Path, *, classes=None, invalid="stop"):
    with path.open(newline="") as file:
        table = csv.DictReader(file)
        rows = list(table)
    if table.fieldnames != COLUMNS:
        raise ValueError(f"{path}: its columns are {table.fieldnames}, expected {COLUMNS}")
    builder = DatasetBuilder(path, image_folder, KINDS, classes=classes, invalid=invalid)
    pictures = {row["picture"]: number for number, row in enumerate(rows)}
    for name, number in pictures.items():
        with builder.noting(f"picture {name}"):
            builder.add_image(number, name, (int(rows[number]["height"]), int(rows[number]["width"])))
    for line, row in enumerate(rows, start=2):
        with builder.noting(f"line {line}"):
            kind = KINDS.ids[KINDS.names.index(row["kind"])]
            place = builder.admit(line, image_id=pictures[row["picture"]], category_id=kind)
            if place is not None:
                builder.add(place, ObjectRecord(mask=mask_of(row, place.size)))
    return builder.build()


def mask_of(row, size):
    if row["runs"]:
        return mask_of_rle({"size": size, "counts": json.loads(row["runs"])}, size)
    x1, y1, x2, y2 = (float(row[side]) for side in ("left", "top", "right", "bottom"))
    return mask_of_polygons([[x1, y1, x2, y1, x2, y2, x1, y2]], size)


RECTANGLES = Format(
    name="rectangles",
    layout="rectangles' {split}.csv with pictures/",
    find=find,
    read=read,
    owns_file=lambda path: path.suffix == ".csv",
)
