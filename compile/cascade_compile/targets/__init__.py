"""The engines that a stage can become: one module a backend, each with the same two names.

    TARGETS                                   the (precision, device) pairs it can be asked for
    build(source, folder, precision, device)  write the engine files of one stage

In: a `StageSource`, the stage as the export left it. Out: engine files that
`cascade_runtime.engines` loads. A new backend is one new module here, one that runs it, and one
line in each registry.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from cascade_runtime import engines
from cascade_runtime.errors import TargetError

TARGETS = {
    "onnxruntime": "cascade_compile.targets.onnx",
    "openvino": "cascade_compile.targets.openvino",
    "torchscript": "cascade_compile.targets.torchscript",
    "aot": "cascade_compile.targets.aot",
}


@dataclass(frozen=True)
class StageSource:
    """One stage as it comes out of the export.

    onnx_file: float32, `stageN.onnx`; over 2 GB with external data beside it.
    module: the same stage in torch, `stages.Stage`, float32 and in eval mode.
    samples: gives what the stage takes on some images of val_select, uint8 [K, H, W, 3] or float32
        [K, N, D]; for builders that must see activations.
    """

    index: int
    onnx_file: Path
    module: Any
    samples: Callable[[], npt.NDArray[np.generic]]


@dataclass(frozen=True)
class Built:
    """What a builder wrote: file names in its folder, the one to open first at the front.

    islands: layers that are computed in a wider type than the target's precision says.
    """

    files: tuple[str, ...]
    islands: tuple[str, ...] = ()


class Builder(Protocol):
    """What every module of this package offers."""

    TARGETS: tuple[tuple[str, str], ...]

    def build(self, source: StageSource, folder: Path, precision: str, device: str) -> Built: ...


@dataclass(frozen=True)
class TargetName:
    """`backend/precision/device`, taken apart."""

    backend: str
    precision: str
    device: str

    def __str__(self) -> str:
        return f"{self.backend}/{self.precision}/{self.device}"

    @property
    def folder(self) -> str:
        return str(self).replace("/", "-")


def parse(name: str) -> TargetName:
    """Read a target's name and check that it can be built.

    Raises:
        TargetError: not of the form, or nothing here builds it; the message lists what is.
    """
    parts = name.split("/")
    if len(parts) == 3 and parts[0] in TARGETS:
        target = TargetName(*parts)
        if (target.precision, target.device) in builder(target.backend).TARGETS:
            return target
    known = ", ".join(map(str, every_target()))
    raise TargetError(f"target {name!r} cannot be built; choose from {known}")


def every_target() -> tuple[TargetName, ...]:
    """All that can be built, here or elsewhere."""
    return tuple(TargetName(name, *pair) for name in TARGETS for pair in builder(name).TARGETS)


def default_targets() -> tuple[TargetName, ...]:
    """What is built when nothing is asked for: the best OpenVINO form that runs here, and ONNX."""
    quick = (TargetName("openvino", precision, "cpu") for precision in ("bf16", "fp32"))
    found = [name for name in quick if runs_here(name)][:1]
    return (*found, TargetName("onnxruntime", "fp32", "cpu"))


def runs_here(name: TargetName) -> bool:
    """Whether this machine can run the target, and so certify it."""
    return engines.backend(name.backend).unavailable(name.precision, name.device) is None


def builder(backend: str) -> Builder:
    """The module that builds for a backend."""
    return cast(Builder, import_module(TARGETS[backend]))
