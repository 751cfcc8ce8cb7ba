"""Every call that running an engine makes into TensorRT, versions 10 and 11, full or lean.

In: plan bytes. Out: `Plan` and `Context`, with plain Python values on our side. No other module of
the runtime names anything of TensorRT's; what is named here is held against the real API of both
versions by tests/compile/test_tensorrt_api.py, by the types of `OBJECTS`.
API: docs.nvidia.com/deeplearning/tensorrt, Python.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np

from cascade_runtime.errors import TargetError

# The lean runtime has no builder, and is enough to run a plan. The last two are wheels of the
# bindings alone.
MODULES = ("tensorrt", "tensorrt_lean", "tensorrt_bindings", "tensorrt_lean_bindings")

# What the names of variables in this file are in TensorRT, for the test of the API.
OBJECTS = {
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
}


@cache
def library() -> Any:
    """The TensorRT module of this installation.

    Raises:
        TargetError: none is installed, or its libraries cannot be loaded.
    """
    reasons = []
    for name in MODULES:
        if find_spec(name) is None:
            continue
        try:
            return import_module(name)
        except (ImportError, OSError) as error:
            reasons.append(f"{name} cannot be loaded ({error})")
    if reasons:
        raise TargetError("; ".join(reasons))
    raise TargetError(
        "TensorRT is not installed; pip install tensorrt-cu13 (or, to run engines only, "
        "tensorrt-lean-cu13)"
    )


def version() -> tuple[int, ...]:
    """Of the installed library."""
    trt = library()
    return tuple(int(part) for part in trt.__version__.split(".")[:3])


class Plan:
    """A deserialised engine. Only to be made where a GPU was counted: see `engines.tensorrt`."""

    def __init__(self, data: bytes, what: str) -> None:
        """
        Raises:
            TargetError: the library refuses the bytes.
        """
        trt = library()
        self._logger = trt.Logger(trt.Logger.ERROR)  # both must outlive the engine
        runtime = trt.Runtime(self._logger)
        runtime.engine_host_code_allowed = False
        self._runtime = runtime
        engine = runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise TargetError(
                f"{what}: TensorRT {trt.__version__} cannot load this plan; build it again on this "
                "device with cascade-compile engines"
            )
        self._engine = engine
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        takes = trt.TensorIOMode.INPUT
        inputs = [name for name in names if engine.get_tensor_mode(name) == takes]
        if len(inputs) != 1:
            raise TargetError(f"{what}: the plan has inputs {inputs}, a stage has one; rebuild it")
        self.input = inputs[0]
        self.outputs = [name for name in names if name != self.input]
        self.dtypes = {name: np.dtype(trt.nptype(engine.get_tensor_dtype(name))) for name in names}
        *_, largest = engine.get_tensor_profile_shape(self.input, 0)  # min, opt, max
        self.largest_batch, *_ = tuple(largest)
        self.scratch = int(engine.device_memory_size_v2)

    def shape(self, name: str, batch: int) -> tuple[int, ...]:
        """A tensor's shape at a batch size; the batch is the only free axis."""
        engine = self._engine
        return (batch, *tuple(engine.get_tensor_shape(name))[1:])

    def context(self, scratch: int) -> Context:
        """A context that computes in memory of ours, `self.scratch` bytes at this address."""
        trt, engine = library(), self._engine
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = engine.create_execution_context(strategy)
        if context is None:
            raise TargetError("TensorRT cannot make an execution context; out of GPU memory?")
        context.set_device_memory(scratch, self.scratch)
        return Context(context)


class Context:
    """One execution context, for one batch size."""

    def __init__(self, context: Any) -> None:
        self._context = context

    def prepare(
        self, stream: int, name: str, shape: Sequence[int], addresses: dict[str, int]
    ) -> None:
        """Fix the batch size and where every tensor lies."""
        context = self._context
        done = context.set_optimization_profile_async(0, stream)
        done = context.set_input_shape(name, tuple(shape)) and done
        for tensor, address in addresses.items():
            done = context.set_tensor_address(tensor, address) and done
        unknown = context.infer_shapes()
        if not done or unknown:
            raise TargetError(
                f"TensorRT refuses the shape {tuple(shape)} (tensors left open: {unknown})"
            )

    def enqueue(self, stream: int) -> None:
        """Start one run on the stream."""
        context = self._context
        if not context.execute_async_v3(stream_handle=stream):
            raise TargetError("TensorRT could not start a run; see its messages")
