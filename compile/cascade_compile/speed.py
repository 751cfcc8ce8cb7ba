"""How fast several compiled cascades are on this machine, measured so that they can be compared.

In: loaded stages with the thresholds that they are likely to run with, and pixels of `val_select`.
Out: images a second of each whole cascade, early exits and all, as the median of rounds in which
every cascade has its turn: whatever slows the machine for a while slows all of them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

from cascade_calib.progress import Progress
from cascade_runtime.manifest import Decision
from cascade_runtime.preprocess import Pixels
from cascade_runtime.stages import Stages

ROUNDS = 7
MOST_IMAGES = 256
TURN_S = 2.0


@dataclass(frozen=True)
class Speed:
    """Images a second: the median, the slowest and the fastest round."""

    images_per_s: float
    slowest: float
    fastest: float


@dataclass(frozen=True)
class Timed:
    """What was measured, by name, on how many images, `batch` at a time."""

    speeds: dict[str, Speed]
    images: int
    batch: int
    rounds: int


def measure_speed(
    cascades: Mapping[str, tuple[Stages, Decision]],
    pixels: Pixels,
    batch: int,
    *,
    rounds: int = ROUNDS,
    progress: Progress | None = None,
) -> Timed:
    """Time all cascades on the same images in interleaved rounds.

    A slow cascade gets fewer images, and with it all of them, so that a turn takes seconds. The
    first pass of each is not counted: an engine prepares itself for every batch size that it meets.

    Args:
        pixels: uint8 [N, H, W, 3], N at least 1.
        batch: how many images are given at a time.
    """
    images = _affordable(cascades, pixels, batch)
    taken: dict[str, list[float]] = {name: [] for name in cascades}
    for turn in range(rounds + 1):
        names = list(cascades)
        for name in names if turn % 2 else reversed(names):
            seconds = _pass(*cascades[name], images, batch)
            if turn:
                taken[name].append(seconds)
        if progress is not None:
            progress("measuring speed", turn, rounds)
    speeds = {
        name: Speed(*(_three_digits(len(images) / f(s)) for f in (median, max, min)))
        for name, s in taken.items()
    }
    return Timed(speeds, len(images), batch, rounds)


def _affordable(
    cascades: Mapping[str, tuple[Stages, Decision]], pixels: Pixels, batch: int
) -> Pixels:
    """As many images as the slowest cascade does in a turn; whole batches where there are any."""
    most = min(MOST_IMAGES, len(pixels))
    for stages, decision in cascades.values():
        first = pixels[:batch]
        _pass(stages, decision, first, batch)  # a first time is no measure
        seconds = _pass(stages, decision, first, batch)
        most = min(most, int(TURN_S / max(seconds, 1e-9)) * len(first))
    return pixels[: max(most - most % batch, min(batch, len(pixels)))]


def _pass(stages: Stages, decision: Decision, pixels: Pixels, batch: int) -> float:
    """Seconds for all of these images."""
    started = time.perf_counter()
    for start in range(0, len(pixels), batch):
        stages.forward(pixels[start : start + batch], decision)
    return time.perf_counter() - started


def _three_digits(value: float) -> float:
    """No clock here is better than that, and equal figures are then ties."""
    return float(f"{value:.3g}")
