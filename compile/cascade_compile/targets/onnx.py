"""onnxruntime: the exported ONNX file is the engine."""

from __future__ import annotations

import shutil
from pathlib import Path

PRECISIONS = ("fp32",)


def build(onnx_file: Path, folder: Path, precision: str) -> list[str]:
    """Copy the ONNX file, weights inside, into `folder`."""
    target = folder / f"{onnx_file.stem}.onnx"
    shutil.copyfile(onnx_file, target)
    return [target.name]
