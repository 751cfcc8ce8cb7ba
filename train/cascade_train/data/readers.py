"""Where a batch's pixels come from: memory, or files that are decoded each time.

In: images of a split. Out: a `Reader`: it says how many there are and of what size, and gives the
pixels of any of them by number. The third kind, decoded once and mapped, is `decoded.Decoded`. A
reader is pickled into worker processes, so it holds no open file.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cascade_calib.labelled import LabelledImages, Loaded, pixels_sha256, read_labelled
from cascade_calib.splits_file import SPLITS_NAME, read_splits
from cascade_runtime.errors import DataError, ImageError
from cascade_runtime.manifest import Preprocess
from cascade_runtime.preprocess import decode_rgb, fit, printable

Rows = npt.NDArray[np.int64]


class Reader(Protocol):
    """N labelled images that can be read by number, in any process."""

    @property
    def labels(self) -> Tensor:
        """int64 [N]."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of what `read` gives."""

    def read(self, rows: Rows) -> Tensor:
        """The pixels of some images, uint8 [B, H, W, 3]; DataError names what cannot be read."""

    def share(self) -> None:
        """Make ready for worker processes: called once, before they start."""


class Memory:
    """Images that are all in memory."""

    def __init__(self, data: Loaded) -> None:
        self._pixels = torch.from_numpy(data.pixels)
        self.labels = torch.from_numpy(data.labels.astype(np.int64))
        self.size: tuple[int, int] = (data.pixels.shape[1], data.pixels.shape[2])

    def read(self, rows: Rows) -> Tensor:
        return self._pixels[torch.from_numpy(rows)]

    def share(self) -> None:
        """Move the pixels to shared memory, so that workers get them without a copy each."""
        if self._pixels.is_shared():
            return
        try:
            self._pixels = self._pixels.share_memory_()
        except RuntimeError as error:
            raise DataError(
                f"{self._pixels.nbytes / 2**30:.1f} GiB of images do not fit into shared memory "
                "(/dev/shm) for worker processes; use the cached decode, or no workers"
            ) from error


class Files:
    """Image files, decoded anew for each batch.

    Args:
        spec: the size and form that pixels are brought to.
        hashes: `pixels_sha256` of each image's full-size pixels; an image with others is refused.
    """

    def __init__(
        self, images: LabelledImages, spec: Preprocess, hashes: Sequence[str] | None = None
    ) -> None:
        if hashes is not None and len(hashes) != len(images):
            raise DataError(f"{len(images)} images and {len(hashes)} hashes do not go together")
        self._images, self._spec = images, spec
        self._hashes = None if hashes is None else tuple(hashes)
        self.labels = torch.from_numpy(images.labels.astype(np.int64))
        self.size: tuple[int, int] = (spec.height, spec.width)

    def read(self, rows: Rows) -> Tensor:
        """As `Reader.read`; every bad image of the batch is named, up to three."""
        out = np.empty((len(rows), *self.size, 3), dtype=np.uint8)
        bad = []
        for place, row in enumerate(rows.tolist()):
            try:
                self._one(row, out[place])
            except ImageError as error:
                bad.append(str(error))
        if bad:
            more = f" (and {len(bad) - 3} more)" if len(bad) > 3 else ""
            raise DataError(
                f"{'; '.join(bad[:3])}{more}. It was readable when the split was made: bring it "
                "back and resume, or split again"
            )
        return torch.from_numpy(out)

    def _one(self, row: int, out: npt.NDArray[np.uint8]) -> None:
        path = os.fspath(self._images.file(row))
        picture = decode_rgb(path, max_pixels=self._spec.max_pixels)
        expected = None if self._hashes is None else self._hashes[row]
        if expected is not None and pixels_sha256(np.asarray(picture)) != expected:
            raise ImageError(f"{printable(path)}: has other pixels than when it was split")
        out[:] = fit(picture, self._spec)

    def share(self) -> None:
        """Nothing to do: only names travel."""


def split_files(path: str | Path, split: str, spec: Preprocess) -> Files:
    """The images of one split of a `splits.json` (or of the one in a folder), read on the fly.

    Raises:
        DataError: no such split, or its folder is gone. Single files are looked at when read.
    """
    path = Path(path)
    path = path / SPLITS_NAME if path.is_dir() else path
    images = read_labelled(path, split=split)
    return Files(images, spec, [entry.sha256 for entry in read_splits(path).of(split)])
