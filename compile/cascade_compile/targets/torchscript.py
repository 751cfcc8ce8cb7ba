"""torchscript: the traced and frozen stage, `stageN.ts`.

torch has deprecated TorchScript; `aot` is its successor. It is here for devices whose software
still loads nothing else.
"""

from __future__ import annotations

import io
import logging
import re
import warnings
from pathlib import Path
from typing import Any

from cascade_compile.targets import Built, StageSource

TARGETS = (("fp32", "cpu"), ("fp32", "cuda"))
LEGACY = "torchscript is legacy: torch has deprecated it; aot is what follows it"
BATCH = 3  # of the example: 1 would be taken for a constant


def build(source: StageSource, folder: Path, precision: str, device: str) -> Built:
    """Trace, freeze and write one stage."""
    import torch

    from cascade_compile.stages import example
    from cascade_compile.targets.aot import placed

    jit: Any = torch.jit
    if source.index == 0:
        logging.getLogger(__name__).warning(LEGACY)
    with torch.no_grad(), warnings.catch_warnings(), placed(source.module, device) as module:
        warnings.simplefilter("ignore")  # of torch: deprecated; and that sizes become constants
        traced = jit.trace(module, (example(module, BATCH).to(device),))
        data = io.BytesIO()
        jit.save(jit.freeze(traced.eval()), data)
    path = folder / f"stage{source.index}.ts"
    path.write_bytes(_without_notes(torch, data))
    return Built((path.name,))


def _without_notes(torch: Any, data: io.BytesIO) -> bytes:
    """The archive without what depends on more than the network.

    Its notes say where each line came from, in paths of this machine; its one class carries the
    number of classes that this process has traced before.
    """
    data.seek(0)
    reader, out = torch._C.PyTorchFileReader(data), io.BytesIO()
    writer = torch._C.PyTorchFileWriter(out)
    for name in reader.get_all_records():
        if name.endswith(".debug_pkl") or name in (
            "version",
            "byteorder",
            ".data/serialization_id",
        ):
            continue  # the last three the writer writes by itself
        record = reader.get_record(name)
        if name == "data.pkl" or name.startswith("code/"):
            record = re.sub(rb"\.___torch_mangle_\d+", b"", record)
            name = re.sub(r"/___torch_mangle_\d+", "", name)
        writer.write_record(name, record, len(record))
    writer.write_end_of_file()
    return out.getvalue()
