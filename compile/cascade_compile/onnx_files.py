"""Where an ONNX file keeps its weights: inside, or in one file beside it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

INSIDE_BYTES = 1 << 30  # weights up to this size stay in the file; protobuf ends at 2 GiB


def data_file(onnx_file: Path) -> Path:
    """Where the weights of a large stage are; a small one has no such file."""
    return onnx_file.with_name(f"{onnx_file.name}.data")


def files_of(onnx_file: Path) -> list[Path]:
    """The file, and where there is one, its data file."""
    return [file for file in (onnx_file, data_file(onnx_file)) if file.exists()]


def copy_to(onnx_file: Path, folder: Path) -> tuple[str, ...]:
    """Copy the file with its weights, and name the copies; they keep the names written inside."""
    files = files_of(onnx_file)
    for file in files:
        shutil.copyfile(file, folder / file.name)
    return tuple(file.name for file in files)


def save(model: Any, path: Path) -> tuple[str, ...]:
    """Write the model, a large one with its weights beside it, and name the files."""
    import onnx

    beside = data_file(path)
    beside.unlink(missing_ok=True)  # of an attempt before, to which weights would be added
    if sum(len(weight.raw_data) for weight in model.graph.initializer) <= INSIDE_BYTES:
        onnx.save(model, path)
        return (path.name,)
    onnx.save(model, path, save_as_external_data=True, location=beside.name, size_threshold=1024)
    beside.chmod(0o644)  # the library writes for its owner alone
    return (path.name, beside.name)
