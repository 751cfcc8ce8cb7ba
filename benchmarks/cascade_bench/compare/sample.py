"""The images of a comparison: everybody decides the same files, and is judged by the same labels.

In: labelled images. Out: a `Sample`, drawn with a fixed seed where there are too many. Images that
cannot be read are left out beforehand, so that nobody has to handle them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cascade_bench.workload import SEED
from cascade_calib.labelled import LabelledImages, Progress, load_pixels
from cascade_calib.listing import Int8
from cascade_runtime.cascade import Cascade
from cascade_runtime.preprocess import Pixels


@dataclass(frozen=True)
class Sample:
    """N images: files, pixels uint8 [N, H, W, 3], labels int8 [N], groups; `drawn` says of what."""

    files: tuple[Path, ...]
    pixels: Pixels
    labels: Int8
    groups: tuple[str, ...] | None
    drawn: str

    def __len__(self) -> int:
        return len(self.files)

    def block(self, start: int, count: int) -> tuple[list[Path], Pixels]:
        """`count` images from `start`, going round when the images are used up."""
        index = np.arange(start, start + count) % len(self)
        return [self.files[i] for i in index], self.pixels[index]

    def mean_file_bytes(self) -> float:
        """The mean size of a file; decoding time goes with it."""
        return float(np.mean([file.stat().st_size for file in self.files]))


def draw(
    cascade: Cascade, images: LabelledImages, most: int, name: str, progress: Progress | None
) -> Sample:
    """At most `most` of the images, in random order.

    Raises:
        DataError: not one of them can be read.
    """
    order = np.random.default_rng(SEED).permutation(len(images))[:most]
    loaded = load_pixels(images.select(order), cascade.preprocess, progress=progress)
    return Sample(
        files=tuple(images.root / path for path in loaded.names),
        pixels=loaded.pixels,
        labels=loaded.labels,
        groups=loaded.groups,
        drawn=f"{len(loaded)} of the {len(images)} images of {name}, seed {SEED}",
    )
