"""tensorrt: a strongly typed half-precision ONNX file, and from it a plan for one GPU.

fp16 is float16 with float32 islands only where real images demand them (`fp16`); mixed is fp16
with every LayerNormalization and Softmax in float32 as well. The file is made anywhere; the plan
only where a GPU and TensorRT's builder are, there and then or later from a build recipe.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from cascade_compile import fp16, inspector, nvinfer_builder, onnx_files, ranges
from cascade_compile.targets import Built, StageSource
from cascade_runtime.engines import cuda, nvinfer
from cascade_runtime.errors import TargetError
from cascade_runtime.stages import BATCH_SIZES

TARGETS = (("fp16", "sm*"), ("mixed", "sm*"))

BATCHES = (min(BATCH_SIZES), 8, max(BATCH_SIZES))
WIDER = {"fp16": (), "mixed": ("LayerNormalization", "Softmax")}


def build(source: StageSource, folder: Path, precision: str, device: str) -> Built:
    """Write `stageN.plan`, by way of the typed file."""
    typed = prepare(source, source.onnx_file.parent, precision)
    file = source.onnx_file.parent / typed.files[0]
    done = finish(StageSource(source.index, file, None, source.samples), folder, precision, device)
    for name in typed.files:
        (source.onnx_file.parent / name).unlink()
    return Built(done.files, typed.islands, typed.figures | done.figures)


def prepare(source: StageSource, folder: Path, precision: str) -> Built:
    """Write the typed ONNX file, `typedN.onnx`; needs no GPU."""
    import onnx

    measured = ranges.measure(source.onnx_file, source.samples())
    model = onnx.load(source.onnx_file)
    islands = fp16.by_kind(model, WIDER[precision], "by definition of mixed")
    half = fp16.to_half(model, islands | fp16.demanded(model, measured))
    path = folder / f"typed{source.index}.onnx"
    files = onnx_files.save(half.model, path)
    return Built(files, tuple(half.islands), half.figures)


def finish(source: StageSource, folder: Path, precision: str, device: str) -> Built:
    """Write `stageN.plan` from the typed file that `prepare` wrote.

    Raises:
        TargetError: no GPU, no builder, or an engine that is float32 in disguise.
    """
    import onnx

    reason = nvinfer_builder.missing()
    if reason is not None:
        raise TargetError(f"no TensorRT plan can be built here: {reason}")
    gpu = cuda.found().capability
    if device != gpu:
        raise TargetError(f"a plan for {device} is built on such a GPU, this one is {gpu}")
    cache = _timing_cache(gpu)
    known = cache.read_bytes() if cache.exists() else b""
    plan = nvinfer_builder.build(source.onnx_file, BATCHES, known)
    model: Any = onnx.load(source.onnx_file, load_external_data=False)
    attentions = sum(node.op_type == "Softmax" for node in model.graph.node)
    figures = inspector.figures(plan.layers, attentions)
    inspector.check(figures, fp16.shares(model)["half_products"], f"stage {source.index}")
    path = folder / f"stage{source.index}.plan"
    path.write_bytes(plan.data)
    part = cache.with_name(f".{cache.name}.part")
    part.write_bytes(plan.timing_cache)
    part.replace(cache)
    return Built((path.name,), (), figures)


def _timing_cache(gpu: str) -> Path:
    """Measured once for a TensorRT and a kind of GPU; `$CASCADE_EDGE_CACHE`, or in the home."""
    named = os.environ.get("CASCADE_EDGE_CACHE")
    root = Path(named) if named else Path.home() / ".cache" / "cascade-edge"
    root.mkdir(parents=True, exist_ok=True)
    version = ".".join(map(str, nvinfer.version()))
    return root / f"tensorrt-{version}-{gpu}.timing"
