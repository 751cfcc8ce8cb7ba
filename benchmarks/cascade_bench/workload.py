"""The images that every timing runs on: the same pixels, and the same files, for all of them.

In: labelled images, or the bundle alone. Out: a `Workload`. Labelled images are sampled with a
fixed seed, so that the mix of easy and hard ones is that of the data. Without data, the bundle's
few golden images are repeated: enough to time with, too few to say how many exit early.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
from PIL import Image

from cascade_calib.labelled import LabelledImages, Progress, load_pixels
from cascade_runtime.bundle import GOLDEN, SUMS
from cascade_runtime.cascade import Cascade
from cascade_runtime.container import open_container
from cascade_runtime.golden import load_golden
from cascade_runtime.preprocess import Pixels

MOST_IMAGES = 512
LEAST_TILED = 64
SEED = 0
Runtime = Literal["python", "native"]
"""Who is asked: `cascade_runtime` or libcascade."""


@dataclass(frozen=True)
class Workload:
    """N images twice over: as pixels that stage 0 takes, uint8 [N, H, W, 3], and as files."""

    pixels: Pixels
    files: tuple[Path, ...]
    description: str
    distinct: int

    def __len__(self) -> int:
        return len(self.files)

    def batch(self, index: int, size: int) -> Pixels:
        """The `index`-th batch of `size` images, going round when the images are used up."""
        start = index * size % len(self)
        if start + size <= len(self):
            return self.pixels[start : start + size]
        return self.pixels[np.arange(start, start + size) % len(self)]

    def mean_file_bytes(self) -> float:
        """The mean size of a file; decoding time goes with it."""
        return float(np.mean([file.stat().st_size for file in self.files]))


def bundle_sha256(path: Path) -> str:
    """One hash for a bundle: of its SHA256SUMS, which has those of all its other files."""
    return hashlib.sha256(open_container(path).read(SUMS)).hexdigest()


def split_read(data: str | None, split: str | None) -> str | None:
    """The split that is read: of a splits.json `val_test` unless told; nothing else has splits."""
    is_splits = data is not None and data.lower().endswith(".json")
    return split or ("val_test" if is_splits else None)


@contextmanager
def open_workload(
    cascade: Cascade, images: LabelledImages | None, progress: Progress | None = None
) -> Iterator[Workload]:
    """A `Workload` from `images`, or from the golden images; files it writes go when it ends.

    Raises:
        DataError: not one of the sampled images can be read.
    """
    if images is not None:
        yield _sampled(cascade, images, progress)
        return
    with TemporaryDirectory(prefix="cascade-bench-") as folder:
        yield _golden(cascade, Path(folder))


def _sampled(cascade: Cascade, images: LabelledImages, progress: Progress | None) -> Workload:
    order = np.random.default_rng(SEED).permutation(len(images))[:MOST_IMAGES]
    loaded = load_pixels(images.select(order), cascade.preprocess, progress=progress)
    files = tuple(images.root / name for name in loaded.names)
    description = f"{len(files)} of the {len(images)} images given, seed {SEED}"
    return Workload(loaded.pixels, files, description, len(files))


def _golden(cascade: Cascade, folder: Path) -> Workload:
    images = load_golden(cascade.bundle.read(GOLDEN)).images
    files = [folder / f"{index:03d}.png" for index in range(len(images))]
    for file, pixels in zip(files, images, strict=True):
        Image.fromarray(pixels).save(file)
    times = -(-LEAST_TILED // len(images))
    height, width = images.shape[1:3]
    return Workload(
        pixels=np.tile(images, (times, 1, 1, 1)),
        files=tuple(files * times),
        description=f"{len(images)} golden images of the bundle, repeated, as {width} x {height} "
        "PNG; give --data for the mix of easy and hard images that you have",
        distinct=len(images),
    )
