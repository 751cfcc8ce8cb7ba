"""openvino: intermediate representation (xml and bin) from the ONNX file.

Weights stay float32 in the file; the precision is what the runtime asks the plugin to compute in
(`INFERENCE_PRECISION_HINT`), so that fp32 and bf16 differ in one recorded property.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from cascade_compile.targets import Built, StageSource

TARGETS = (("fp32", "cpu"), ("bf16", "cpu"))
_COUNTED = re.compile(r"[A-Za-z]+_[0-9]+")


def build(source: StageSource, folder: Path, precision: str, device: str) -> Built:
    """Convert and write `stageN.xml` and `stageN.bin`."""
    from cascade_runtime.engines.openvino import import_quietly

    openvino = import_quietly()
    model = openvino.convert_model(source.onnx_file)
    steady_names(model)
    path = folder / f"stage{source.index}.xml"
    openvino.save_model(model, path, compress_to_fp16=False)
    return Built((path.name, path.with_suffix(".bin").name))


def steady_names(model: Any) -> None:
    """Number the nodes that the library named itself by their place in the graph.

    Its own numbers count every node that the process has made so far, so that one stage built
    twice would not be the same bytes.
    """
    for index, node in enumerate(model.get_ordered_ops()):
        if _COUNTED.fullmatch(node.get_friendly_name()):
            node.set_friendly_name(f"{node.get_type_name()}_{index}")
