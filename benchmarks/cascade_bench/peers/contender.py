"""One who takes part in a comparison, and what all of them are made from.

In: files and a batch size. Out: decisions. A contender that has no way of its own from files to
pixels gets the bundle's: decoded with Pillow by as many threads as the bundle decodes with, and
brought to size by the same function, so that all of them see the same pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from cascade_runtime.manifest import Preprocess
from cascade_runtime.preprocess import Pixels, load_image

if TYPE_CHECKING:
    from cascade_bench.peers.network import Whole
    from cascade_train.exits import CascadeModel

Labels: TypeAlias = npt.NDArray[np.int8]
Logits: TypeAlias = npt.NDArray[np.float32]
Classify: TypeAlias = Callable[[Sequence[Path], int], Labels]
Forward: TypeAlias = Callable[[Pixels], object]
DEFERRED = -1


@dataclass(frozen=True)
class Contender:
    """Something that decides images.

    note: how it is run, in a few words.
    classify: from files, taken in batches of a size, to labels int8 [N], `DEFERRED` for none.
    forward: the engine alone on uint8 [N, H, W, 3]; None where it cannot be called alone.
    close: ends what it started; may be called again.
    """

    name: str
    note: str
    classify: Classify
    forward: Forward | None
    close: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Absent:
    """Something that cannot take part here, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Given:
    """What peers are made from: the trained network run to its last exit, and its input.

    threads: of an engine, and of decoding. folder: where files may be written.
    """

    network: CascadeModel
    preprocess: Preprocess
    classes: tuple[str, str]
    threads: int
    folder: Path

    @cached_property
    def whole(self) -> Whole:
        """The network without a cut."""
        from cascade_bench.peers.network import Whole

        return Whole(self.network).eval()

    @cached_property
    def plain_onnx(self) -> Path:
        """The network as one ONNX file; made once."""
        from cascade_bench.peers.network import export

        path = self.folder / "plain.onnx"
        export(self.whole, self.preprocess, path)
        return path


def batches(files: Sequence[Path], batch: int, given: Given) -> Iterator[Pixels]:
    """The files' pixels, uint8 [batch, H, W, 3] at a time."""
    with ThreadPoolExecutor(given.threads) as pool:
        for start in range(0, len(files), batch):
            some = pool.map(lambda file: load_image(file, given.preprocess), files[start:][:batch])
            yield np.stack(list(some))


def decoding(given: Given, forward: Callable[[Pixels], Logits], *, pad: bool = False) -> Classify:
    """A way from files to labels for an engine that takes pixels: the larger logit wins.

    Args:
        pad: fill a last, smaller batch up, for an engine that is compiled for one size.
    """

    def classify(files: Sequence[Path], batch: int) -> Labels:
        labels = []
        for pixels in batches(files, batch, given):
            lacking = batch - len(pixels) if pad else 0
            full = np.concatenate([pixels, pixels[:1].repeat(lacking, 0)]) if lacking else pixels
            labels.append(as_labels(forward(full)[: len(pixels)]))
        return np.concatenate(labels)

    return classify


def as_labels(logits: Logits) -> Labels:
    """The class of the larger logit, int8 [N]."""
    return np.asarray(logits.argmax(axis=1), dtype=np.int8)
