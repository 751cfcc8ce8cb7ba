"""Each stage as a float32 ONNX file: the one form that every engine is made from.

In: a merged network. Out: `stageN.onnx` files, input `pixels` (uint8 NHWC) or `tokens_in`, outputs
`logits`, `gate`, `tokens`, and batch as the free axis. The weights are inside or, as a file of
protobuf may not pass 2 GiB, beside it in `stageN.onnx.data` where the stage is large.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from cascade_compile import attention, onnx_files
from cascade_compile.stages import Stage, example, split
from cascade_runtime.errors import CascadeError
from cascade_train.exits import Network

OPSET = 20  # LayerNormalization and Gelu are single nodes
BATCH = 3  # an example batch of 1 would be taken for a constant


class ExportError(CascadeError):
    """A stage could not be exported; says which and why."""


def export_stages(model: Network, image_size: int, folder: Path) -> list[Path]:
    """Write one ONNX file a stage.

    Raises:
        ExportError: the exporter refused a stage, or its graph does not have the stated shapes.
    """
    paths = []
    for index, stage in enumerate(split(model, image_size)):
        path = folder / f"stage{index}.onnx"
        try:
            with quiet():
                _export(stage, example(stage, BATCH), path)
        except Exception as error:  # torch.export and onnxscript raise many kinds
            raise ExportError(f"stage {index} cannot be exported to ONNX: {error}") from error
        _strip(path)
        _check(path, stage)
        paths.append(path)
    return paths


def _export(stage: Stage, tensor: torch.Tensor, path: Path) -> None:
    torch.onnx.export(
        stage,
        (tensor,),
        path,
        dynamo=True,
        opset_version=OPSET,
        input_names=[stage.input_name],
        output_names=stage.output_names,
        dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
        external_data=weights_bytes(stage) > onnx_files.INSIDE_BYTES,
        custom_translation_table=attention.table(),
    )


def weights_bytes(stage: Stage) -> int:
    """The size of the stage's weights in float32."""
    return 4 * sum(parameter.numel() for parameter in stage.parameters())


def _strip(path: Path) -> None:
    """Without the exporter's notes: they hold this machine's paths and the source of every node.

    What ships then depends on the network alone: the same bytes from every folder.
    """
    import onnx

    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    values = (*graph.input, *graph.output, *graph.value_info, *graph.initializer, *graph.node)
    for part in (model, graph, *values):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    onnx.save(model, path)


def _check(path: Path, stage: Stage) -> None:
    """The graph is valid, its names are the stated ones, and only the batch is free."""
    import onnx

    onnx.checker.check_model(path, full_check=True)  # by path: it may be over 2 GiB
    graph = onnx.load(path, load_external_data=False).graph
    names = [value.name for value in (*graph.input, *graph.output)]
    if names != [stage.input_name, *stage.output_names]:
        raise ExportError(f"{path.name}: inputs and outputs are {names}")
    for value in (*graph.input, *graph.output):
        first, *others = value.type.tensor_type.shape.dim
        if not first.dim_param or any(d.dim_param for d in others):
            raise ExportError(
                f"{path.name}: the batch must be the only free axis of {value.name!r}"
            )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the exporter's own progress lines and warnings about its internals."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
