"""onnxruntime: the exported ONNX file is the engine, or the typed one for its TensorRT provider."""

from __future__ import annotations

import shutil
from pathlib import Path

from cascade_compile.export import data_file
from cascade_compile.targets import Built, StageSource, tensorrt

TARGETS = (("fp32", "cpu"), ("fp32", "cuda"), ("fp16", "tensorrt"))


def build(source: StageSource, folder: Path, precision: str, device: str) -> Built:
    """Copy the ONNX file into `folder`, and the weights of a large stage beside it."""
    if precision == "fp16":
        return tensorrt.prepare(source, folder, precision)
    files = [file for file in (source.onnx_file, data_file(source.onnx_file)) if file.exists()]
    for file in files:
        shutil.copyfile(file, folder / file.name)  # the name is written in the ONNX file
    return Built(tuple(file.name for file in files))
