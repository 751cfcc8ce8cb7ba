"""Which images there are and what they are called: folders, tables and splits files.

In: a folder with one sub-folder a class, a CSV or Parquet file of `path,label[,group]`, or a
`splits.json`. Out: `LabelledImages`, paths and labels only; no image is opened here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from cascade_calib.splits_file import SPLITS, read_splits
from cascade_calib.tables import COLUMNS, Row, csv_rows, parquet_rows, some
from cascade_runtime.errors import DataError
from cascade_runtime.preprocess import printable

Int8: TypeAlias = npt.NDArray[np.int8]

# Read by the decoder, and others that people have: listed so that they are refused by name.
# fmt: off
READABLE = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff",
            ".gif", ".ppm", ".pgm", ".pbm", ".pnm")
KNOWN = frozenset([*READABLE, ".heic", ".heif", ".avif", ".jp2", ".jxl", ".tga", ".ico", ".psd",
                   ".raw", ".dng"])
_SPLIT_NAMES = frozenset(["train", "training", "val", "valid", "validation", "test", "testing",
                          "dev", "eval"])
# fmt: on
_NOT_CLASSES = frozenset(["__MACOSX"])


@dataclass(frozen=True)
class LabelledImages:
    """N images by name: paths (posix, relative to `root`, or absolute) and labels int8 [N].

    `classes[label]` is a label's name; class 1 is the positive. `groups` says what must stay
    together (a video, a site), or is None.
    """

    root: Path
    paths: tuple[str, ...]
    labels: Int8
    groups: tuple[str, ...] | None
    classes: tuple[str, str]

    def __len__(self) -> int:
        return len(self.paths)

    def select(self, index: Sequence[int] | npt.NDArray[np.integer]) -> LabelledImages:
        """The images at `index`, in that order."""
        rows = [int(i) for i in index]
        groups = None if self.groups is None else tuple(self.groups[i] for i in rows)
        paths = tuple(self.paths[i] for i in rows)
        return LabelledImages(self.root, paths, self.labels[rows], groups, self.classes)

    def file(self, i: int) -> Path:
        """Where image `i` lies."""
        return self.root / self.paths[i]


def read_labelled(
    source: str | Path, *, split: str | None = None, positive: str | None = None
) -> LabelledImages:
    """List the labelled images of a folder, a table or a splits file.

    Args:
        source: a folder with two class sub-folders (or with `train`, `test` and the like that
            each hold those two, read as one), a `.csv` or `.parquet` file with the columns
            path, label and perhaps group (paths relative to the file), or a `splits.json`.
        split: for a `splits.json`, which split; None takes all of them.
        positive: the label of class 1; default the later one in sorting order.

    Raises:
        DataError: nothing there, no image, not exactly two classes, or a row that does not fit.
    """
    path, where = Path(source), printable(str(source))
    suffix = path.suffix.lower()
    if not path.exists():
        raise DataError(
            f"{where}: no such file or folder; give a folder with two class "
            "sub-folders, a .csv or .parquet file, or a splits.json"
        )
    if not path.is_dir() and suffix == ".json":
        return _from_splits(path, split, positive)
    if split is not None:
        raise DataError(
            f"{where}: split {split!r} was asked for, but only a splits.json has splits"
        )
    if path.is_dir():
        return _from_folder(path, positive)
    if suffix == ".csv":
        return _from_rows(path, csv_rows(path), positive)
    if suffix in (".parquet", ".pq"):
        return _from_rows(path, parquet_rows(path), positive)
    raise DataError(
        f"{where}: expected a folder, a .csv or .parquet file, or a splits.json; not {suffix!r}"
    )


def _from_splits(path: Path, split: str | None, positive: str | None) -> LabelledImages:
    splits, where = read_splits(path), printable(str(path))
    if split is not None and split not in SPLITS:
        raise DataError(f"{where}: no split {split!r}; there are {', '.join(SPLITS)}")
    if positive not in (None, splits.classes[1]):
        raise DataError(
            f"{where}: positive {positive!r} was asked for, but the file was made with "
            f"{splits.classes[1]!r}"
        )
    entries = splits.entries if split is None else splits.of(split)
    if not entries:
        raise DataError(f"{where}: split {split!r} holds no image")
    root = path.parent / splits.root
    if not root.is_dir():
        raise DataError(
            f"{where}: the folder of its images, {printable(str(root))}, is not there; correct "
            "the field root"
        )
    grouped = entries[0].group is not None
    return LabelledImages(
        root=root,
        paths=tuple(entry.path for entry in entries),
        labels=np.array([entry.label for entry in entries], dtype=np.int8),
        groups=tuple(entry.group or "" for entry in entries) if grouped else None,
        classes=splits.classes,
    )


def _from_folder(root: Path, positive: str | None) -> LabelledImages:
    parts = _class_parts(root)
    names = sorted(parts)
    classes = _order(names, positive, printable(str(root)))
    found: list[tuple[str, int]] = []
    for label, name in enumerate(classes):
        inside = [
            (f"{part}/{rest}", label) for part in parts[name] for rest in images_below(root, part)
        ]
        if not inside:
            raise DataError(
                f"{printable(str(root))}: the class folder {printable(name)} holds no image "
                f"({', '.join(READABLE)})"
            )
        found += inside
    found.sort()
    labels = np.array([label for _, label in found], dtype=np.int8)
    return LabelledImages(root.absolute(), tuple(path for path, _ in found), labels, None, classes)


def _class_parts(root: Path) -> dict[str, list[str]]:
    """Both class names, and each one's folders below `root`.

    One folder a class, or the same two in each of `train`, `test` and the like: those are taken
    together, since the splits are drawn anew.
    """
    where = printable(str(root))
    names = _folders(root)
    if len(names) > 1 and all(name.lower() in _SPLIT_NAMES for name in names):
        inner = {name: _folders(root / name) for name in names}
        first = inner[names[0]]
        if len(first) == 2 and all(found == first for found in inner.values()):
            return {label: [f"{name}/{label}" for name in names] for label in first}
        raise DataError(
            f"{where}: the sub-folders {some(names)} look like splits, not classes, and do not "
            "each hold the same two class folders; give one that does"
        )
    if len(names) != 2:
        raise DataError(
            f"{where}: expected exactly two sub-folders, one a class; found {len(names)} "
            f"({some(names)})"
        )
    return {name: [name] for name in names}


def _folders(root: Path) -> list[str]:
    return sorted(
        entry.name
        for entry in root.iterdir()
        if entry.is_dir() and not entry.name.startswith(".") and entry.name not in _NOT_CLASSES
    )


def images_below(root: Path, part: str = ".") -> Iterator[str]:
    """Posix paths below `root/part`, from there, that are called like an image.

    Links are followed, but a folder is entered only once and the data set's own never again.
    """
    top = root / part
    entered = set() if part == "." else {_identity(root)}
    for folder, inner, files in os.walk(top, followlinks=True):
        if _identity(Path(folder)) in entered:
            inner.clear()
            continue
        entered.add(_identity(Path(folder)))
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        for name in files:
            if not name.startswith(".") and Path(name).suffix.lower() in KNOWN:
                yield (Path(folder) / name).relative_to(top).as_posix()


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _from_rows(path: Path, rows: Iterator[Row], positive: str | None) -> LabelledImages:
    where = printable(str(path))
    seen: dict[str, int] = {}  # path -> its row
    values: dict[str, int] = {}  # label -> the row that first has it
    labels: list[str] = []
    groups: list[str] = []
    for number, cells in rows:
        for column in COLUMNS:
            if not cells.get(column, "given").strip():
                advice = "fill it in" + (", or leave the column out" if column == "group" else "")
                raise DataError(f"{where}: row {number} has no {column}; {advice}")
        name, label = cells["path"], cells["label"].strip()
        if name in seen:
            raise DataError(
                f"{where}: row {number} lists {name!r} again, first in row {seen[name]}; keep one"
            )
        if label not in values and len(values) == 2:
            known = " and ".join(f"{text!r} (row {row})" for text, row in values.items())
            raise DataError(f"{where}: row {number} has a third label, {label!r}, after {known}")
        seen[name] = number
        values.setdefault(label, number)
        labels.append(label)
        if "group" in cells:
            groups.append(cells["group"].strip())
    if not seen:
        raise DataError(f"{where}: lists no image below its header")
    if len(values) != 2:
        raise DataError(f"{where}: every label is {labels[0]!r}, expected two different ones")
    classes = _order(list(values), positive, where)
    return LabelledImages(
        root=path.parent.absolute(),
        paths=tuple(seen),
        labels=np.array([classes.index(label) for label in labels], dtype=np.int8),
        groups=tuple(groups) or None,
        classes=classes,
    )


def _order(names: list[str], positive: str | None, where: str) -> tuple[str, str]:
    """Both class names, the positive last; whole numbers sort by value."""
    try:
        first, second = sorted(names, key=int)
    except ValueError:
        first, second = sorted(names)
    if positive is None or positive == second:
        return first, second
    if positive == first:
        return second, first
    raise DataError(f"{where}: no class {positive!r} to be positive; there are {some(names)}")
