"""The engines that a stage can become: one module a backend, each with the same two names.

    TARGETS                                   the (precision, device) pairs it can be asked for
    build(source, folder, precision, device)  write the engine files of one stage

A backend whose engines are finished on the device they run on has two more (`recipes`):

    prepare(source, folder, precision)         write what can be written anywhere
    finish(source, folder, precision, device)  make engine files of that, on the device

In: a `StageSource`, the stage as the export left it. Out: engine files that
`cascade_runtime.engines` loads. A new backend is one new module here, one that runs it, and one
line in each registry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
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
    "tensorrt": "cascade_compile.targets.tensorrt",
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
    figures: what the engine is made of, as far as its library tells.
    """

    files: tuple[str, ...]
    islands: tuple[str, ...] = ()
    figures: dict[str, float] = field(default_factory=dict)


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

    @property
    def anywhere(self) -> bool:
        """Whether no device is named, since there is none here: then only a recipe can be built."""
        return self.device.endswith("*")


def parse(name: str) -> TargetName:
    """Read a target's name and check that it can be built.

    Where a backend builds for a family of devices, `backend/precision` names the one that is here.

    Raises:
        TargetError: not of the form, or nothing here builds it; the message lists what is.
    """
    parts = name.split("/")
    if len(parts) == 2 and parts[0] in TARGETS and has_families(parts[0]):
        parts.append(device_here(parts[0]))
    if len(parts) == 3 and parts[0] in TARGETS:
        target = TargetName(*parts)
        if any(
            target.precision == precision and fits(target.device, device)
            for precision, device in builder(target.backend).TARGETS
        ):
            return target
    known = ", ".join(map(str, every_target()))
    raise TargetError(f"target {name!r} cannot be built; choose from {known}")


def sort_out(
    names: Iterable[str], recipes: Iterable[str]
) -> tuple[tuple[TargetName, ...], tuple[str, ...]]:
    """Targets to build here, and recipes for other devices: what was asked for as one, and targets
    whose device is not here.

    Raises:
        TargetError: a target that nothing builds.
    """
    asked = [parse(name) for name in dict.fromkeys(names)]
    later = [f"{name.backend}/{name.precision}" for name in asked if name.anywhere]
    here = tuple(name for name in asked if not name.anywhere)
    return here, tuple(dict.fromkeys((*recipes, *later)))


def fits(device: str, family: str) -> bool:
    """Whether a device is the one that a builder names, or of its family: sm87 of `sm*`."""
    stem = family.removesuffix("*")
    rest = device.removeprefix(stem)
    return device == family or (stem != family and rest != device and rest.isdigit())


def has_families(backend: str) -> bool:
    """Whether a backend builds for whatever device is there."""
    return any(device.endswith("*") for _, device in builder(backend).TARGETS)


def device_here(backend: str) -> str:
    """The device of this machine that a backend computes on."""
    here = getattr(engines.backend(backend), "device_here", None)
    return "cpu" if here is None else str(here())


def every_target() -> tuple[TargetName, ...]:
    """All that can be built, here or elsewhere; of a family of devices, the one that is here."""
    return tuple(
        TargetName(name, precision, device_here(name) if device.endswith("*") else device)
        for name in TARGETS
        for precision, device in builder(name).TARGETS
    )


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
