"""TensorRT on an NVIDIA GPU, full or lean runtime, versions 10 and 11.

In: the bytes of `stageN.plan`. Out: an `Engine`. A plan is executable code and runs on one compute
capability, so it is refused before it is deserialised where its header or this machine do not fit;
without a GPU the library is not even imported, for its runtime object would end the process.
"""

from __future__ import annotations

import math
import re
import struct
import weakref
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt

from cascade_runtime.engines import cuda, nvinfer
from cascade_runtime.errors import TargetError

# sm*: any compute capability, sm87 for one; a target in a bundle names the one it was built for.
TARGETS = (("fp16", "sm*"), ("mixed", "sm*"))

_DEVICE = re.compile(r"sm\*|sm[0-9]{2,3}")
_MAGIC = 0x74727466
_HEADER = 28  # bytes up to the end of the version


def unavailable(precision: str, device: str) -> str | None:
    """Why this machine cannot run `precision` on `device`, or None."""
    precisions = [name for name, _ in TARGETS]
    if not any(find_spec(name) for name in nvinfer.MODULES):
        return "TensorRT is not installed; pip install tensorrt-cu13 cuda-bindings"
    if precision not in precisions or not _DEVICE.fullmatch(device):
        return f"tensorrt runs {precisions} on sm75 and later, not ({precision!r}, {device!r})"
    reason = cuda.missing()
    if reason is not None:
        return reason
    here = cuda.found()
    if device not in (here.capability, "sm*"):
        return (
            f"built for compute capability {device}, this GPU is {here.capability} ({here.name}); "
            "build engines for it with cascade-compile engines"
        )
    try:
        nvinfer.library()
    except TargetError as error:
        return str(error)
    return None


def device_here() -> str:
    """The device class of this machine's GPU, `sm87` for one; `sm*` where there is none."""
    return "sm*" if cuda.missing() else cuda.found().capability


def version() -> str:
    """The library and its version, as recorded beside measurements."""
    for name in ("tensorrt", "tensorrt-cu13", "tensorrt-cu12", "tensorrt-lean-cu13"):
        try:
            return f"tensorrt {installed_version(name)}"
        except PackageNotFoundError:
            continue
    return "tensorrt, not installed"


def load(
    files: Mapping[str, bytes],
    main: str,
    *,
    precision: str,
    device: str,
    threads: int | None,
) -> TensorRtEngine:
    """Deserialise one plan; see `engines.load`. `threads` means nothing to a GPU."""
    check_plan(files[main], main, nvinfer.version())
    gpu = cuda.found()
    gpu.use()
    return TensorRtEngine(nvinfer.Plan(files[main], main), gpu)


def plan_version(plan: bytes, what: str) -> tuple[int, ...]:
    """The TensorRT version that wrote a plan: major, minor, patch, build.

    Raises:
        TargetError: these bytes are no plan.
    """
    if len(plan) < _HEADER or struct.unpack_from("<II", plan) != (_MAGIC, 0):
        raise TargetError(f"{what}: is no TensorRT plan; build it with cascade-compile engines")
    return tuple(plan[24:_HEADER])


def check_plan(plan: bytes, what: str, library: tuple[int, ...]) -> None:
    """Refuse what this library cannot run, before it sees a byte of it.

    Plans are built version compatible: a later library runs them, an earlier major never does.

    Raises:
        TargetError: names both versions.
    """
    made_by = plan_version(plan, what)
    if made_by[0] > library[0]:
        both = ".".join(map(str, made_by)), ".".join(map(str, library))
        raise TargetError(
            f"{what}: the plan is of TensorRT {both[0]}, installed is {both[1]}, which cannot run "
            "it; upgrade TensorRT, or build the engines here with cascade-compile engines"
        )


class TensorRtEngine:
    """One plan; each call works in memory and on a stream that no other call uses meanwhile."""

    def __init__(self, plan: nvinfer.Plan, device: cuda.Device) -> None:
        self._plan, self._device = plan, device
        self._idle: list[_Lane] = []  # append and pop are atomic

    def run(self, batch: npt.NDArray[Any]) -> dict[str, npt.NDArray[np.float32]]:
        if len(batch) > self._plan.largest_batch:
            raise TargetError(
                f"a batch of {len(batch)}, the plan takes {self._plan.largest_batch} at most"
            )
        self._device.use()
        try:
            lane = self._idle.pop()
        except IndexError:
            lane = _Lane(self._plan, self._device)
        outputs = lane.run(batch)
        self._idle.append(lane)  # not after a failure: its state is unknown then
        return outputs


class _Lane:
    """Memory and a stream for one call at a time, and what is prepared for each batch size.

    A context of its own for every size, since a captured graph is only good while its context
    stays as it was. They run one after another here, so they share memory.
    """

    def __init__(self, plan: nvinfer.Plan, device: cuda.Device) -> None:
        self._plan, self._device = plan, device
        self._stream = device.stream()
        self._scratch = device.allocate(plan.scratch)
        self._places = {
            name: device.allocate(self._bytes(name)) for name in (plan.input, *plan.outputs)
        }
        taken = [self._scratch, *self._places.values()]
        # Given back when nobody holds the engine any more; at the end of the process by the driver.
        weakref.finalize(self, _free, device, taken).atexit = False
        self._ready: dict[int, tuple[nvinfer.Context, cuda.Graph | None]] = {}

    def run(self, batch: npt.NDArray[Any]) -> dict[str, npt.NDArray[np.float32]]:
        plan, device = self._plan, self._device
        given = cuda.contiguous(batch, plan.dtypes[plan.input])
        device.upload(self._places[plan.input], given, self._stream)
        if len(batch) not in self._ready:
            self._ready[len(batch)] = self._prepare(len(batch))
        context, graph = self._ready[len(batch)]
        if graph is None:
            context.enqueue(self._stream)
        else:
            graph.launch(self._stream)
        outputs = {
            name: np.empty(plan.shape(name, len(batch)), plan.dtypes[name]) for name in plan.outputs
        }
        for name, array in outputs.items():
            device.download(array, self._places[name], self._stream)
        device.wait(self._stream)
        return outputs

    def _prepare(self, batch: int) -> tuple[nvinfer.Context, cuda.Graph | None]:
        """A context for this batch size, run once, and its graph where that can be captured."""
        plan = self._plan
        context = plan.context(self._scratch)
        shape = plan.shape(plan.input, batch)
        context.prepare(self._stream, plan.input, shape, self._places)
        context.enqueue(self._stream)  # what is set up by the first run must not be captured
        self._device.wait(self._stream)
        graph = self._device.capture(self._stream, lambda: context.enqueue(self._stream))
        return context, graph

    def _bytes(self, name: str) -> int:
        shape = self._plan.shape(name, self._plan.largest_batch)
        return int(math.prod(shape) * self._plan.dtypes[name].itemsize)


def _free(device: cuda.Device, pointers: list[int]) -> None:
    device.use()
    for pointer in pointers:
        device.free(pointer)
