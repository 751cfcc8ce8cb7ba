"""What a library's profiler says of a stage, in one form for all of them.

In: the modules `openvino` and `onnxruntime`, each with `gemm_files` and `profile`. Out: `Layer`s.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Protocol

import numpy as np
import numpy.typing as npt

from cascade_bench.roofline.gemm import Gemm
from cascade_runtime.errors import TargetError

LIBRARIES = ("openvino", "onnxruntime")
RUNS = 7
WARM = 2


@dataclass(frozen=True)
class Layer:
    """One node of the graph as the library runs it, over one batch.

    kind: the library's own word. precision: what it computes in. seconds: of the clock on the wall:
    where parts of a batch run side by side, their times over how many do. traffic: bytes of
    inputs, weights and outputs, moved once.
    """

    name: str
    kind: str
    precision: str
    seconds: float
    flops: float
    traffic: float


class Library(Protocol):
    """What `openvino` and `onnxruntime` are."""

    def gemm_files(self, gemm: Gemm, precision: str) -> dict[str, bytes]:
        """Engine files of a chain, by name; the one to open is the first."""
        ...

    def profile(
        self,
        files: Mapping[str, bytes],
        main: str,
        batch: npt.NDArray[np.generic],
        *,
        precision: str,
        threads: int | None,
    ) -> list[list[Layer]]:
        """The layers of a stage, over several runs of one batch."""
        ...


def library(backend: str) -> Library:
    """The module of a backend.

    Raises:
        TargetError: this backend has no profiler that we read.
    """
    if backend not in LIBRARIES:
        raise TargetError(
            f"roofline reads the profilers of {' and '.join(LIBRARIES)}, not {backend}'s; "
            "choose another --target"
        )
    module: Library = import_module(f"cascade_bench.roofline.{backend}")
    return module


def over(seconds: float, runs: Sequence[Sequence[Layer]]) -> tuple[Layer, ...]:
    """Each layer's part of `seconds`: the median of its share of the runs' times.

    A run as a whole is as fast as the machine is at that moment, and slower for being profiled;
    what a layer's share of it is depends on neither.
    """
    shares: dict[str, list[float]] = {}
    for run in runs:
        whole = total(run)
        for layer in run:
            shares.setdefault(layer.name, []).append(layer.seconds / whole)
    middle = {name: statistics.median(found) for name, found in shares.items()}
    kept = {layer.name: layer for run in reversed(runs) for layer in run}
    scale = seconds / sum(middle.values())
    return tuple(replace(kept[name], seconds=scale * share) for name, share in middle.items())


def total(layers: Iterable[Layer]) -> float:
    """Seconds of all of them."""
    return sum(layer.seconds for layer in layers)
