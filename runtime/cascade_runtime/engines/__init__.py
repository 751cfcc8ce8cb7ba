"""The engines that a target can run on: one module a backend, each with the same functions.

    TARGETS                                     the (precision, device) pairs it can be asked for
    unavailable(precision, device)              why it cannot run here, or None
    load(files, main, *, precision, device, threads)   an `Engine` from bytes already verified
    version()                                   the library and its version

A new backend is one new module and one line in `BACKENDS`, or, for one that lives outside this
package (torch's), an entry point of the group `cascade_edge.engines`. Modules are imported when
first used, and the engine library only by `load` and `unavailable`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import numpy.typing as npt

from cascade_runtime.errors import TargetError
from cascade_runtime.manifest import Target

BACKENDS = {
    "onnxruntime": "cascade_runtime.engines.onnxruntime",
    "openvino": "cascade_runtime.engines.openvino",
    "tensorrt": "cascade_runtime.engines.tensorrt",
}


class Engine(Protocol):
    """One stage, ready to run; safe to call from several threads at once."""

    def run(self, batch: npt.NDArray[Any]) -> dict[str, npt.NDArray[np.float32]]:
        """Run one batch.

        Args:
            batch: uint8 [B, H, W, 3] where the stage takes pixels, else float32 [B, N, D].

        Returns:
            `logits` [B, 2], `gate` [B] and, where the next stage takes them, `tokens` [B, N, D];
            float32, and no view of memory that the next run writes to.
        """
        ...


@runtime_checkable
class Divisible(Protocol):
    """An engine that has a second form, for callers that run at the same time."""

    def side_by_side(self) -> Engine | None:
        """The same stage, run on one thread a caller, outputs equal to the last bit.

        Callers that each have a batch of their own do not wait for each other at every layer.
        None where it would cost too much memory, or there is one thread alone. The same object at
        every call; it is made at the first, and takes as much memory again.
        """
        ...


class Backend(Protocol):
    """What every module of this package offers."""

    TARGETS: tuple[tuple[str, str], ...]

    def unavailable(self, precision: str, device: str) -> str | None: ...

    def load(
        self,
        files: Mapping[str, bytes],
        main: str,
        *,
        precision: str,
        device: str,
        threads: int | None,
    ) -> Engine: ...

    def version(self) -> str: ...


def backend(name: str) -> Backend:
    """The module of a backend.

    Raises:
        TargetError: this version knows no backend of that name.
    """
    if name not in known():
        raise TargetError(_unknown(name))
    return cast(Backend, import_module(known()[name]))


@cache
def known() -> dict[str, str]:
    """Every backend of this installation, by name: its module."""
    found = {point.name: point.value for point in entry_points(group="cascade_edge.engines")}
    return found | BACKENDS


def unavailable(target: Target) -> str | None:
    """Why this machine cannot run `target`, with the fix where there is one; None if it can."""
    if target.backend not in known():
        return _unknown(target.backend)
    return backend(target.backend).unavailable(target.precision, target.device)


def load(
    name: str,
    files: Mapping[str, bytes],
    main: str,
    *,
    precision: str,
    device: str,
    threads: int | None = None,
) -> Engine:
    """Deserialise one stage on backend `name`.

    Args:
        files: every engine file of the stage by bundle path; the bytes whose hash was checked.
        main: the one of `files` to open first.
        threads: how many CPU threads the engine may use; None leaves it to the engine.

    Raises:
        TargetError: not available here, or the engine library refuses the files.
    """
    module = backend(name)
    reason = module.unavailable(precision, device)
    if reason is not None:
        raise TargetError(f"{name}/{precision}/{device} cannot run here: {reason}")
    return module.load(files, main, precision=precision, device=device, threads=threads)


def _unknown(name: str) -> str:
    names = ", ".join(sorted(known()))
    return f"no backend {name!r} in this version (known: {names}); upgrade cascade-edge"
