"""What the stages of a network ask of a machine: products, weights, traffic, layers.

In: a preset with its exits, or the stages of a bundle's manifest. Out: a `Work` a stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from cascade_runtime.errors import ConfigError
from cascade_runtime.manifest import StageInfo
from cascade_train import cost
from cascade_train.presets import Preset

LAYERS_A_BLOCK = 12
"""What a library launches for a block, elementwise work fused: two norms, q, k, v, the rotation of
two of them, attention, its output, two feed-forward layers and two sums."""
HANDED_ON = 16
"""Tensors of N x D elements that those layers read and write, feed-forward apart."""


@dataclass(frozen=True)
class Work:
    """One stage: FLOPs of one image in layers with weights and inside attention; weights in all;
    values that one image's layers hand to one another; layers to launch."""

    linear: float
    attention: float
    weights: float
    values: float
    layers: int

    @property
    def flops(self) -> float:
        return self.linear + self.attention


def of_preset(preset: Preset, image_size: int, exits: Sequence[int]) -> tuple[Work, ...]:
    """A `Work` for the blocks up to each exit, the last of which is the network's end.

    Raises:
        ConfigError: exits that are not block counts in order, or an image that is no whole patches.
    """
    ends = (*exits, preset.blocks) if preset.blocks not in exits else tuple(exits)
    if any(b <= a for a, b in pairwise((0, *ends))) or ends[-1] != preset.blocks:
        raise ConfigError(
            f"--exits {','.join(map(str, exits))}: {preset.name} has {preset.blocks} blocks; give "
            "block counts between, smallest first"
        )
    if image_size < preset.patch or image_size % preset.patch:
        raise ConfigError(
            f"--image-size {image_size} is not a multiple of {preset.name}'s patch, {preset.patch}"
        )
    patches = (image_size // preset.patch) ** 2
    tokens, width = 1 + preset.registers + patches, preset.hidden
    linear, attention = cost.block(tokens, width, preset.feed_forward, preset.gated)
    embedding = cost.embedding(image_size, preset.patch, width)
    return tuple(
        _work(
            linear=linear * (last - first) + (0 if first else embedding),
            attention=attention * (last - first),
            weights=linear / tokens * (last - first) + (0 if first else embedding / patches),
            tokens=tokens,
            width=width,
            blocks=last - first,
        )
        for first, last in pairwise((0, *ends))
    )


def of_stages(stages: Sequence[StageInfo]) -> tuple[Work, ...]:
    """A `Work` for each stage of a bundle."""
    made = []
    for stage in stages:
        blocks = stage.blocks[1] - stage.blocks[0]
        attention = cost.attention(stage.tokens, stage.width) * blocks
        made.append(
            _work(
                linear=max(0, stage.macs - attention),
                attention=attention,
                weights=stage.parameters,
                tokens=stage.tokens,
                width=stage.width,
                blocks=blocks,
            )
        )
    return tuple(made)


def _work(
    *, linear: float, attention: float, weights: float, tokens: int, width: int, blocks: int
) -> Work:
    hidden = linear / (tokens * width) - 4 * width * blocks  # feed-forward widths, added up
    values = tokens * (HANDED_ON * width * blocks + 2 * max(0.0, hidden))
    return Work(2 * linear, 2 * attention, weights, values, LAYERS_A_BLOCK * blocks)
