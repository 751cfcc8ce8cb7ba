"""OpenVINO: GEMM chains as its graphs, and the time of each node of a stage.

In: a `Gemm`; the files of a stage. Out: `gemm.xml` and `gemm.bin`; `Layer`s. Times are those of
`get_profiling_info` under PERF_COUNT (docs.openvino.ai, "Performance counters"); shapes are those
of the compiled graph. Fused attention shows no keys there: it is counted in the graph as written,
by the names that fused nodes keep.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cascade_bench.roofline.gemm import Gemm
from cascade_bench.roofline.layers import RUNS, WARM, Layer
from cascade_runtime.engines import openvino as engine

_BYTES = {"f32": 4, "bf16": 2, "f16": 2, "u8": 1, "i8": 1, "i32": 4, "i64": 8}
_ATTENTION = ("Subgraph", "ScaledDotProductAttention", "MHA")
_PRECISION = {"f32": "fp32", "u8": "int8", "i8": "int8"}


def gemm_files(gemm: Gemm, precision: str) -> dict[str, bytes]:
    """The chain and a mean over rows, so that what comes out is small; see `layers.Library`."""
    ov = engine.import_quietly()
    from openvino import opset13 as op

    source = op.parameter([-1, gemm.rows, gemm.inner], np.float32, name="x")
    hidden: Any = source
    for weights in gemm.weights():
        constant: Any = op.constant(np.ascontiguousarray(weights.T))
        if precision == "int8":
            low, high = np.float32(0), np.float32(4)
            hidden = op.fake_quantize(hidden, low, high, low, high, 256)
            most = np.abs(weights.T).max(axis=1, keepdims=True)
            constant = op.fake_quantize(constant, -most, most, -most, most, 255)
        hidden = op.matmul(hidden, constant, False, True)
    mean = op.reduce_mean(hidden, np.array([1]), False)
    mean.get_output_tensor(0).set_names({"mean"})
    with tempfile.TemporaryDirectory(prefix="cascade-bench-") as folder:
        xml = Path(folder) / "gemm.xml"
        ov.save_model(ov.Model([mean], [source], "gemm"), xml, compress_to_fp16=False)
        return {path.name: path.read_bytes() for path in (xml, xml.with_suffix(".bin"))}


def profile(
    files: Mapping[str, bytes],
    main: str,
    batch: npt.NDArray[np.generic],
    *,
    precision: str,
    threads: int | None,
) -> list[list[Layer]]:
    """See `layers.Library`; a batch is cut into parts as the engine does it."""
    stage = engine.open_stage(files, main, precision=precision, threads=threads, profile=True)
    attention = _attention(files, main)
    runs = []
    for index in range(WARM + RUNS):
        stage.run(batch)
        if index >= WARM:
            runs.append(_layers(*stage.profiled(len(batch)), attention, len(batch)))
    return runs


def _layers(
    compiled: Any, requests: list[Any], side_by_side: int, attention: dict[str, float], images: int
) -> list[Layer]:
    seconds: dict[str, float] = {}
    for request in requests:
        for info in request.get_profiling_info():
            taken = info.real_time.total_seconds() / side_by_side
            seconds[info.node_name] = seconds.get(info.node_name, 0.0) + taken
    layers = []
    for node in compiled.get_runtime_model().get_ordered_ops():
        about = {key: value.astype(str) for key, value in node.get_rt_info().items()}
        name, kind = node.get_friendly_name(), about["layerType"]
        if not seconds.get(name):
            continue
        if kind in _ATTENTION:
            originals = {name, *about["originalLayersNames"].split(",")}
            flops = images * sum(attention.get(original, 0.0) for original in originals)
        else:
            flops = float(len(requests) * _product(node, kind))
        precision = about["runtimePrecision"]
        layers.append(
            Layer(
                name=name,
                kind=kind,
                precision=_PRECISION.get(precision, precision),
                seconds=seconds[name],
                flops=flops,
                traffic=_traffic(node, about["outputPrecisions"], len(requests)),
            )
        )
    return layers


def _product(node: Any, kind: str) -> int:
    """FLOPs of one part of the batch in a node that is one matrix product or convolution."""
    if kind not in ("FullyConnected", "MatMul", "Convolution"):
        return 0
    shapes = [port.get_partial_shape() for port in (*node.inputs()[:2], node.output(0))]
    if any(shape.is_dynamic for shape in shapes):
        return 0
    taken, weights, given = (shape.to_shape() for shape in shapes)
    each: int = prod(weights[1:]) if kind == "Convolution" else taken[-1]
    return 2 * each * int(prod(given))


def _traffic(node: Any, outputs: str, parts: int) -> float:
    """Bytes of a node's inputs and outputs over all parts; what has no fixed size counts 0."""
    read = sum(
        _size(port.get_partial_shape()) * _BYTES.get(port.get_element_type().get_type_name(), 4)
        for port in node.inputs()
    )
    width = _BYTES.get(outputs.split(",")[0], 4)
    written = sum(_size(port.get_partial_shape()) * width for port in node.outputs())
    return float(parts * (read + written))


def _size(shape: Any) -> int:
    return 0 if shape.is_dynamic else prod(shape.to_shape())


def _attention(files: Mapping[str, bytes], main: str) -> dict[str, float]:
    """FLOPs an image of each attention in the graph as written, by name."""
    weights = main.removesuffix(".xml") + ".bin"
    model = engine.import_quietly().Core().read_model(model=files[main], weights=files[weights])
    shape = model.input(0).get_partial_shape()
    shape[0] = 1
    model.reshape(shape)
    found = {}
    for node in model.get_ordered_ops():
        if node.get_type_name() == "ScaledDotProductAttention":
            keys, width = node.input(1).get_shape()[-2:]
            given = node.output(0).get_shape()  # queries by keys, and those by the values
            queries = prod(given[:-1])
            found[node.get_friendly_name()] = 2.0 * queries * keys * (width + given[-1])
    return found
