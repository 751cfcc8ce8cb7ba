"""From a data source to the four splits in memory, each image decoded once.

In: a folder, a CSV or Parquet table, or the name of a rendered set (`roadworks:day`). Out:
`splits.json`, and for each split its uint8 pixels and labels. Later runs read the same splits
back with `load_split_pixels`, which refuses images that have changed since.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cascade_calib.labelled import (
    LabelledImages,
    Loaded,
    Progress,
    load_pixels,
    load_split_pixels,
    read_labelled,
    summarise,
)
from cascade_calib.splits_file import SPLITS_NAME, content_hash
from cascade_runtime.errors import DataError
from cascade_runtime.manifest import Preprocess
from cascade_runtime.preprocess import printable
from cascade_train.data import rendered
from cascade_train.data.splits import (
    DEFAULT_FRACTIONS,
    SPLITS,
    Entry,
    Skipped,
    Splits,
    conflicts,
    make_splits,
    read_splits,
    write_splits,
)

__all__ = ["SPLITS_NAME", "Prepared", "load_split_pixels", "load_splits", "prepare"]


@dataclass(frozen=True)
class Prepared:
    """A data set ready for training: the splits and, for each by name, its pixels."""

    splits: Splits
    pixels: dict[str, Loaded]

    def summary(self) -> str:
        """How many images were read, and the skipped ones by reason."""
        return summarise(len(self.splits.entries), self.splits.skipped)


def source_folder(source: str, progress: Progress | None = None) -> Path:
    """Where the images of a source are; a rendered set is rendered first."""
    if rendered.is_rendered(source):
        return rendered.rendered_folder(rendered.parse(source), progress=progress)
    return Path(source)


def prepare(
    source: str,
    out: Path,
    spec: Preprocess,
    *,
    fractions: Mapping[str, float] = DEFAULT_FRACTIONS,
    seed: int = 0,
    positive: str | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Prepared:
    """Read a labelled source, draw its four splits and write `out/splits.json`.

    Args:
        source: a folder with two class sub-folders, a `.csv` or `.parquet` file, or
            `roadworks:day` or `roadworks:night`, with `?n=8000&seed=1` where wanted.
        out: the folder that `splits.json` is written to.
        spec: the size and form that the pixels are brought to.
        positive: the name of class 1; default the later one in sorting order.
        progress: told (what, done, total) as the work goes on.

    Raises:
        ConfigError: the name of a rendered set or the fractions do not fit.
        DataError: no usable images, or too few for four splits with both classes.
    """
    path = source_folder(source, progress)
    if path.suffix.lower() == ".json":
        raise DataError(
            f"{printable(source)}: is already split; read it with load_split_pixels, or give the "
            "folder or table that it was made from"
        )
    images = read_labelled(path, positive=positive)
    loaded = load_pixels(images, spec, workers=workers, progress=progress, hashes=True)
    splits = _split(loaded, images, source=source, fractions=fractions, seed=seed)
    write_splits(splits, out / SPLITS_NAME)
    where = {name: i for i, name in enumerate(loaded.names)}
    pixels = {
        split: loaded.select([where[entry.path] for entry in splits.of(split)]) for split in SPLITS
    }
    return Prepared(splits, pixels)


def _split(
    loaded: Loaded,
    images: LabelledImages,
    *,
    source: str,
    fractions: Mapping[str, float],
    seed: int,
) -> Splits:
    """Split what was loaded (with `hashes`) and put it down as the structure of `splits.json`."""
    assert loaded.hashes is not None, "load_pixels(..., hashes=True)"
    clashing = conflicts(loaded.hashes, loaded.labels)
    kept = [i for i in range(len(loaded)) if i not in clashing]
    if not kept:
        raise DataError(
            f"{printable(source)}: every image has a copy with the other label; check the labels"
        )
    used = loaded.select(kept)
    assert used.hashes is not None
    chosen = LabelledImages(images.root, used.names, used.labels, used.groups, images.classes)
    names = make_splits(chosen, used.hashes, fractions=fractions, seed=seed)
    entries = sorted(
        (
            Entry(
                path=used.names[i],
                label=int(used.labels[i]),
                split=names[i],
                sha256=used.hashes[i],
                group=None if used.groups is None else used.groups[i],
            )
            for i in range(len(used))
        ),
        key=lambda entry: entry.path,
    )
    clashes = (
        Skipped(loaded.names[i], f"the same pixels as {loaded.names[j]}, with the other label")
        for i, j in clashing.items()
    )
    return Splits(
        source=source,
        root=images.root.as_posix(),
        classes=images.classes,
        seed=seed,
        fractions={split: float(fractions[split]) for split in SPLITS},
        content_sha256={
            split: content_hash(
                [entry.sha256 for entry in entries if entry.split == split],
                [entry.label for entry in entries if entry.split == split],
            )
            for split in SPLITS
        },
        entries=tuple(entries),
        skipped=tuple(sorted([*loaded.skipped, *clashes], key=lambda item: item.path)),
    )


def load_splits(path: str | Path) -> Splits:
    """Read a `splits.json`, or the one in a folder."""
    path = Path(path)
    return read_splits(path / SPLITS_NAME if path.is_dir() else path)
