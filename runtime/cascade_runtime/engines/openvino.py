"""OpenVINO on the CPU, in float32 or, where the processor has it, bfloat16 or int8.

In: the bytes of `stageN.xml` (the graph) and `stageN.bin` (the weights). Out: an `Engine`.
API: docs.openvino.ai, "OpenVINO Runtime Python API"; precision and threads are hints there.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version as installed_version
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from cascade_runtime.engines.processor import no_int8
from cascade_runtime.errors import TargetError

TARGETS = (("fp32", "cpu"), ("bf16", "cpu"), ("int8", "cpu"))
_AGAIN = "rebuild it with cascade-compile bundle"


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
    weights = main.removesuffix(".xml") + ".bin"
    if not main.endswith(".xml") or set(files) != {main, weights}:
        raise TargetError(
            f"{main}: an openvino stage is an .xml with its .bin, the bundle has {sorted(files)}; "
            + _AGAIN
        )
    if not files[main].lstrip().startswith(b"<"):  # other formats may name files of their own
        raise TargetError(f"{main}: not an OpenVINO graph in XML; {_AGAIN}")
    config: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": _hint(precision),
        "PERFORMANCE_HINT": "LATENCY",
    }
    if threads is not None:
        config["INFERENCE_NUM_THREADS"] = threads
    try:
        model = _core().read_model(model=files[main], weights=files[weights])
        compiled = _core().compile_model(model, "CPU", config)
    except Exception as error:  # everything the library throws arrives as RuntimeError or a kin
        text = " ".join(str(error).split())
        raise TargetError(f"{main}: {version()} cannot load it ({text})") from error
    return OpenVinoEngine(compiled)


class OpenVinoEngine:
    """One compiled model and its infer requests.

    A request serves one call at a time and is prepared for the batch sizes it has met, so idle
    ones are kept and handed out again: as many exist as there were calls at once.
    """

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled
        self._outputs = [output.get_any_name() for output in compiled.outputs]
        self._idle: list[Any] = []  # append and pop are atomic

    def run(self, batch: npt.NDArray[Any]) -> dict[str, npt.NDArray[np.float32]]:
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        # The input is shared, as it is read during this call only; the outputs are copied.
        values = request.infer({0: np.ascontiguousarray(batch)}, share_inputs=True)
        self._idle.append(request)
        return {name: values[index] for index, name in enumerate(self._outputs)}
