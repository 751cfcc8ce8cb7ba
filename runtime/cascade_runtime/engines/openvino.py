"""OpenVINO on the CPU, in float32 or, where the processor has it, bfloat16 or int8.

In: the bytes of `stageN.xml` (the graph) and `stageN.bin` (the weights). Out: an `Engine`.
API: docs.openvino.ai, "OpenVINO Runtime Python API"; precision and threads are hints there.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import cache
from importlib.metadata import version as installed_version
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from cascade_runtime.engines.processor import no_int8, usable_cores
from cascade_runtime.errors import TargetError

TARGETS = (("fp32", "cpu"), ("bf16", "cpu"), ("int8", "cpu"))
_AGAIN = "rebuild it with cascade-compile bundle"
# A second copy of the weights, for streams, is worth its memory up to here: 256 MiB a stage.
_STREAMS_LIMIT = 256 << 20
_PART = 8  # images: what a stream takes at a time; larger ones fall out of a core's cache


def unavailable(precision: str, device: str) -> str | None:
    """Why this machine cannot run `precision` on `device`, or None."""
    if (precision, device) not in TARGETS:
        return f"openvino runs {TARGETS} here, not ({precision!r}, {device!r})"
    if find_spec("openvino") is None:
        return "openvino is not installed; pip install openvino"
    if precision == "bf16" and "BF16" not in _capabilities():
        return "this processor has no bfloat16 instructions (AVX512_BF16 or AMX)"
    if precision == "int8":
        return no_int8() if "INT8" in _capabilities() else "openvino has no int8 here"
    return None


def version() -> str:
    """The library and its version, as recorded beside measurements."""
    return f"openvino {installed_version('openvino')}"


def import_quietly() -> ModuleType:
    """Import openvino without its telemetry.

    `import openvino` reports the import over the network whenever `openvino_telemetry` is
    installed, which pip does; while that name cannot be imported, openvino takes its own stub.
    """
    blocked = "openvino" not in sys.modules and "openvino_telemetry" not in sys.modules
    if blocked:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        import openvino
    finally:
        if blocked:
            del sys.modules["openvino_telemetry"]
    module: ModuleType = openvino
    return module


@cache
def _core() -> Any:
    return import_quietly().Core()


@cache
def _capabilities() -> frozenset[str]:
    return frozenset(_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


def _hint(precision: str) -> str:
    """What is computed in that is not quantised: of int8, bf16 where the processor has it."""
    if precision == "int8":
        return "bf16" if "BF16" in _capabilities() else "f32"
    return {"fp32": "f32", "bf16": "bf16"}[precision]


def load(
    files: Mapping[str, bytes],
    main: str,
    *,
    precision: str,
    device: str,
    threads: int | None,
) -> OpenVinoEngine:
    """Compile one stage from memory; see `engines.load`."""
    return open_stage(files, main, precision=precision, threads=threads)


def open_stage(
    files: Mapping[str, bytes],
    main: str,
    *,
    precision: str,
    threads: int | None,
    profile: bool = False,
) -> OpenVinoEngine:
    """`load`, and where `profile` is set each infer request counts the time of every layer."""
    weights = main.removesuffix(".xml") + ".bin"
    if not main.endswith(".xml") or set(files) != {main, weights}:
        raise TargetError(
            f"{main}: an openvino stage is an .xml with its .bin, the bundle has {sorted(files)}; "
            + _AGAIN
        )
    if not files[main].lstrip().startswith(b"<"):  # other formats may name files of their own
        raise TargetError(f"{main}: not an OpenVINO graph in XML; {_AGAIN}")
    config: dict[str, Any] = {"INFERENCE_PRECISION_HINT": _hint(precision)}
    if threads is not None:
        config["INFERENCE_NUM_THREADS"] = threads
        if threads < len(usable_cores()):
            # Pinned, every process of so few threads would be on the same cores.
            config["ENABLE_CPU_PINNING"] = False
    if profile:
        config["PERF_COUNT"] = True
    try:
        model = _core().read_model(model=files[main], weights=files[weights])
        whole = _core().compile_model(model, "CPU", {**config, "PERFORMANCE_HINT": "LATENCY"})
        count = int(whole.get_property("INFERENCE_NUM_THREADS"))
    except Exception as error:  # everything the library throws arrives as RuntimeError or a kin
        text = " ".join(str(error).split())
        raise TargetError(f"{main}: {version()} cannot load it ({text})") from error
    if len(files[weights]) > _STREAMS_LIMIT:
        count = 1
    streams = {**config, "NUM_STREAMS": count, "INFERENCE_NUM_THREADS": count}
    return OpenVinoEngine(whole, count, lambda: _core().compile_model(model, "CPU", streams))


class OpenVinoEngine:
    """One stage: a batch runs on all threads at once or, where it divides, one part a thread.

    Threads that work on parts of their own do not wait for each other at every layer (measured in
    docs/decisions/0013). That takes a second compiled model, made when first used.
    """

    def __init__(self, whole: Any, streams: int, compile_streams: Callable[[], Any]) -> None:
        """Args: streams: how many parts run side by side; 1 never cuts a batch."""
        self._names = [output.get_any_name() for output in whole.outputs]
        self._whole = _Requests(whole)
        self._streams = streams
        self._compile_streams = compile_streams
        self._parts: _Requests | None = None
        self._one_thread = _OneThread(self._names, self._requests_of_parts)
        self._lock = threading.Lock()

    def run(self, batch: npt.NDArray[Any]) -> dict[str, npt.NDArray[np.float32]]:
        batch = np.ascontiguousarray(batch)
        if not self._divides(len(batch)):
            values = self._whole.run([batch])
        else:
            size = next(n for n in range(_PART, 0, -1) if len(batch) // self._streams % n == 0)
            values = self._requests_of_parts().run(
                [batch[start : start + size] for start in range(0, len(batch), size)]
            )
        return dict(zip(self._names, values, strict=True))

    def side_by_side(self) -> _OneThread | None:
        """See `engines.Divisible`."""
        return None if self._streams == 1 else self._one_thread

    def _divides(self, size: int) -> bool:
        """Whether a batch of `size` is cut into parts."""
        return self._streams > 1 and size > 0 and size % self._streams == 0

    def profiled(self, size: int) -> tuple[Any, list[Any], int]:
        """What a batch of `size` ran on, for whoever reads its profile.

        Returns:
            the compiled model, its infer requests that are idle, how many run side by side.
        """
        if not self._divides(size):
            return *self._whole.opened(), 1
        return *self._requests_of_parts().opened(), self._streams

    def _requests_of_parts(self) -> _Requests:
        with self._lock:
            if self._parts is None:
                self._parts = _Requests(self._compile_streams())
            return self._parts


class _OneThread:
    """The stage on a stream of one thread, as many at once as there are streams."""

    def __init__(self, names: list[str], requests: Callable[[], _Requests]) -> None:
        self._names = names
        self._requests = requests

    def run(self, batch: npt.NDArray[Any]) -> dict[str, npt.NDArray[np.float32]]:
        values = self._requests().run([np.ascontiguousarray(batch)])
        return dict(zip(self._names, values, strict=True))


class _Requests:
    """The infer requests of a compiled model.

    A request serves one call at a time and is prepared for the batch sizes it has met, so idle
    ones are kept and handed out again: as many exist as there were at once.
    """

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled
        self._idle: list[Any] = []  # append and pop are atomic

    def run(self, parts: list[npt.NDArray[Any]]) -> list[npt.NDArray[np.float32]]:
        """Every output over all parts, in the order of the model's outputs; inputs are shared."""
        requests = [self._request() for _ in parts]
        outputs = range(len(self._compiled.outputs))
        if len(parts) == 1:
            found = requests[0].infer({0: parts[0]}, share_inputs=True)
            values = [found[index] for index in outputs]
        else:
            with ExitStack() as waits:  # after an error too: no part is still being read then
                for request, part in zip(requests, parts, strict=True):
                    request.start_async({0: part}, share_inputs=True)
                    waits.callback(request.wait)
            values = [
                np.concatenate([request.get_output_tensor(index).data for request in requests])
                for index in outputs
            ]
        self._idle.extend(requests)
        return values

    def opened(self) -> tuple[Any, list[Any]]:
        """The compiled model and the requests that no call is using."""
        return self._compiled, list(self._idle)

    def _request(self) -> Any:
        try:
            return self._idle.pop()
        except IndexError:
            return self._compiled.create_infer_request()
