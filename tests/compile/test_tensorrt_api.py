"""Every name, member and signature that our code uses, held against the real TensorRT 10 and 11.

`make` downloads the bindings' wheels; no GPU and no TensorRT is needed (api_stubs.py).
"""

from __future__ import annotations

import shutil

import pytest

from cascade_compile import nvinfer_builder
from cascade_runtime.engines import nvinfer

from .api_stubs import Bindings, unpack, wheels
from .api_used import Use, fits, untracked, uses

VERSIONS = {"10": "tensorrt_cu12_bindings", "11": "tensorrt_cu13_bindings"}
MODULES = (nvinfer, nvinfer_builder)
WHEELS = wheels()
pytestmark = pytest.mark.skipif(
    WHEELS is None or shutil.which("cc") is None,
    reason="no TensorRT wheels (.venv/wheels, CASCADE_EDGE_WHEELS), or no C compiler",
)


@pytest.fixture(scope="module")
def bindings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bindings]:
    """Both major versions of the full bindings, by number."""
    assert WHEELS is not None
    return {
        major: unpack(WHEELS, "tensorrt_bindings", (stem,), tmp_path_factory.mktemp(stem))
        for major, stem in VERSIONS.items()
    }


@pytest.fixture(scope="module")
def lean(tmp_path_factory: pytest.TempPathFactory) -> Bindings:
    """The lean bindings with NVIDIA's CUDA bindings, as on a device without a builder."""
    assert WHEELS is not None
    stems = ("tensorrt_lean_cu13_bindings", "cuda_bindings", "cuda_pathfinder")
    return unpack(WHEELS, "tensorrt_lean_bindings", stems, tmp_path_factory.mktemp("lean"))


def wrong(found: Bindings, used: set[Use]) -> list[str]:
    """What the real API does not offer of what is used."""
    _, names = found.ask(sorted({use.name for use in used}))
    return [reason for use in used if (reason := fits(use, names[use.name]))]


@pytest.mark.parametrize("major", sorted(VERSIONS))
@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__.split(".")[-1])
def test_everything_we_use_is_in_the_real_api(
    bindings: dict[str, Bindings], major: str, module
) -> None:
    version, _ = bindings[major].ask([])
    assert version.split(".")[0] == major
    assert wrong(bindings[major], uses(module)) == []


def test_the_lean_runtime_has_what_running_an_engine_uses(lean: Bindings) -> None:
    assert wrong(lean, uses(nvinfer)) == []


def test_uses_are_found_in_the_source() -> None:
    """Some of each kind, so that an empty list cannot pass for a clean one."""
    built, run = uses(nvinfer_builder), uses(nvinfer)
    assert Use("NetworkDefinitionCreationFlag.STRONGLY_TYPED", "read") in built
    assert Use("Builder.build_serialized_network", "call", 2) in built
    assert Use("IBuilderConfig.profiling_verbosity", "set") in built
    assert Use("IExecutionContext.execute_async_v3", "call", 0, ("stream_handle",)) in run
    assert Use("Runtime.engine_host_code_allowed", "set") in run
    assert len(built | run) > 35


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__.split(".")[-1])
def test_every_object_of_the_library_is_in_the_table(module) -> None:
    assert list(untracked(module)) == []


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("config.set_flag(trt.BuilderFlag.FP16)", "BuilderFlag.FP16 does not exist"),
        ("trt.NetworkDefinitionCreationFlag.IMPLICIT", "IMPLICIT does not exist"),
        ("builder.build_engine(network, config)", "build_engine does not exist"),
        ("engine.device_memory_size", "device_memory_size does not exist"),
        ("config.profiling_verbosity()", "is a property, and is called"),
        ("engine.num_io_tensors = 3", "cannot be set"),
        ("parser.parse_from_file", "is a method, and is used as a value"),
        ("builder.create_network(1, 2, 3)", "not 3 arguments"),
        ("config.set_timing_cache(cache)", "not 1 arguments"),
        ("profile.set_shape(name, min=a, opt=b, most=c)", "'most'"),
        ("trt.Builder(logger, network)", "not 2 arguments"),
        ("self._engine.get_binding_name(0)", "get_binding_name does not exist"),
    ],
)
def test_what_is_not_in_version_11_is_found(
    bindings: dict[str, Bindings], code: str, reason: str
) -> None:
    [found] = wrong(bindings["11"], uses(nvinfer_builder, code)) or ["nothing found"]
    assert reason in found


def test_lean_runtime_without_a_gpu_is_an_error_and_no_crash(lean: Bindings) -> None:
    """The real lean bindings and the real CUDA bindings; only the driver is missing."""
    script = """
from cascade_runtime.engines import cuda, load, tensorrt
from cascade_runtime.errors import TargetError
print(cuda.missing())
print(tensorrt.unavailable("fp16", "sm87"))
print(tensorrt.device_here())
try:
    load("tensorrt", {"a.plan": b"ftrt"}, "a.plan", precision="fp16", device="sm87")
except TargetError as error:
    print(error)
"""
    first, reason, device, refused = lean.run(script).stdout.splitlines()
    if "no NVIDIA GPU" not in first:
        pytest.skip("there is a GPU here")
    assert "cuda-bindings: cudaError" in first
    assert first in reason and reason in refused
    assert device == "sm*"


def test_lean_runtime_cannot_build_and_says_so(lean: Bindings) -> None:
    script = """
from cascade_compile import nvinfer_builder
from cascade_runtime.engines import cuda, nvinfer
cuda.missing = lambda: None
print(nvinfer_builder.missing())
"""
    said = lean.run(script).stdout
    assert "tensorrt_lean_bindings is a lean runtime without a builder; pip install" in said


@pytest.mark.parametrize("wheel", ["cuda_bindings"])
def test_every_cuda_name_is_in_the_real_bindings(lean: Bindings, wheel: str) -> None:
    import ast
    import inspect

    from cascade_runtime.engines import cuda

    tree = ast.parse(inspect.getsource(cuda.CudaBindings))
    names = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr.startswith("cuda")
    }
    assert len(names) > 15
    found = Bindings("cuda.bindings.runtime", lean.env)
    parents = {"cudaDevAttr": "cudaDeviceAttr", "cudaMemcpyHost": "cudaMemcpyKind"}
    parents |= {"cudaMemcpyDevice": "cudaMemcpyKind", "cudaSuccess": "cudaError_t"}
    parents |= {"cudaStreamCaptureModeT": "cudaStreamCaptureMode"}
    paths = [
        next((f"{p}.{n}" for stem, p in parents.items() if n.startswith(stem)), n)
        for n in sorted(names)
    ]
    _, real = found.ask(paths)
    assert [path for path in paths if real[path] is None] == []
