"""Run the compiled stages over labelled images and keep what every exit said.

In: the stages of one target and decoded images. Out: a `Collected`, from which thresholds are
proposed (`val_select`), certified (`val_calib`) or evaluated (`val_test`). The numbers come from
the engines that ship, never from the network they were made from (DESIGN, "Calibrate what ships").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from cascade_calib.progress import Progress
from cascade_runtime.decision import ExitOutputs, Int8
from cascade_runtime.errors import DataError

if TYPE_CHECKING:
    from cascade_calib.labelled import Loaded


class RunsEveryExit(Protocol):
    """What is needed of `cascade_runtime.stages.Stages`."""

    def forward_all(self, pixels: npt.NDArray[np.uint8]) -> list[ExitOutputs]:
        """Every exit's outputs for uint8 [B, H, W, 3], none stopping early."""
        ...


@dataclass(frozen=True)
class Collected:
    """Every exit's outputs for N labelled images.

    labels: int8 [N]; names and groups: N each; content_sha256: the hash of the images and labels,
    whatever their order.
    """

    exits: list[ExitOutputs]
    labels: Int8
    names: tuple[str, ...]
    content_sha256: str
    groups: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def not_finite(self) -> int:
        """How many images have a NaN or an infinity in any exit's outputs."""
        bad = np.zeros(len(self), dtype=np.bool_)
        for out in self.exits:
            bad |= ~(np.isfinite(out.logits).all(axis=1) & np.isfinite(out.gate))
        return int(bad.sum())


def collect(
    stages: RunsEveryExit,
    loaded: Loaded,
    progress: Progress | None = None,
    batch_size: int = 32,
) -> Collected:
    """Run every exit on every image, in batches.

    Args:
        progress: called as progress("images", done, total) after each batch.

    Raises:
        DataError: there is no image to run.
    """
    from cascade_calib.labelled import content_sha256

    total = len(loaded.pixels)
    if not total:
        raise DataError("no image to run: the data set is empty")
    batches: list[list[ExitOutputs]] = []
    for start in range(0, total, batch_size):
        batches.append(stages.forward_all(loaded.pixels[start : start + batch_size]))
        if progress is not None:
            progress("images", min(start + batch_size, total), total)
    exits = [
        ExitOutputs(
            np.concatenate([out.logits for out in parts]),
            np.concatenate([out.gate for out in parts]),
        )
        for parts in zip(*batches, strict=True)
    ]
    content = content_sha256(loaded.pixels, loaded.labels)
    return Collected(exits, loaded.labels, tuple(loaded.names), content, loaded.groups)
