"""The trained network as the field would hold it: whole, and as one plain ONNX file.

In: a `CascadeModel`. Out: a module from pixels to the logits of its last exit, and its export.
Nothing is cut, and no gate is computed, since nobody would ask for one.
"""

from __future__ import annotations

from pathlib import Path

import torch

from cascade_compile import onnx_files
from cascade_compile.export import BATCH, OPSET, quiet
from cascade_runtime.manifest import Preprocess
from cascade_train.exits import CascadeModel, ExitHeads


class Whole(torch.nn.Module):
    """uint8 [B, H, W, 3] to the last exit's logits [B, 2]."""

    def __init__(self, model: CascadeModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        last = self.model.exits.heads[-1]
        assert isinstance(last, ExitHeads)
        logits: torch.Tensor = last.classifier(last.features(self.model.hidden(pixels)[-1]))
        return logits


def export(whole: Whole, preprocess: Preprocess, path: Path) -> None:
    """Write the network as ONNX, input `pixels`, output `logits`, batch as the free axis."""
    shape = (BATCH, preprocess.height, preprocess.width, 3)
    size = 4 * sum(parameter.numel() for parameter in whole.parameters())
    with quiet():
        torch.onnx.export(
            whole,
            (torch.zeros(shape, dtype=torch.uint8),),
            path,
            dynamo=True,
            opset_version=OPSET,
            input_names=["pixels"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
            external_data=size > onnx_files.INSIDE_BYTES,
        )
