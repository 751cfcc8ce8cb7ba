"""Does the engine say what the network says? Differences and decision flips, on real images.

In: the float32 network, the loaded engine stages, images. Out: `Parity`, per batch size 1, 3 and 8
(batch is the free axis, so an engine must be right at more than one). Limits are a share of the
largest float32 logit, by precision: rounding differs between engines, wiring does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cascade_runtime.decision import ExitOutputs, decide
from cascade_runtime.errors import CascadeError
from cascade_runtime.manifest import Decision
from cascade_runtime.stages import Stages

if TYPE_CHECKING:
    from cascade_train.exits import Network

BATCHES = (1, 3, 8)
LIMITS = {"fp32": 1e-3, "fp16": 0.02, "mixed": 0.02, "bf16": 0.1}


class ParityError(CascadeError):
    """An engine differs from the network by more than its precision explains."""


@dataclass(frozen=True)
class Parity:
    """Largest and mean difference to float32, and the share of the logits' range it may reach."""

    images: int
    max_difference: float
    mean_difference: float
    scale: float
    limit: float
    engine: dict[int, list[ExitOutputs]]
    reference: list[ExitOutputs]

    @property
    def ok(self) -> bool:
        """Within the limit; a NaN or an infinity on either side is not."""
        return self.finite and self.max_difference <= self.limit * self.scale

    @property
    def finite(self) -> bool:
        """Whether network and engine both gave numbers."""
        return bool(np.isfinite(self.max_difference) and np.isfinite(self.mean_difference))

    def flips(self, decision: Decision) -> int:
        """Images whose decision differs from the float32 network's at any of the batch sizes."""
        wanted = decide(self.reference, decision)
        flipped = np.zeros(self.images, dtype=np.bool_)
        for exits in self.engine.values():
            flipped |= decide(exits, decision).label != wanted.label
        return int(flipped.sum())

    def figures(self, decision: Decision) -> dict[str, float]:
        """What the manifest records."""
        return self.differences() | {"decision_flips": float(self.flips(decision))}

    def differences(self) -> dict[str, float]:
        """The part of it that needs no decision."""
        return {
            "images": float(self.images),
            "max_difference": round(self.max_difference, 9),
            "mean_difference": round(self.mean_difference, 9),
            "largest_logit": round(self.scale, 6),
            "limit": self.limit,
        }


def measure(
    model: Network, stages: Stages, pixels: npt.NDArray[np.uint8], precision: str
) -> Parity:
    """Run network and engine over the same images.

    Args:
        pixels: uint8 [N, H, W, 3].
    """
    return against(outputs(model, pixels), stages, pixels, precision)


def outputs(model: Network, pixels: npt.NDArray[np.uint8]) -> list[ExitOutputs]:
    """What the float32 network says at each exit."""
    import torch

    from cascade_train.loop import predict

    with torch.no_grad():
        logits, gates = predict(model, pixels)
    return [ExitOutputs(*pair) for pair in zip(logits, gates, strict=True)]


def against(
    reference: list[ExitOutputs], stages: Stages, pixels: npt.NDArray[np.uint8], precision: str
) -> Parity:
    """Run the engine over images of which the network's answers are known; needs no network."""
    engine = {batch: _in_batches(stages, pixels, batch) for batch in BATCHES}
    differences = np.concatenate(
        [
            np.abs(ours - theirs).ravel()
            for exits in engine.values()
            for out, ref in zip(exits, reference, strict=True)
            for ours, theirs in ((out.logits, ref.logits), (out.gate, ref.gate))
        ]
    )
    values = [np.abs(x).max() for out in reference for x in (out.logits, out.gate)]
    return Parity(
        images=len(pixels),
        max_difference=float(differences.max()),
        mean_difference=float(differences.mean()),
        scale=max(1.0, float(max(values))),
        limit=LIMITS[precision],
        engine=engine,
        reference=reference,
    )


def _in_batches(stages: Stages, pixels: npt.NDArray[np.uint8], batch: int) -> list[ExitOutputs]:
    """Every exit over all images, `batch` at a time, never cut smaller but at the end."""
    whole = Stages(stages.engines, batch_sizes=sorted({1, batch}), inputs=stages.inputs)
    parts: Sequence[list[ExitOutputs]] = [
        whole.forward_all(pixels[start : start + batch]) for start in range(0, len(pixels), batch)
    ]
    return [
        ExitOutputs(
            np.concatenate([p.logits for p in exits]), np.concatenate([p.gate for p in exits])
        )
        for exits in zip(*parts, strict=True)
    ]
