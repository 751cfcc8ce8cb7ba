"""onnxruntime: the exported ONNX file is the engine."""

from __future__ import annotations

import shutil
from pathlib import Path

from cascade_compile.targets import Built, StageSource

TARGETS = (("fp32", "cpu"),)


def build(source: StageSource, folder: Path, precision: str, device: str) -> Built:
    """Copy the ONNX file, weights inside, into `folder`."""
    target = folder / f"stage{source.index}.onnx"
    shutil.copyfile(source.onnx_file, target)
    return Built((target.name,))
