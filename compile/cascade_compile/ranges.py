"""How large the numbers inside a stage get, on real images.

In: the float32 ONNX file of a stage and what it takes on some images. Out: `Ranges`, the largest
absolute value of every floating-point tensor and, for what sums many products, of those sums in
any order of summation. They are taken inside the graph, by nodes added to a copy, each right behind
the tensor it looks at: memory is that of the weights and of one small batch, of which no tensor is
kept longer than the stage itself would.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cascade_runtime.errors import DataError

BATCH = 8
SMALL = 1024  # bytes; shapes are among the weights, and inference needs to see them
SUMS = ("MatMul", "Gemm", "Conv", "ReduceMean", "ReduceSum")


@dataclass(frozen=True)
class Ranges:
    """Largest absolute values over all images.

    values: by tensor. sums: by node, of the terms that its results are sums of, each taken without
        its sign: no partial sum can be larger.
    """

    values: dict[str, float]
    sums: dict[str, float]


def measure(onnx_file: Path, samples: npt.NDArray[np.generic]) -> Ranges:
    """Run the stage and look at everything in it.

    Args:
        samples: what the stage takes, uint8 [K, H, W, 3] or float32 [K, N, D].

    Raises:
        DataError: there are no samples, or the float32 stage itself leaves the numbers.
    """
    import onnx
    import onnxruntime as ort

    if not len(samples):
        raise DataError("no images to measure activations on; val_select is empty")
    # Weights stay where they are: the copy lies beside the file, since theirs is a relative path.
    model = onnx.load(onnx_file, load_external_data=False)
    keys = _add_probes(model)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # folds weights
    options.add_session_config_entry("session.disable_prepacking", "1")  # a second copy of them
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED  # as written: probes at once
    options.enable_mem_pattern = False
    with tempfile.NamedTemporaryFile(dir=onnx_file.parent, suffix=".onnx") as probed:
        onnx.save(model, probed.name)
        session = ort.InferenceSession(probed.name, options, providers=["CPUExecutionProvider"])
    outputs, name = list(keys), session.get_inputs()[0].name
    largest = np.zeros(len(outputs))
    for start in range(0, len(samples), BATCH):
        found = session.run(outputs, {name: samples[start : start + BATCH]})
        largest = np.maximum(largest, np.array(found, dtype=np.float64))  # a NaN stays
    ranges = Ranges({}, {})
    for (what, key), value in zip(keys.values(), largest.tolist(), strict=True):
        (ranges.values if what == "value" else ranges.sums)[key] = value
    broken = [key for key, value in ranges.values.items() if not np.isfinite(value)]
    if broken:
        raise DataError(
            f"{onnx_file.name}: tensor {broken[0]!r} is not finite in float32 on images of "
            "val_select; train again"
        )
    return ranges


def _add_probes(model: Any) -> dict[str, tuple[str, str]]:
    """Outputs for the largest absolute values: output name to what it is the largest of."""
    import onnx
    from onnx import TensorProto, helper

    graph = model.graph
    weights = {weight.name for weight in graph.initializer}
    floats = float_tensors(model) - weights
    nodes: list[Any] = []
    keys: dict[str, tuple[str, str]] = {}
    absolute: dict[str, str] = {}

    def sizes(tensor: str) -> str:
        if tensor not in absolute:
            absolute[tensor] = f"probe/abs/{tensor}"
            nodes.append(helper.make_node("Abs", [tensor], [absolute[tensor]]))
        return absolute[tensor]

    def probe(tensor: str, what: str, key: str) -> None:
        output = f"probe/{what}/{key}"
        nodes.append(helper.make_node("ReduceMax", [tensor], [output], keepdims=0))
        keys[output] = (what, key)

    for value in graph.input:
        if value.name in floats:
            probe(sizes(value.name), "value", value.name)
    for node in graph.node:
        nodes.append(node)
        if node.op_type in SUMS and node.input[0] in floats | weights:
            output = f"probe/terms/{node.name}"
            nodes.append(_terms(node, [sizes(name) for name in _factors(node)], output))
            probe(output, "sum", node.name)
        for tensor in node.output:
            if tensor in floats:
                probe(sizes(tensor), "value", tensor)
    ordered = onnx.GraphProto(node=nodes)  # copies: what is deleted from a graph is gone
    del graph.node[:]
    graph.node.extend(ordered.node)
    del graph.output[:]
    graph.output.extend(helper.make_tensor_value_info(n, TensorProto.FLOAT, []) for n in keys)
    return keys


def _factors(node: Any) -> list[str]:
    """The inputs whose products are summed; a bias is no large number of terms."""
    return list(node.input[: 1 if node.op_type.startswith("Reduce") else 2])


def _terms(node: Any, inputs: list[str], output: str) -> Any:
    """The same sums over absolute values; a mean becomes the sum that it is made from."""
    import onnx

    terms = onnx.NodeProto()
    terms.CopyFrom(node)
    terms.name = f"probe/{node.name}"
    if node.op_type.startswith("Reduce"):
        terms.op_type = "ReduceSum"
        inputs = [*inputs, *node.input[1:]]
    del terms.input[:], terms.output[:]
    terms.input.extend(inputs)
    terms.output.append(output)
    return terms


def float_tensors(model: Any) -> set[str]:
    """The names of all float32 tensors of the graph, weights included."""
    import onnx

    graph = inferred(model)
    values = (*graph.input, *graph.output, *graph.value_info)
    named = {v.name for v in values if v.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
    weights = (w for w in graph.initializer if w.data_type == onnx.TensorProto.FLOAT)
    return named | {weight.name for weight in weights}


def inferred(model: Any) -> Any:
    """The graph with the type and shape of every tensor, and without the bytes of its weights.

    Inference works on a serialised copy, which may not be larger than 2 GiB.
    """
    import onnx

    bare = onnx.ModelProto()
    bare.ir_version = model.ir_version
    bare.opset_import.extend(model.opset_import)
    graph = model.graph
    bare.graph.name = graph.name
    for field in ("node", "input", "output"):
        getattr(bare.graph, field).extend(getattr(graph, field))
    for weight in graph.initializer:
        if len(weight.raw_data) <= SMALL:
            bare.graph.initializer.append(weight)
        else:
            kind = onnx.TensorProto(name=weight.name, dims=weight.dims, data_type=weight.data_type)
            bare.graph.initializer.append(kind)
    return onnx.shape_inference.infer_shapes(bare, data_prop=True).graph
