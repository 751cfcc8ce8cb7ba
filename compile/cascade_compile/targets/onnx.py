"""onnxruntime: the exported ONNX file is the engine, as it is or quantised to 8 bits.

fp16 is the typed file, for the TensorRT provider.

int8: every layer with weights that sees tokens, between pairs of QuantizeLinear and
DequantizeLinear, calibrated on images of val_select; all else stays float32. How each choice was
measured, and what was worse: docs/decisions/0011-int8.md.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cascade_compile import onnx_files
from cascade_compile.targets import Built, StageSource, tensorrt

if TYPE_CHECKING:
    from cascade_compile.sensitivity import Layer

TARGETS = (("fp32", "cpu"), ("int8", "cpu"), ("fp32", "cuda"), ("fp16", "tensorrt"))
KINDS = ["MatMul", "Conv"]


def build(source: StageSource, folder: Path, precision: str, device: str) -> Built:
    """Write `stageN.onnx` into `folder`, and the weights of a large stage beside it."""
    if precision == "fp16":
        return tensorrt.prepare(source, folder, precision)
    if precision != "int8":
        return Built(onnx_files.copy_to(source.onnx_file, folder))
    from cascade_compile.sensitivity import quantise

    target = folder / f"stage{source.index}.onnx"

    def write(samples: npt.NDArray[np.generic], layers: Sequence[Layer]) -> tuple[str, ...]:
        _write_int8(source.onnx_file, samples, [layer.node for layer in layers], target)
        return tuple(file.name for file in onnx_files.files_of(target))

    return quantise(source, folder, "onnxruntime", write)


def _write_int8(
    onnx_file: Path, samples: npt.NDArray[np.generic], nodes: Sequence[str], target: Path
) -> None:
    import onnx
    from onnxruntime import quantization as q

    class Reader(q.CalibrationDataReader):  # type: ignore[misc]
        """Eight samples at a time."""

        def __init__(self, name: str) -> None:
            self.parts = iter([{name: samples[at : at + 8]} for at in range(0, len(samples), 8)])

        def get_next(self) -> dict[str, npt.NDArray[np.generic]] | None:
            return next(self.parts, None)

    graph = onnx.load(onnx_file, load_external_data=False).graph
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".int8-") as scratch, _quiet():
        made = Path(scratch) / target.name
        q.quantize_static(
            onnx_file,
            made,
            Reader(graph.input[0].name),
            quant_format=q.QuantFormat.QDQ,
            op_types_to_quantize=KINDS,
            nodes_to_quantize=list(nodes),
            per_channel=True,
            activation_type=q.QuantType.QUInt8,
            weight_type=q.QuantType.QInt8,
            calibrate_method=q.CalibrationMethod.MinMax,
            use_external_data_format=onnx_files.data_file(onnx_file).exists(),
            # What a layer gives is rounded where the next layer takes it, not twice.
            extra_options={"OpTypesToExcludeOutputQuantization": KINDS},
        )
        model = onnx.load(made)
    onnx_files.save(model, target)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without advice on preparing the model, which the root logger gives."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
