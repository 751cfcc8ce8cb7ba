"""A stage as its types say, on the processor: what is float16 in the file overflows here too.

In: an ONNX file, strongly typed or float32. Out: an `Engine`, for comparisons. ONNX Runtime has few
float16 kernels on a processor and takes the casts around its float32 ones out again, so float16
would be computed, and flattered, as float32. Here every float16 result is rounded to float16 by
casts of our own, which it leaves alone; sums are float32, as tensor cores take them.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cascade_compile import onnx_files
from cascade_compile.ranges import inferred


class AsWritten:
    """One stage on the processor, rounded as its file says."""

    def __init__(self, onnx_file: Path) -> None:
        import onnx
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.log_severity_level = 4
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "stage.onnx"
            onnx_files.save(rounded(onnx.load(onnx_file)), path)
            self._session = ort.InferenceSession(path, options, ["CPUExecutionProvider"])

    def run(self, batch: npt.NDArray[Any]) -> dict[str, npt.NDArray[np.float32]]:
        names = [output.name for output in self._session.get_outputs()]
        values = self._session.run(names, {self._session.get_inputs()[0].name: batch})
        return dict(zip(names, values, strict=True))


def rounded(typed: Any) -> Any:
    """The model in float32, with every tensor that was float16 rounded to it."""
    import onnx
    from onnx import helper, numpy_helper

    half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    values = inferred(typed).value_info
    halves = {v.name for v in values if v.type.tensor_type.elem_type == half}
    nodes: list[Any] = []
    for node in typed.graph.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        for attribute in copy.attribute:
            if node.op_type == "Cast" and attribute.i == half:
                attribute.i = single
        nodes.append(copy)
        for index, name in enumerate(node.output):
            if name in halves:
                copy.output[index] = f"{name}.exact"
                nodes.append(helper.make_node("Cast", [f"{name}.exact"], [f"{name}.16"], to=half))
                nodes.append(helper.make_node("Cast", [f"{name}.16"], [name], to=single))
    plain = onnx.ModelProto()
    plain.ir_version = typed.ir_version
    plain.opset_import.extend(typed.opset_import)
    plain.graph.name = typed.graph.name
    plain.graph.node.extend(nodes)
    plain.graph.input.extend(typed.graph.input)
    plain.graph.output.extend(typed.graph.output)
    for weight in typed.graph.initializer:
        if weight.data_type == half:
            wide = numpy_helper.to_array(weight).astype(np.float32)
            plain.graph.initializer.append(numpy_helper.from_array(wide, weight.name))
        else:
            plain.graph.initializer.append(weight)
    return plain
