"""Batch augmentation on uint8 pixels: flip, shift, brightness, contrast. Seeded, torch only.

In and out: uint8 [B, H, W, 3]. Every draw comes from the generator that is passed, so an epoch can
be repeated to the byte after a restart.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Augment:
    """Shares and ranges; `shift` is a fraction of the image's side."""

    flip: float = 0.5
    shift: float = 0.08
    brightness: float = 0.2
    contrast: float = 0.2

    def __call__(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        batch, height, width, _ = pixels.shape
        flips = torch.rand(batch, generator=generator) < self.flip
        rows = _moved(batch, height, self.shift, generator)
        columns = _moved(batch, width, self.shift, generator)
        columns = torch.where(flips[:, None], columns.flip(1), columns)
        index = torch.arange(batch)[:, None, None]
        moved = pixels[index, rows[:, :, None], columns[:, None, :]].float()
        gain = 1 + self.contrast * _symmetric(batch, generator)
        offset = 255 * self.brightness * 0.5 * _symmetric(batch, generator)
        mean = moved.mean(dim=(1, 2, 3), keepdim=True)
        return ((moved - mean) * gain + mean + offset).round().clamp(0, 255).to(torch.uint8)


def _symmetric(batch: int, generator: torch.Generator) -> Tensor:
    return 2 * torch.rand((batch, 1, 1, 1), generator=generator) - 1


def _moved(batch: int, size: int, share: float, generator: torch.Generator) -> Tensor:
    """Index rows [B, size]: 0..size-1 moved by a random whole number of pixels, edges repeated."""
    reach = int(size * share)
    offset = torch.randint(-reach, reach + 1, (batch, 1), generator=generator)
    return (torch.arange(size)[None, :] + offset).clamp(0, size - 1)
