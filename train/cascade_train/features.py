"""Training heads on a frozen backbone: the backbone once, the heads for many epochs.

In: a cascade and its images. Out: what classifier, gate and auxiliary head read of every image, in
memory, and the heads as a network of their own that takes it. Images are taken as they are: without
augmentation, the features of an image never change.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cascade_calib.progress import Progress
from cascade_train.data.readers import Reader, Rows
from cascade_train.exits import CascadeModel, ExitHeads, ExitLogits
from cascade_train.scale import Machine

Float32 = npt.NDArray[np.float32]
BATCH = 256


class HeadsOnly(nn.Module):
    """The heads of a cascade whose backbone and norms stay as they are.

    Takes features float32 [B, S, 2 D], of S exits, instead of pixels. Shares the cascade's heads:
    what is trained here is trained there.
    """

    def __init__(self, model: CascadeModel) -> None:
        super().__init__()
        model.requires_grad_(False)
        self.heads = nn.ModuleList(model.exits.heads)
        for head in self.heads:
            for part in (head.classifier, head.gate, head.auxiliary):
                part.requires_grad_(True)

    def forward(self, features: Tensor) -> list[ExitLogits]:
        """One `ExitLogits` an exit, first exit first."""
        return [
            head.from_features(part)
            for head, part in zip(self.heads, features.unbind(1), strict=True)
            if isinstance(head, ExitHeads)
        ]


class CachedFeatures:
    """A `Reader` of features instead of pixels: `read` gives float32 [B, S, 2 D]."""

    def __init__(self, features: Float32, labels: Tensor) -> None:
        self._features = torch.from_numpy(features)
        self.labels = labels
        self.size = (1, 1)

    def read(self, rows: Rows) -> Tensor:
        return self._features[torch.from_numpy(rows)]

    def share(self) -> None:
        """Nothing to do: reading takes no work that a worker process could take over."""


@torch.no_grad()
def features(model: CascadeModel, pixels: Tensor, machine: Machine) -> Float32:
    """What the heads read of these images, float32 [B, S, 2 D]."""
    model.eval()
    with machine.autocast():
        hidden = model.hidden(pixels.to(machine.device))
        parts = [head.features(h) for head, h in zip(model.exits.heads, hidden, strict=True)]
    return torch.stack([part.float() for part in parts], dim=1).cpu().numpy()


def cache_features(
    model: CascadeModel,
    reader: Reader,
    select: npt.NDArray[np.uint8],
    machine: Machine,
    progress: Progress | None = None,
) -> tuple[CachedFeatures, Float32]:
    """The training images as features, and those of `val_select`, [N, S, 2 D]."""
    total = len(reader.labels) + len(select)

    def run(count: int, done: int, take: Any) -> Float32:
        parts = []
        for start in range(0, count, BATCH):
            rows = np.arange(start, min(start + BATCH, count))
            parts.append(features(model, take(rows), machine))
            if progress is not None and machine.is_first:
                progress("features", done + int(rows[-1]) + 1, total)
        return np.concatenate(parts)

    train = run(len(reader.labels), 0, reader.read)
    chosen = run(len(select), len(train), lambda rows: torch.from_numpy(select[rows]))
    return CachedFeatures(train, reader.labels), chosen
