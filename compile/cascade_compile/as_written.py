"""An ONNX file run exactly as it is written, on the processor: what its types say, and no better.

In: a file. Out: an `Engine`. ONNX Runtime's optimiser takes casts out again and so computes float16
as float32; here it is told to leave every node alone, so that what overflows does so here too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


class AsWritten:
    """One stage; slow, for comparisons."""

    def __init__(self, onnx_file: Path) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._session = ort.InferenceSession(onnx_file, options, providers=["CPUExecutionProvider"])

    def run(self, batch: npt.NDArray[Any]) -> dict[str, npt.NDArray[np.float32]]:
        names = [output.name for output in self._session.get_outputs()]
        values = self._session.run(names, {self._session.get_inputs()[0].name: batch})
        return dict(zip(names, values, strict=True))
