"""openvino: intermediate representation (xml and bin) from the ONNX file.

Weights stay float32 in the file; the precision is what the runtime asks the plugin to compute in
(`INFERENCE_PRECISION_HINT`), so that fp32 and bf16 differ in one recorded property.
"""

from __future__ import annotations

from pathlib import Path

from cascade_compile.targets import Built, StageSource

TARGETS = (("fp32", "cpu"), ("bf16", "cpu"))


def build(source: StageSource, folder: Path, precision: str, device: str) -> Built:
    """Convert and write `stageN.xml` and `stageN.bin`."""
    from cascade_runtime.engines.openvino import import_quietly

    openvino = import_quietly()
    model = openvino.convert_model(source.onnx_file)
    path = folder / f"stage{source.index}.xml"
    openvino.save_model(model, path, compress_to_fp16=False)
    return Built((path.name, path.with_suffix(".bin").name))
