"""Augmentation of whole batches in torch: geometry, colour, blur, noise, and the mixing of pairs.

In: float or uint8 pixels [B, H, W, 3] in 0..255 and one setting an image. Out: float pixels of the
same form. Nothing here draws a random number except `noise`, from the seeds it is given, so that
the settings of a large batch may be drawn at once and applied to its parts anywhere.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

# ITU-R BT.601 luma, and the chroma axes I and Q of NTSC, in which a hue is an angle.
_RGB_TO_YIQ = torch.tensor(
    [[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]]
)
_YIQ_TO_RGB = torch.linalg.inv(_RGB_TO_YIQ)


def moved(size: int, offset: Tensor) -> Tensor:
    """Index rows [B, size]: 0..size-1 moved by `offset` int64 [B, 1], the edges repeated."""
    return (torch.arange(size)[None, :] + offset).clamp(0, size - 1)


def shift_and_flip(pixels: Tensor, down: Tensor, right: Tensor, flips: Tensor) -> Tensor:
    """Move by whole pixels, mirror where `flips` bool [B] says so; float32 [B, H, W, 3]."""
    batch, height, width, _ = pixels.shape
    rows, columns = moved(height, down), moved(width, right)
    columns = torch.where(flips[:, None], columns.flip(1), columns)
    index = torch.arange(batch)[:, None, None]
    return pixels[index, rows[:, :, None], columns[:, None, :]].float()


def crop_boxes(areas: Tensor, ratios: Tensor, places: Tensor, height: int, width: int) -> Tensor:
    """Boxes (top, left, height, width) float32 [B, 4] in pixels that lie within height x width.

    Args:
        areas: [B], share of the whole area, 0..1. ratios: [B], width over height, relative to the
            image's own. places: [B, 2] in 0..1, where in the room that is left.
    """
    tall = (areas / ratios).sqrt().clamp(max=1) * height
    wide = (areas * ratios).sqrt().clamp(max=1) * width
    top, left = places[:, 0] * (height - tall), places[:, 1] * (width - wide)
    return torch.stack([top, left, tall, wide], dim=1)


def resized_crop(pixels: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut `boxes` [B, 4] out of float [B, H, W, 3] and scale them to `size` (height, width).

    Bilinear between pixel centres; the whole box at the same size gives the input.
    """
    batch, height, width, _ = pixels.shape
    rows = _centres(boxes[:, 0], boxes[:, 2], size[0]) / height
    columns = _centres(boxes[:, 1], boxes[:, 3], size[1]) / width
    grid = torch.stack(
        [columns[:, None, :].expand(batch, *size), rows[:, :, None].expand(batch, *size)], dim=3
    )
    cut = F.grid_sample(  # its coordinates run from -1 to 1, edge to edge
        pixels.permute(0, 3, 1, 2), 2 * grid - 1, padding_mode="border", align_corners=False
    )
    return cut.permute(0, 2, 3, 1)


def _centres(start: Tensor, length: Tensor, size: int) -> Tensor:
    """The middles of `size` equal pieces of start..start+length, [B, size]."""
    return start[:, None] + (torch.arange(size) + 0.5) * (length / size)[:, None]


def colour_matrices(saturation: Tensor, hue: Tensor) -> Tensor:
    """One matrix an image, [B, 3, 3], that keeps greys.

    Args:
        saturation: [B], factor of the chroma. hue: [B], turn in whole circles.
    """
    angle = 2 * math.pi * hue
    turned = torch.zeros(len(hue), 3, 3)
    turned[:, 0, 0] = 1
    turned[:, 1, 1] = turned[:, 2, 2] = saturation * angle.cos()
    turned[:, 1, 2] = -saturation * angle.sin()
    turned[:, 2, 1] = saturation * angle.sin()
    matrices: Tensor = _YIQ_TO_RGB @ turned @ _RGB_TO_YIQ
    return matrices


def recolour(pixels: Tensor, matrices: Tensor) -> Tensor:
    """Each pixel of image b times `matrices[b]`."""
    batch, height, width, _ = pixels.shape
    planes = pixels.reshape(batch, height * width, 3).transpose(1, 2)  # the quickest form by far
    return torch.bmm(matrices, planes).transpose(1, 2).reshape(batch, height, width, 3)


def blur(pixels: Tensor, sigmas: Tensor) -> Tensor:
    """Gaussian blur of sigma [B] pixels; images with sigma 0 stay as they are."""
    chosen = sigmas.nonzero()[:, 0]
    if len(chosen) == 0:
        return pixels
    sigma = sigmas[chosen]
    reach = max(1, math.ceil(3 * float(sigma.max())))
    steps = torch.arange(-reach, reach + 1)
    kernels = torch.exp(-0.5 * (steps / sigma[:, None]) ** 2)
    kernels = kernels * (steps.abs() <= 3 * sigma[:, None])  # whatever the others' reach is
    kernels = kernels / kernels.sum(dim=1, keepdim=True)
    soft = pixels[chosen].permute(0, 3, 1, 2)
    soft = _weighted(soft, kernels, 2)
    soft = _weighted(soft, kernels, 3)
    return pixels.index_copy(0, chosen, soft.permute(0, 2, 3, 1))


def _weighted(pixels: Tensor, kernels: Tensor, axis: int) -> Tensor:
    """A sum of shifted copies along `axis` of [B, C, H, W], weights [B, K], edges repeated."""
    reach, size = kernels.shape[1] // 2, pixels.shape[axis]
    pad = (reach, reach, 0, 0) if axis == 3 else (0, 0, reach, reach)
    wide = F.pad(pixels, pad, mode="replicate")
    total = torch.zeros_like(pixels)
    for k in range(kernels.shape[1]):
        total.addcmul_(wide.narrow(axis, k, size), kernels[:, k, None, None, None])
    return total


def noise(pixels: Tensor, levels: Tensor, seeds: Tensor) -> Tensor:
    """Add Gaussian noise of standard deviation `levels` [B], in 0..255, from `seeds` int64 [B].

    A seed an image, so that its noise is the same whichever images it is processed with.
    """
    out = pixels.clone()
    for i in levels.nonzero()[:, 0].tolist():
        generator = torch.Generator().manual_seed(int(seeds[i]))
        out[i] += levels[i] * torch.randn(pixels.shape[1:], generator=generator)
    return out


def mixup(pixels: Tensor, partners: Tensor, shares: Tensor) -> Tensor:
    """uint8 mean of image and partner, weighted `shares` [B] and the rest (1710.09412, eq. 1)."""
    weight = shares[:, None, None, None]
    mixed = pixels.float() * weight + partners.float() * (1 - weight)
    return mixed.round().clamp(0, 255).to(torch.uint8)


def cut_masks(shares: Tensor, places: Tensor, height: int, width: int) -> Tensor:
    """Where the partner shows, bool [B, H, W]: a box of area 1 - share (1905.04899, eq. 2).

    Args:
        shares: [B], the image's own share. places: [B, 2] in 0..1, the box's centre; what falls
            beyond the edge is lost, so the true share is that of the mask.
    """
    side = (1 - shares).clamp(min=0).sqrt()
    inside = []
    for axis, size in enumerate((height, width)):
        length, centre = side * size, places[:, axis] * size
        at = torch.arange(size) + 0.5
        inside.append((at - centre[:, None]).abs() < length[:, None] / 2)
    return inside[0][:, :, None] & inside[1][:, None, :]
