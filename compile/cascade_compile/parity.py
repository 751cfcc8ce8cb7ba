"""Does the engine say what the network says? Differences and decision flips, on real images.

In: the float32 network, the loaded engine stages, images. Out: `Parity`. End to end at batch sizes
1, 3 and 8 (batch is the free axis, so an engine must be right at more than one), and each stage by
itself on what the network hands it, so that a difference is found where it arises and not where it
is seen. The network is run as it was trained, not as it was cut for the export.

Limits are for end to end, by precision, as a share of the largest float32 output: rounding differs
between engines, wiring does not. They are several times what right engines were seen to do
(docs/decisions/0011-int8.md): what an engine costs in decisions is counted, and certified, anyhow.

Where patches are merged, two pairs that are nearly equally alike may be ranked otherwise by another
rounding, and the image then goes another way. So the limit is for half of the images, and an image
may differ by it and the largest change that merging makes in float32. Hidden tokens, which then
stand in another order, are not compared (docs/decisions/0019-token-merging.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cascade_runtime.decision import ExitOutputs, decide
from cascade_runtime.engines import Engine
from cascade_runtime.errors import CascadeError
from cascade_runtime.manifest import Decision
from cascade_runtime.stages import Stages

if TYPE_CHECKING:
    from cascade_train.exits import Network

BATCHES = (1, 3, 8)
LIMITS = {"fp32": 1e-3, "fp16": 0.02, "mixed": 0.02, "bf16": 0.1, "int8": 0.2}
CHUNK = 16

Float32 = npt.NDArray[np.float32]


class ParityError(CascadeError):
    """An engine differs from the network by more than its precision explains."""


@dataclass(frozen=True)
class StageDifference:
    """One output of one stage, from the same inputs.

    cosine: of all its numbers on all images as one vector; 1.0 for the same direction.
    """

    stage: int
    output: str
    max_difference: float
    mean_difference: float
    largest: float
    cosine: float


@dataclass(frozen=True)
class Parity:
    """Largest and mean difference to float32, and the share of the logits' range it may reach.

    typical: half of the images differ by no more. merging: the largest change that merging patches
    makes in float32. worst: where the largest difference is, in words. stages: each one's outputs.
    """

    images: int
    max_difference: float
    mean_difference: float
    scale: float
    limit: float
    engine: dict[int, list[ExitOutputs]]
    reference: list[ExitOutputs]
    typical: float = 0.0
    merging: float = 0.0
    worst: str = ""
    stages: tuple[StageDifference, ...] = ()

    @property
    def ok(self) -> bool:
        """Within the limit; a NaN or an infinity on either side is not."""
        allowed = self.limit * self.scale
        typical = self.typical <= allowed
        return self.finite and typical and self.max_difference <= allowed + self.merging

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
        found = {
            "images": float(self.images),
            "max_difference": round(self.max_difference, 9),
            "mean_difference": round(self.mean_difference, 9),
            "largest_logit": round(self.scale, 6),
            "limit": self.limit,
        }
        if self.merging:
            found["median_difference"] = round(self.typical, 9)
            found["merging_max_difference"] = round(self.merging, 9)
        for part in self.stages:
            name = f"stage{part.stage}_{part.output}"
            found[f"{name}_max_difference"] = round(part.max_difference, 9)
            found[f"{name}_mean_difference"] = round(part.mean_difference, 9)
            found[f"{name}_cosine"] = round(part.cosine, 9)
        return {name: value for name, value in found.items() if np.isfinite(value)}  # JSON has none

    def explain(self) -> str:
        """How far off it is, where, and which stage brings it in; for people."""
        text = (
            f"{self.max_difference:.3g} away from the network at outputs up to {self.scale:.3g} "
            f"(the limit is {self.limit:g} of that, {self.limit * self.scale:.3g}), {self.worst}"
        )
        if self.merging:
            text += (
                f"; half of the images are within {self.typical:.3g}, and merging may add "
                f"{self.merging:.3g} to the others"
            )
        if not self.stages:
            return text
        by_stage = "; ".join(
            f"stage {part.stage} {part.output} {part.max_difference:.3g} of {part.largest:.3g}, "
            f"cosine {part.cosine:.5f}"
            for part in self.stages
        )
        return f"{text}. Each stage on the network's own inputs: {by_stage}"


def measure(
    model: Network, stages: Stages, pixels: npt.NDArray[np.uint8], precision: str
) -> Parity:
    """Run network and engine over the same images.

    Args:
        pixels: uint8 [N, H, W, 3].
    """
    from cascade_compile.merging import merges, unmerged

    reference, tokens = run_network(model, pixels)
    if not merges(model):
        return against(reference, stages, pixels, precision, tokens)
    with unmerged(model):
        whole, _ = run_network(model, pixels)
    merging = max(float(gap.max()) for gap in _gaps(reference, whole).values())
    return against(reference, stages, pixels, precision, tokens, merging)


def against(
    reference: list[ExitOutputs],
    stages: Stages,
    pixels: npt.NDArray[np.uint8],
    precision: str,
    tokens: Sequence[Float32] = (),
    merging: float = 0.0,
) -> Parity:
    """Run the engine over images of which the network's answers are known; needs no network.

    Args:
        tokens: behind each exit, [N, T, D]; where there are none, stages that take tokens are
            compared end to end alone.
        merging: the largest change that merging patches makes in float32.
    """
    engine = {batch: _in_batches(stages, pixels, batch) for batch in BATCHES}
    gaps = {
        f"{place} at {batch} images a batch": gap
        for batch, exits in engine.items()
        for place, gap in _gaps(exits, reference).items()
    }
    where = max(gaps, key=lambda place: _rank(gaps[place]))
    image = int(gaps[where].reshape(len(pixels), -1).max(1).argmax())
    every = np.concatenate([gap.ravel() for gap in gaps.values()])
    by_image = np.max([gap.reshape(len(pixels), -1).max(1) for gap in gaps.values()], axis=0)
    values = [np.abs(x).max() for out in reference for x in (out.logits, out.gate)]
    return Parity(
        images=len(pixels),
        max_difference=float(every.max()),
        mean_difference=float(every.mean()),
        scale=max(1.0, float(max(values))),
        limit=LIMITS[precision],
        engine=engine,
        reference=reference,
        typical=float(np.median(by_image)),
        merging=merging,
        worst=f"{where}, image {image} of {len(pixels)}",
        stages=tuple(_by_stage(stages, pixels, reference, tokens, ordered=not merging)),
    )


def _gaps(have: Sequence[ExitOutputs], want: Sequence[ExitOutputs]) -> dict[str, Float32]:
    """Differences of every exit's logits and gate, by where they are in words."""
    return {
        f"in exit {exit}'s {name}": np.abs(ours - theirs)
        for exit, (a, b) in enumerate(zip(have, want, strict=True), start=1)
        for name, ours, theirs in (("logits", a.logits, b.logits), ("gate", a.gate, b.gate))
    }


def _rank(gaps: Float32) -> float:
    """So that what is no number comes first."""
    largest = float(gaps.max())
    return largest if np.isfinite(largest) else float("inf")


def run_network(
    model: Network, pixels: npt.NDArray[np.uint8]
) -> tuple[list[ExitOutputs], list[Float32]]:
    """What the float32 network says at each exit, and the tokens [N, T, D] behind each."""
    import torch

    model.eval()
    exits: list[list[tuple[Float32, Float32, Float32]]] = []
    with torch.no_grad():
        for start in range(0, len(pixels), CHUNK):
            batch = torch.from_numpy(pixels[start : start + CHUNK])
            rows = []
            for part in model.parts:
                for tokens, head in zip(part.hidden(batch), part.exits.heads, strict=True):
                    answer: Any = head.answer
                    logits, gate = answer(tokens)
                    rows.append((logits.numpy(), gate.numpy(), tokens.numpy()))
            exits.append(rows)
    columns = [
        [np.concatenate(c) for c in zip(*one, strict=True)] for one in zip(*exits, strict=True)
    ]
    return [ExitOutputs(c[0], c[1]) for c in columns], [c[2] for c in columns]


def _by_stage(
    stages: Stages,
    pixels: npt.NDArray[np.uint8],
    reference: Sequence[ExitOutputs],
    tokens: Sequence[Float32],
    *,
    ordered: bool,
) -> list[StageDifference]:
    found = []
    for index, (engine, kind) in enumerate(zip(stages.engines, stages.inputs, strict=True)):
        if kind == "tokens" and not tokens:
            continue
        have = _run(engine, pixels if kind == "pixels" else tokens[index - 1])
        wanted = {"logits": reference[index].logits, "gate": reference[index].gate}
        if ordered and tokens and "tokens" in have:
            wanted["tokens"] = tokens[index]
        found += [_difference(index, name, have[name], value) for name, value in wanted.items()]
    return found


def _run(engine: Engine, batch: npt.NDArray[np.generic]) -> dict[str, Float32]:
    size = max(BATCHES)
    parts = [engine.run(batch[start : start + size]) for start in range(0, len(batch), size)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _difference(stage: int, output: str, have: Float32, wanted: Float32) -> StageDifference:
    gap = np.abs(have - wanted)
    ours, theirs = have.ravel().astype(np.float64), wanted.ravel().astype(np.float64)
    lengths = float(np.linalg.norm(ours) * np.linalg.norm(theirs))
    return StageDifference(
        stage=stage,
        output=output,
        max_difference=float(gap.max()),
        mean_difference=float(gap.mean()),
        largest=float(np.abs(wanted).max()),
        cosine=float(ours @ theirs) / lengths if lengths else 1.0,
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
