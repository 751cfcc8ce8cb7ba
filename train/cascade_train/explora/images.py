"""Images without labels: which are read, and which must never be.

In: a folder (searched with everything below it), a CSV or Parquet table with a column path, a
`splits.json` or the folder that holds one, or `roadworks:day` and the like. Out: uint8 pixels and
their hashes. Labels are not looked at. Of a `splits.json` only `train` is opened: a certificate is
about images that no part of training has seen, and pretraining is a part of training.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cascade_calib.labelled import (
    LabelledImages,
    Loaded,
    Progress,
    load_pixels,
    load_split_pixels,
    summarise,
)
from cascade_calib.listing import READABLE, images_below
from cascade_calib.splits_file import SPLITS_NAME, content_hash, read_splits
from cascade_calib.tables import csv_rows, parquet_rows
from cascade_runtime.errors import DataError
from cascade_runtime.manifest import Preprocess
from cascade_runtime.preprocess import Pixels, printable
from cascade_train.data.sources import source_folder


@dataclass(frozen=True)
class Unlabelled:
    """N images: pixels uint8 [N, H, W, 3], `pixels_sha256` of each, and what was said of them."""

    pixels: Pixels
    hashes: tuple[str, ...]
    summary: str

    def __len__(self) -> int:
        return len(self.hashes)

    @property
    def content_sha256(self) -> str:
        """The hash of the set, the same for every order."""
        return content_hash(self.hashes, [0] * len(self.hashes))


def read_unlabelled(
    source: str,
    spec: Preprocess,
    *,
    keep_out: Iterable[Path] = (),
    progress: Progress | None = None,
) -> Unlabelled:
    """Read the images to adapt to.

    Args:
        source: see the module.
        keep_out: further `splits.json` (or folders that hold one): an image whose pixels are
            those of one of their `val_select`, `val_calib` or `val_test` is left out, whatever it
            is called here.

    Raises:
        DataError: nothing there, no image, fewer than two left, or `train` has changed since it
            was split.
    """
    path = source_folder(source, progress)
    splits = _splits_file(path)
    if splits is not None:
        loaded = load_split_pixels(splits, "train", spec, progress=progress)
    else:
        loaded = load_pixels(_listed(path), spec, progress=progress, hashes=True)
    assert loaded.hashes is not None
    held: set[str] = set()
    for other in [*keep_out, *([splits] if splits else [])]:
        held |= held_out(other)
    kept = [i for i, digest in enumerate(loaded.hashes) if digest not in held]
    if len(kept) < 2:
        raise DataError(
            f"{printable(source)}: {len(kept)} of its {len(loaded)} images may be used (the "
            "others are held out for measuring); at least 2 are needed"
        )
    return _used(loaded, kept)


def held_out(path: Path) -> frozenset[str]:
    """`pixels_sha256` of every image of a `splits.json` that is not in `train`.

    Raises:
        DataError: no such file.
    """
    splits = read_splits(_splits_file(path) or path)
    return frozenset(entry.sha256 for entry in splits.entries if entry.split != "train")


def _splits_file(path: Path) -> Path | None:
    """The splits file that a source is, or that lies in it: a run folder stands for its split."""
    if path.is_dir():
        return path / SPLITS_NAME if (path / SPLITS_NAME).is_file() else None
    return path if path.suffix.lower() == ".json" else None


def _listed(path: Path) -> LabelledImages:
    """Every image of a folder or a table, all with label 0."""
    where, suffix = printable(str(path)), path.suffix.lower()
    if path.is_dir():
        root, names = path.absolute(), sorted(images_below(path))
    elif not path.exists():
        raise DataError(
            f"{where}: no such file or folder; give a folder of images, a .csv or .parquet file "
            "with a column path, or a splits.json"
        )
    elif suffix in (".csv", ".parquet", ".pq"):
        rows = csv_rows(path, ("path",)) if suffix == ".csv" else parquet_rows(path, ("path",))
        root, names = path.parent.absolute(), []
        for number, cells in rows:
            if not cells["path"].strip():
                raise DataError(f"{where}: row {number} has no path; fill it in")
            names.append(cells["path"])
        names = list(dict.fromkeys(names))
    else:
        raise DataError(
            f"{where}: expected a folder, a .csv or .parquet file, or a splits.json; not {suffix!r}"
        )
    if not names:
        raise DataError(f"{where}: holds no image ({', '.join(READABLE)})")
    labels = np.zeros(len(names), dtype=np.int8)
    return LabelledImages(root, tuple(names), labels, None, ("", ""))


def _used(loaded: Loaded, kept: list[int]) -> Unlabelled:
    summary = summarise(len(loaded), loaded.skipped)
    left_out = len(loaded) - len(kept)
    if left_out:
        summary += f"\n{left_out} left out: held out for measuring by a splits.json"
        loaded = loaded.select(kept)
    assert loaded.hashes is not None
    return Unlabelled(loaded.pixels, loaded.hashes, summary)
