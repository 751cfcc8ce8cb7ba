"""Every call that building an engine makes into TensorRT, versions 10 and 11: one way for both.

In: a strongly typed ONNX file and the batch sizes it is for. Out: plan bytes and the inspector's
report. The precision is in the file: version 11 has no other way, and version 10 is told by the
flag STRONGLY_TYPED to take none. What is named here is held against the real API of both versions
by tests/compile/test_tensorrt_api.py, by the types of `OBJECTS`.
API: docs.nvidia.com/deeplearning/tensorrt, Python.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cascade_runtime.engines import cuda, nvinfer
from cascade_runtime.errors import TargetError

WORKSPACE = 2 << 30  # bytes, an upper limit: the builder takes what the device has

# What the names of variables in this file are in TensorRT, for the test of the API.
OBJECTS = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "problem": "ParserError",
    "config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
    "cache": "ITimingCache",
    "tensor": "ITensor",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "inspector": "EngineInspector",
}


@dataclass(frozen=True)
class Plan:
    """A built engine: its bytes, what the inspector says of its layers (JSON), TensorRT's version.

    timing_cache: what was measured on the way, to build the next one in less time.
    """

    data: bytes
    layers: str
    version: str
    timing_cache: bytes


def missing() -> str | None:
    """Why no plan can be built here, or None: the GPU, TensorRT, or a builder in it is missing."""
    reason = cuda.missing()
    if reason is not None:
        return reason
    try:
        trt = nvinfer.library()
    except TargetError as error:
        return str(error)
    if not hasattr(trt, "Builder"):
        return f"{trt.__name__} is a lean runtime without a builder; pip install tensorrt-cu13"
    return None


def build(onnx_file: Path, batches: Sequence[int], timing_cache: bytes) -> Plan:
    """Build one stage. Only to be called where nothing is `missing`.

    Args:
        onnx_file: strongly typed; one input whose first axis is the batch.
        batches: the smallest batch, the one to be fastest at, the largest.
        timing_cache: of an earlier build with this TensorRT on this device; may be empty.

    Raises:
        TargetError: TensorRT refuses the file; says why.
    """
    trt = nvinfer.library()
    cuda.found().use()
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx_file)):  # by its path, to find weights beside it
        errors = []
        for index in range(parser.num_errors):
            problem = parser.get_error(index)
            errors.append(problem.desc())
        raise TargetError(f"{onnx_file.name}: TensorRT cannot read it ({'; '.join(errors)})")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    # Without it a plan carries a library of its own, which `engine_host_code_allowed` would permit.
    config.set_flag(trt.BuilderFlag.EXCLUDE_LEAN_RUNTIME)
    profile = builder.create_optimization_profile()
    tensor = network.get_input(0)
    rest = tuple(tensor.shape)[1:]
    profile.set_shape(tensor.name, *((batch, *rest) for batch in batches))
    if config.add_optimization_profile(profile) < 0:
        raise TargetError(f"{onnx_file.name}: TensorRT refuses batches of {tuple(batches)}")
    cache = config.create_timing_cache(timing_cache)
    config.set_timing_cache(cache, True)
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise TargetError(
            f"{onnx_file.name}: TensorRT {trt.__version__} cannot build it; see above"
        )
    data = bytes(serialized)
    cache = config.get_timing_cache()
    return Plan(data, _inspect(data), trt.__version__, bytes(cache.serialize()))


def _inspect(data: bytes) -> str:
    """What the engine is made of, layer by layer."""
    trt = nvinfer.library()
    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    runtime.engine_host_code_allowed = False
    engine = runtime.deserialize_cuda_engine(data)
    if engine is None:
        raise TargetError("TensorRT cannot load the plan that it has just built")
    inspector = engine.create_engine_inspector()
    return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
