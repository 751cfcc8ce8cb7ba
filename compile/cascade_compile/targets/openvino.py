"""openvino: intermediate representation (xml and bin) from the ONNX file.

Weights stay float32 in the file; the precision is what the runtime asks the plugin to compute in
(`INFERENCE_PRECISION_HINT`), so that fp32 and bf16 differ in one recorded property.
"""

from __future__ import annotations

from pathlib import Path

PRECISIONS = ("fp32", "bf16")


def build(onnx_file: Path, folder: Path, precision: str) -> list[str]:
    """Convert and write `stageN.xml` and `stageN.bin`."""
    from cascade_runtime.engines.openvino import import_quietly

    openvino = import_quietly()
    model = openvino.convert_model(onnx_file)
    path = folder / f"{onnx_file.stem}.xml"
    openvino.save_model(model, path, compress_to_fp16=False)
    return [path.name, path.with_suffix(".bin").name]
