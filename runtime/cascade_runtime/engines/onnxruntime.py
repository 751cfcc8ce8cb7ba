"""ONNX Runtime on the CPU, or on a GPU through its CUDA or TensorRT provider.

In: the bytes of `stageN.onnx`, and of its external weight files where it has some. Out: an
`Engine`. API: onnxruntime.ai/docs/api/python.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt

from cascade_runtime.engines import cuda
from cascade_runtime.engines.onnx_external import check_external_data
from cascade_runtime.engines.processor import no_int8, usable_cores
from cascade_runtime.errors import TargetError

TARGETS = (("fp32", "cpu"), ("int8", "cpu"), ("fp32", "cuda"), ("fp16", "tensorrt"))
_PROVIDERS = {
    "cpu": ["CPUExecutionProvider"],
    "cuda": ["CUDAExecutionProvider"],
    "tensorrt": ["TensorrtExecutionProvider", "CUDAExecutionProvider"],
}
_SETTINGS = {"TensorrtExecutionProvider": {"trt_fp16_enable": "1"}}

# A second session, for callers side by side, is worth its memory up to here: 64 MiB a stage; until
# it is made, the bytes that it will be made of are held.
_DIVISIBLE_LIMIT = 64 << 20

# A folder that cannot exist: external weights come from verified bytes and from nowhere else.
_NOWHERE = f"{os.devnull}/nowhere"


def unavailable(precision: str, device: str) -> str | None:
    """Why this machine cannot run `precision` on `device`, or None."""
    if (precision, device) not in TARGETS:
        return f"onnxruntime runs {TARGETS}, not ({precision!r}, {device!r})"
    if find_spec("onnxruntime") is None:
        return "onnxruntime is not installed; pip install onnxruntime"
    if precision == "int8":
        return no_int8()
    return None if device == "cpu" else _no_gpu(_PROVIDERS[device][0])


def _no_gpu(provider: str) -> str | None:
    """Why a GPU provider cannot be used; it would fall back to the processor in silence."""
    reason = cuda.missing()
    if reason is not None:
        return reason
    import onnxruntime as ort

    if provider not in ort.get_available_providers():
        return (
            f"this onnxruntime has no {provider}; pip uninstall onnxruntime, then "
            "pip install onnxruntime-gpu (its TensorRT provider wants TensorRT 10)"
        )
    return None


def version() -> str:
    """The library and its version, as recorded beside measurements."""
    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            return f"onnxruntime {installed_version(name)}"
        except PackageNotFoundError:
            continue
    return "onnxruntime, not installed"


def load(
    files: Mapping[str, bytes],
    main: str,
    *,
    precision: str,
    device: str,
    threads: int | None,
) -> OnnxRuntimeEngine:
    """Make a session from memory; see `engines.load`."""
    return open_stage(files, main, device=device, threads=threads)


def open_stage(
    files: Mapping[str, bytes],
    main: str,
    *,
    device: str,
    threads: int | None,
    profile: str = "",
) -> OnnxRuntimeEngine:
    """`load`, and the time of every layer in a file whose name begins with `profile`, if given."""
    import onnxruntime as ort

    ort.disable_telemetry_events()
    folder = main.rpartition("/")[0] + "/" if "/" in main else ""
    extra = {path.removeprefix(folder): data for path, data in files.items() if path != main}
    check_external_data(files[main], main, extra)

    def session(count: int) -> Any:
        options = _options(count, profile)
        if extra:
            options.add_external_initializers_from_files_in_memory(
                list(extra), list(extra.values()), [len(data) for data in extra.values()]
            )
        names = _PROVIDERS[device]
        settings = [_SETTINGS.get(name, {}) for name in names]
        return ort.InferenceSession(files[main], options, names, settings)

    try:
        opened = session(threads or 0)
    except Exception as error:  # the library raises a different type for each status code
        raise TargetError(f"{main}: {version()} cannot load it ({error})") from error
    if opened.get_providers()[0] != _PROVIDERS[device][0]:
        raise TargetError(f"{main}: {version()} fell back to {opened.get_providers()[0]}")
    small = sum(map(len, files.values())) <= _DIVISIBLE_LIMIT
    divisible = device == "cpu" and small and (threads or len(usable_cores())) > 1 and not profile
    return OnnxRuntimeEngine(opened, (lambda: session(1)) if divisible else None)


def _options(threads: int, profile: str) -> Any:
    """A session's options; 0 threads: one a core."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4  # a failure is reported once, by the exception
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Idle worker threads of one stage must not take the cores from the next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", _NOWHERE
    )
    if profile:
        options.enable_profiling = True
        options.profile_file_prefix = profile
    return options


class OnnxRuntimeEngine:
    """One ONNX Runtime session; `Run` is thread-safe and gives fresh arrays."""

    def __init__(self, session: Any, one_thread: Callable[[], Any] | None = None) -> None:
        """Args: one_thread: makes the session that `side_by_side` runs, where there is one."""
        self._session = session
        self._input = session.get_inputs()[0].name
        self._outputs = [output.name for output in session.get_outputs()]
        self._make_one_thread = one_thread
        self._one_thread: OnnxRuntimeEngine | None = None
        self._lock = threading.Lock()

    def run(self, batch: npt.NDArray[Any]) -> dict[str, npt.NDArray[np.float32]]:
        values = self._session.run(self._outputs, {self._input: batch})
        return dict(zip(self._outputs, values, strict=True))

    def side_by_side(self) -> OnnxRuntimeEngine | None:
        """See `engines.Divisible`."""
        with self._lock:
            if self._one_thread is None and self._make_one_thread is not None:
                self._one_thread = OnnxRuntimeEngine(self._make_one_thread())
                self._make_one_thread = None  # and with it the bytes that it was made of
        return self._one_thread

    def end_profile(self) -> str:
        """Close the file that `open_stage` was asked for; returns its name."""
        return str(self._session.end_profiling())
