"""Random crops and colours, all images of a batch at once, torch only.

In: uint8 [B, H, W, 3]. Out: float32 [B, 3, side, side], scaled for the backbone. Every draw comes
from the generator that is passed, so an epoch can be repeated to the bit.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from cascade_train.exits import normalize

GREY = (0.299, 0.587, 0.114)  # luma of ITU-R BT.601


def crop(
    pixels: Tensor, side: int, scale: tuple[float, float], generator: torch.Generator
) -> Tensor:
    """A random part of each image, mirrored half of the time: float32 [B, side, side, 3].

    The part's area is a share between `scale` of the image, its shape between 3:4 and 4:3, as in
    the usual random resized crop; bilinear, values stay within 0..255.
    """
    area = _uniform(pixels, *scale, generator)
    aspect = torch.exp(_uniform(pixels, -0.2877, 0.2877, generator))  # log of 3/4 and of 4/3
    width = (area * aspect).sqrt().clamp(max=1)
    height = (area / aspect).sqrt().clamp(max=1)
    x = (1 - width) * _uniform(pixels, -1, 1, generator)
    y = (1 - height) * _uniform(pixels, -1, 1, generator)
    mirror = torch.where(_uniform(pixels, 0, 1, generator) < 0.5, -1.0, 1.0)
    zero = torch.zeros_like(x)
    rows = [torch.stack([width * mirror, zero, x], 1), torch.stack([zero, height, y], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), [len(pixels), 3, side, side], align_corners=False)
    images = pixels.permute(0, 3, 1, 2).float()
    cut = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return cut.permute(0, 2, 3, 1)


def recolour(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Brightness, contrast and saturation of float [B, H, W, 3] by up to 40 %, a fifth to grey.

    The colour jitter of DINO without hue, blur and solarisation: on small images of roads the
    colour of a sign is what matters, and blur leaves nothing.
    """

    def gain(reach: float) -> Tensor:
        return _uniform(pixels, 1 - reach, 1 + reach, generator)[:, None, None, None]

    pixels = pixels * gain(0.4)
    mean = pixels.mean(dim=(1, 2, 3), keepdim=True)
    pixels = (pixels - mean) * gain(0.4) + mean
    grey = (pixels * pixels.new_tensor(GREY)).sum(dim=3, keepdim=True)
    saturation = gain(0.4) * (gain(1.0) >= 0.4)  # a fifth of [0, 2)
    return ((pixels - grey) * saturation + grey).clamp(0, 255)


def local_side(image_size: int, patch: int, asked: int) -> int:
    """The side of a small crop: what is asked for, or 3/7 of the image, in whole patches."""
    return asked or max(patch, image_size * 3 // (7 * patch) * patch)


def crop_for_mae(
    pixels: Tensor, side: int, scale: tuple[float, float], generator: torch.Generator
) -> Tensor:
    """One crop, no colours: to paint pixels back is task enough (arXiv 2111.06377, table 1e)."""
    return normalize(crop(pixels, side, scale, generator))


def crop_for_distill(
    pixels: Tensor, side: int, scale: tuple[float, float], generator: torch.Generator
) -> Tensor:
    """One crop, recoloured."""
    return normalize(recolour(crop(pixels, side, scale, generator), generator))


def _uniform(pixels: Tensor, low: float, high: float, generator: torch.Generator) -> Tensor:
    """A number an image; drawn on the processor, so that every device gets the same."""
    numbers = torch.rand(len(pixels), generator=generator)
    return (low + (high - low) * numbers).to(pixels.device)
