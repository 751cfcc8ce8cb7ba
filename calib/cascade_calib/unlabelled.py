"""Images whose labels nobody knows, or asks: any folder, a table of paths, a split.

In: a folder of images at any depth, a CSV or Parquet file with the column path (and perhaps
group), or a `splits.json`. Out: `LabelledImages` whose labels are all 0 and mean nothing; a folder
in the order of its names, a table in the order of its rows.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cascade_calib.listing import READABLE, LabelledImages, images_below, read_labelled
from cascade_calib.tables import csv_rows, parquet_rows
from cascade_runtime.errors import DataError
from cascade_runtime.preprocess import printable

NEEDED = ("path",)


def read_unlabelled(source: str | Path, *, split: str | None = None) -> LabelledImages:
    """List images, leaving out whatever is said about their labels.

    Raises:
        DataError: nothing there, no image, or a splits.json without a split chosen: its `train`
            images are not drawn as new ones are, for the network knows them.
    """
    path, where = Path(source), printable(str(source))
    suffix = path.suffix.lower()
    if path.is_dir():
        root, paths, groups = path, tuple(sorted(images_below(path))), None
    elif path.is_file() and suffix in (".csv", ".parquet", ".pq"):
        rows = csv_rows(path, NEEDED) if suffix == ".csv" else parquet_rows(path, NEEDED)
        cells = [row for _, row in rows]
        root, paths = path.parent, tuple(row["path"] for row in cells)
        groups = tuple(row["group"] for row in cells) if cells and "group" in cells[0] else None
    else:  # a splits.json, or nothing that can be read, which says so
        if suffix == ".json" and split is None:
            raise DataError(f"{where}: say which of its splits, val_test for one")
        found = read_labelled(path, split=split)
        root, paths, groups = found.root, found.paths, found.groups
    if not paths:
        raise DataError(f"{where}: holds no image ({', '.join(READABLE)})")
    nothing = np.zeros(len(paths), dtype=np.int8)
    return LabelledImages(root.absolute(), paths, nothing, groups, ("0", "1"))
