"""ONNX Runtime: GEMM chains as ONNX files, and the time of each node of a stage.

In: a `Gemm`; the files of a stage. Out: `gemm.onnx`; `Layer`s, from the JSON file that the
session's profiler writes (onnxruntime.ai, "Profiling tools"), in which every node says its shapes.
Weights that were packed for products are not among them, so they are missing in a layer's traffic.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cascade_bench.roofline.gemm import Gemm
from cascade_bench.roofline.layers import RUNS, WARM, Layer
from cascade_runtime.engines import onnxruntime as engine

_BYTES = {"float": 4, "float16": 2, "uint8": 1, "int8": 1, "int32": 4, "int64": 8, "bool": 1}
_EIGHT_BITS = ("uint8", "int8")
_PRODUCTS = ("MatMul", "Gemm")  # and every fused kind whose name has one of them
_KERNEL = "_kernel_time"
_SCALE = 4 / 255


def gemm_files(gemm: Gemm, precision: str) -> dict[str, bytes]:
    """The chain and a mean over rows; see `layers.Library`. int8 is QuantizeLinear pairs."""
    from onnx import TensorProto, helper, numpy_helper

    nodes = []
    constants: dict[str, npt.NDArray[Any]] = {"rows": np.array([1], np.int64)}
    if precision == "int8":
        constants |= {"scale": np.array(_SCALE, np.float32), "zero": np.array(0, np.uint8)}
    hidden = "x"
    for link, weights in enumerate(gemm.weights()):
        name = f"w{link}"
        if precision == "int8":
            most = np.abs(weights).max(axis=0) / 127
            constants[f"{name}.q"] = np.round(weights / most).astype(np.int8)
            constants[f"{name}.s"] = most.astype(np.float32)
            constants[f"{name}.z"] = np.zeros(len(most), np.int8)
            parts = [f"{name}.q", f"{name}.s", f"{name}.z"]
            nodes.append(helper.make_node("DequantizeLinear", parts, [name], axis=1))
            pair = ["scale", "zero"]
            nodes.append(helper.make_node("QuantizeLinear", [hidden, *pair], [f"q{link}"]))
            hidden = f"d{link}"
            nodes.append(helper.make_node("DequantizeLinear", [f"q{link}", *pair], [hidden]))
        else:
            constants[name] = weights
        nodes.append(helper.make_node("MatMul", [hidden, name], [f"y{link}"]))
        hidden = f"y{link}"
    nodes.append(helper.make_node("ReduceMean", [hidden, "rows"], ["mean"], keepdims=0))
    width = (gemm.outer, gemm.inner)[gemm.links % 2 == 0]
    graph = helper.make_graph(
        nodes,
        "gemm",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", gemm.rows, gemm.inner])],
        [helper.make_tensor_value_info("mean", TensorProto.FLOAT, ["b", width])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opset = [helper.make_opsetid("", 18)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=10)
    return {"gemm.onnx": model.SerializeToString()}


def profile(
    files: Mapping[str, bytes],
    main: str,
    batch: npt.NDArray[np.generic],
    *,
    precision: str,
    threads: int | None,
) -> list[list[Layer]]:
    """See `layers.Library`. The graph says what is 8 bits wide; the rest is float32."""
    with tempfile.TemporaryDirectory(prefix="cascade-bench-") as folder:
        prefix = str(Path(folder) / "profile")
        stage = engine.open_stage(files, main, device="cpu", threads=threads, profile=prefix)
        for _ in range(WARM + RUNS):
            stage.run(batch)
        events = json.loads(Path(stage.end_profile()).read_text(encoding="utf-8"))
    runs: list[list[Layer]] = []
    for event in sorted(events, key=lambda event: float(event["ts"])):
        if event["name"] == "SequentialExecutor::Execute":
            runs.append([])  # comes at the time its first node starts, or before
        elif event["cat"] == "Node" and event["name"].endswith(_KERNEL) and runs:
            runs[-1].append(_layer(event))
    return runs[WARM:]


def _layer(event: Mapping[str, Any]) -> Layer:
    about = event["args"]
    name, kind = str(event["name"]).removesuffix(_KERNEL), str(about["op_name"])
    inputs, outputs = (_tensors(about[f"{side}_type_shape"]) for side in ("input", "output"))
    read, written = (sum(_BYTES.get(t, 4) * prod(s) for t, s in x) for x in (inputs, outputs))
    flops = 0.0
    if outputs and inputs and any(word in kind for word in _PRODUCTS):
        flops = 2.0 * prod(outputs[0][1]) * inputs[0][1][-1]
    elif outputs and "Conv" in kind:
        weights = next((shape for _, shape in inputs[1:] if len(shape) == 4), [0, 0])
        flops = 2.0 * prod(outputs[0][1]) * prod(weights[1:])
    return Layer(
        name=name,
        kind=kind,
        precision="int8" if inputs and inputs[0][0] in _EIGHT_BITS else "fp32",
        seconds=float(event["dur"]) / 1e6,
        flops=flops,
        traffic=float(read + written),
    )


def _tensors(said: Sequence[Mapping[str, Sequence[int]]]) -> list[tuple[str, Sequence[int]]]:
    return [(kind, shape) for tensor in said for kind, shape in tensor.items()]
