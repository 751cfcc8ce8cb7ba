"""One NVIDIA GPU: memory, streams, copies and captured graphs, behind a small interface.

In: what `cuda-bindings` or, where that is what the machine has (Jetson images), `pycuda` offers.
Out: a `Device`. Pointers and streams are plain integers, as TensorRT takes them. Nothing here is
touched before the driver has said that there is a GPU.
API: nvidia.github.io/cuda-python (cuda.bindings.runtime), documen.tician.de/pycuda.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cascade_runtime.errors import TargetError

INSTALL = "pip install cuda-bindings (on a Jetson image: pycuda)"
Array = npt.NDArray[Any]


class Graph(Protocol):
    """Work captured once, launched as one call."""

    def launch(self, stream: int) -> None: ...


class Device(Protocol):
    """The first GPU that this process sees."""

    name: str
    capability: str  # "sm87"

    def use(self) -> None:
        """Make the device current in the calling thread; before anything else in that thread."""
        ...

    def stream(self) -> int: ...

    def allocate(self, size: int) -> int:
        """Device memory of `size` bytes, aligned to 256; freed with the process or by `free`."""
        ...

    def free(self, pointer: int) -> None: ...

    def upload(self, pointer: int, array: Array, stream: int) -> None:
        """Copy a contiguous array in; it must stay as it is until `wait`."""
        ...

    def download(self, array: Array, pointer: int, stream: int) -> None:
        """Copy out into a contiguous array, which holds the values after `wait`."""
        ...

    def wait(self, stream: int) -> None: ...

    def capture(self, stream: int, enqueue: Callable[[], None]) -> Graph | None:
        """Record what `enqueue` puts on the stream; None where it cannot be captured."""
        ...


def missing() -> str | None:
    """Why there is no GPU to use here, or None."""
    try:
        found()
    except TargetError as error:
        return str(error)
    return None


@cache
def found() -> Device:
    """The GPU, through the first library that has one.

    Raises:
        TargetError: no library, no driver or no GPU; says which.
    """
    reasons = []
    for kind in (CudaBindings, PyCuda):
        try:
            return kind()
        except ImportError:
            reasons.append(f"{kind.LIBRARY} is not installed")
        except TargetError as error:
            reasons.append(str(error))
    if not any("no NVIDIA GPU" in reason for reason in reasons):
        raise TargetError(f"{'; '.join(reasons)}; {INSTALL}")
    raise TargetError("; ".join(reasons))


class CudaBindings:
    """`Device` by NVIDIA's own bindings of the CUDA runtime."""

    LIBRARY = "cuda-bindings"

    def __init__(self) -> None:
        cudart: Any = import_module("cuda.bindings.runtime")
        self._cudart = cudart
        error, count = cudart.cudaGetDeviceCount()
        if error != cudart.cudaError_t.cudaSuccess or count < 1:
            raise TargetError(f"no NVIDIA GPU ({self.LIBRARY}: {error.name})")
        attribute = cudart.cudaDeviceAttr
        major, minor = (
            self._ask(cudart.cudaDeviceGetAttribute(which, 0))
            for which in (
                attribute.cudaDevAttrComputeCapabilityMajor,
                attribute.cudaDevAttrComputeCapabilityMinor,
            )
        )
        self.capability = f"sm{major}{minor}"
        self.name = self._ask(cudart.cudaGetDeviceProperties(0)).name.decode()

    def use(self) -> None:
        self._ask(self._cudart.cudaSetDevice(0))

    def stream(self) -> int:
        flags = self._cudart.cudaStreamNonBlocking
        return int(self._ask(self._cudart.cudaStreamCreateWithFlags(flags)))

    def allocate(self, size: int) -> int:
        return int(self._ask(self._cudart.cudaMalloc(max(size, 1))))

    def free(self, pointer: int) -> None:
        self._ask(self._cudart.cudaFree(pointer))

    def upload(self, pointer: int, array: Array, stream: int) -> None:
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        place = array.ctypes.data
        self._ask(self._cudart.cudaMemcpyAsync(pointer, place, array.nbytes, kind, stream))

    def download(self, array: Array, pointer: int, stream: int) -> None:
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        place = array.ctypes.data
        self._ask(self._cudart.cudaMemcpyAsync(place, pointer, array.nbytes, kind, stream))

    def wait(self, stream: int) -> None:
        self._ask(self._cudart.cudaStreamSynchronize(stream))

    def capture(self, stream: int, enqueue: Callable[[], None]) -> Graph | None:
        cudart = self._cudart
        mode = cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._ask(cudart.cudaStreamBeginCapture(stream, mode))
        try:
            enqueue()
        except TargetError:
            cudart.cudaStreamEndCapture(stream)  # leaves the capturing state, whatever it gives
            cudart.cudaGetLastError()
            return None
        error, graph = cudart.cudaStreamEndCapture(stream)
        if error != cudart.cudaError_t.cudaSuccess:
            cudart.cudaGetLastError()
            return None
        error, executable = cudart.cudaGraphInstantiate(graph, 0)
        cudart.cudaGraphDestroy(graph)
        if error != cudart.cudaError_t.cudaSuccess:
            cudart.cudaGetLastError()
            return None
        return _CapturedGraph(self, executable)

    def launch(self, executable: Any, stream: int) -> None:
        """Start a captured graph."""
        self._ask(self._cudart.cudaGraphLaunch(executable, stream))

    def _ask(self, answer: tuple[Any, ...]) -> Any:
        """The value of a call's answer, whose first part is an error code."""
        error, *values = answer
        if error != self._cudart.cudaError_t.cudaSuccess:
            raise TargetError(f"the GPU failed: {error.name}; see nvidia-smi and dmesg")
        return values[0] if values else None


class _CapturedGraph:
    def __init__(self, device: CudaBindings, executable: Any) -> None:
        self._device, self._executable = device, executable

    def launch(self, stream: int) -> None:
        self._device.launch(self._executable, stream)


class PyCuda:
    """`Device` by pycuda, on the primary context that TensorRT uses as well.

    It cannot capture graphs; work is enqueued plainly.
    """

    LIBRARY = "pycuda"

    def __init__(self) -> None:
        cuda: Any = import_module("pycuda.driver")
        self._cuda = cuda
        try:
            cuda.init()
            count = cuda.Device.count()
        except cuda.Error as error:
            raise TargetError(f"no NVIDIA GPU ({self.LIBRARY}: {error})") from error
        if count < 1:
            raise TargetError(f"no NVIDIA GPU ({self.LIBRARY} counts none)")
        device = cuda.Device(0)
        major, minor = device.compute_capability()
        self.capability, self.name = f"sm{major}{minor}", device.name()
        self._context = device.retain_primary_context()
        self._current = threading.local()
        self._streams: dict[int, Any] = {}

    def use(self) -> None:
        if not getattr(self._current, "pushed", False):
            self._context.push()
            self._current.pushed = True

    def stream(self) -> int:
        stream = self._cuda.Stream()
        self._streams[int(stream.handle)] = stream  # it ends with its Python object
        return int(stream.handle)

    def allocate(self, size: int) -> int:
        memory = self._cuda.mem_alloc(max(size, 1))
        pointer = int(memory)
        self._streams[pointer] = memory
        return pointer

    def free(self, pointer: int) -> None:
        self._streams.pop(pointer).free()

    def upload(self, pointer: int, array: Array, stream: int) -> None:
        self._cuda.memcpy_htod_async(pointer, array, self._streams[stream])

    def download(self, array: Array, pointer: int, stream: int) -> None:
        self._cuda.memcpy_dtoh_async(array, pointer, self._streams[stream])

    def wait(self, stream: int) -> None:
        self._streams[stream].synchronize()

    def capture(self, stream: int, enqueue: Callable[[], None]) -> Graph | None:
        return None


def contiguous(array: Array, dtype: npt.DTypeLike) -> Array:
    """The array as one block of memory of this type, copied only where it is not."""
    return np.ascontiguousarray(array, dtype=dtype)
