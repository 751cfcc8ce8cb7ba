"""The engines that a stage can become: one module a backend, each with the same two names.

    PRECISIONS                             what this backend can be asked for
    build(onnx_file, folder, precision)    write the engine files, return their names, main first

In: the stage's float32 ONNX file. Out: engine files that `cascade_runtime.engines` loads. A new
backend is one new module here, one in `cascade_runtime.engines`, and one line in each registry.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

from cascade_runtime import engines
from cascade_runtime.errors import TargetError

TARGETS = {
    "onnxruntime": "cascade_compile.targets.onnx",
    "openvino": "cascade_compile.targets.openvino",
}


class Builder(Protocol):
    """What every module of this package offers."""

    PRECISIONS: tuple[str, ...]

    def build(self, onnx_file: Path, folder: Path, precision: str) -> list[str]: ...


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
    if len(parts) == 3 and parts[0] in TARGETS and parts[2] == "cpu":
        target = TargetName(*parts)
        if target.precision in builder(target.backend).PRECISIONS:
            return target
    known = ", ".join(
        f"{backend}/{precision}/cpu"
        for backend in TARGETS
        for precision in builder(backend).PRECISIONS
    )
    raise TargetError(f"target {name!r} cannot be built; choose from {known}")


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
