"""Augmentation: the changes an image undergoes in training, in what order, from which draws.

In: an `AugmentConfig`. Out: `Augment`, uint8 [B, H, W, 3] to the same. Every random number comes
from a generator that is passed, so an epoch can be repeated to the byte after a restart.

Drawing and applying are two steps. `draw` takes the settings of a whole batch from the generator;
`apply` uses the rows of its part. So a batch is augmented alike whether one process handles it, or
several each a part of it. What Pillow does better (`augment_image`) happens to one image at a time,
before, from a seed of its own.

Random resized crops: 1409.4842, as in ResNet training; mixup 1710.09412; cutmix 1905.04899;
RandAugment 1909.13719.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from cascade_runtime.preprocess import Pixels
from cascade_train import augment_ops as ops
from cascade_train.augment_config import POLICIES, AugmentConfig, Policy, decode_spec

__all__ = ["POLICIES", "Augment", "AugmentConfig", "Draws", "Policy", "decode_spec"]


@dataclass(frozen=True)
class Draws:
    """The settings of B images, each [B, ...]; None: not asked for."""

    flips: Tensor
    down: Tensor
    right: Tensor
    gain: Tensor
    offset: Tensor
    boxes: Tensor | None = None
    colours: Tensor | None = None
    sigmas: Tensor | None = None
    levels: Tensor | None = None
    seeds: Tensor | None = None
    shares: Tensor | None = None
    cuts: Tensor | None = None
    places: Tensor | None = None

    def part(self, rows: slice) -> Draws:
        """Those of some of the images."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{k: v[rows] for k, v in values.items() if v is not None})


class Augment:
    """`Augment(config)(pixels, generator)`; the steps are there one by one for those who share.

    Order: RandAugment, JPEG (`image`, an image each); flip, shift, crop, colours, contrast and
    brightness, blur, noise (`apply`); mixup or cutmix (`mix`).
    """

    def __init__(self, config: AugmentConfig | None = None) -> None:
        self.config = config or AugmentConfig()
        self.policy = p = self.config.resolved()
        self.crops = p.crop < 1
        self.mixes = p.mix > 0 and max(p.mixup, p.cutmix) > 0
        self.per_image = p.randaugment > 0 or p.jpeg > 0
        moves = p.flip or p.shift or p.brightness or p.contrast or p.saturation or p.hue
        self.per_batch = bool(moves or p.blur or p.noise or self.crops or self.mixes)

    def __call__(
        self, pixels: Tensor, generator: torch.Generator, size: tuple[int, int] | None = None
    ) -> Tensor:
        """What `draw` and `apply` do, on one whole batch."""
        if not self.per_batch:
            return pixels
        return self.apply(pixels, self.draw(len(pixels), _size(pixels), generator), size)

    def image(self, pixels: Pixels, seed: tuple[int, ...]) -> Pixels:
        """One image, uint8 [H, W, 3], through RandAugment and JPEG.

        Args:
            seed: not negative; such as (run's seed, epoch, number of the image).
        """
        from cascade_train import augment_image

        p, rng = self.policy, np.random.default_rng(seed)
        if p.randaugment:
            pixels = augment_image.rand_augment(pixels, p.randaugment, p.magnitude, rng)
        if rng.random() < p.jpeg:
            pixels = augment_image.recompress(pixels, int(rng.integers(p.jpeg_quality, 96)))
        return pixels

    def draw(self, batch: int, size: tuple[int, int], generator: torch.Generator) -> Draws:
        """Settings for `batch` images of `size` (height, width).

        The first five draws are always made, in this order; each other group only when asked for.
        """
        p, (height, width) = self.policy, size
        draws = Draws(
            flips=torch.rand(batch, generator=generator) < p.flip,
            down=_whole(batch, int(height * p.shift), generator),
            right=_whole(batch, int(width * p.shift), generator),
            gain=1 + p.contrast * _symmetric((batch, 1, 1, 1), generator),
            offset=255 * p.brightness * 0.5 * _symmetric((batch, 1, 1, 1), generator),
        )
        more: dict[str, Tensor] = {}
        if self.crops:
            areas = p.crop + (1 - p.crop) * torch.rand(batch, generator=generator)
            ratios = torch.exp(math.log(p.aspect) * _symmetric((batch,), generator))
            places = torch.rand((batch, 2), generator=generator)
            more["boxes"] = ops.crop_boxes(areas, ratios, places, height, width)
        if p.saturation or p.hue:
            chroma = 1 + p.saturation * _symmetric((batch,), generator)
            more["colours"] = ops.colour_matrices(chroma, p.hue * _symmetric((batch,), generator))
        if p.blur:
            sigmas = p.blur_sigma * height * (0.25 + 0.75 * torch.rand(batch, generator=generator))
            more["sigmas"] = sigmas * (torch.rand(batch, generator=generator) < p.blur)
        if p.noise:
            levels = 255 * p.noise_level * torch.rand(batch, generator=generator)
            more["levels"] = levels * (torch.rand(batch, generator=generator) < p.noise)
            more["seeds"] = torch.randint(2**62, (batch,), generator=generator)
        if self.mixes:
            more |= self._draw_mix(batch, generator)
        return replace(draws, **more)

    def _draw_mix(self, batch: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Each image's own share, whether the rest is cut in, and where."""
        p = self.policy
        rng = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
        half = 0.5 if p.mixup and p.cutmix else float(p.cutmix > 0)
        cuts = rng.random(batch) < half
        alpha = np.where(cuts, p.cutmix, p.mixup)
        shares = np.where(rng.random(batch) < p.mix, rng.beta(alpha, alpha), 1.0)
        return {
            "cuts": torch.from_numpy(cuts),
            "shares": torch.from_numpy(shares).float(),
            "places": torch.from_numpy(rng.random((batch, 2))).float(),
        }

    def apply(self, pixels: Tensor, draws: Draws, size: tuple[int, int] | None = None) -> Tensor:
        """uint8 [B, H, W, 3] changed as drawn; with crops, at `size` (height, width)."""
        out = ops.shift_and_flip(pixels, draws.down, draws.right, draws.flips)
        if draws.boxes is not None:
            out = ops.resized_crop(out, draws.boxes, size or _size(pixels))
        if draws.colours is not None:
            out = ops.recolour(out, draws.colours)
        mean = out.mean(dim=(1, 2, 3), keepdim=True)
        out = (out - mean) * draws.gain + mean + draws.offset
        if draws.sigmas is not None:
            out = ops.blur(out, draws.sigmas)
        if draws.levels is not None and draws.seeds is not None:
            out = ops.noise(out, draws.levels, draws.seeds)
        return out.round().clamp(0, 255).to(torch.uint8)

    def mix(self, pixels: Tensor, labels: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Mix each image with its counterpart from the batch's other end.

        Args:
            labels: int64 [B].

        Returns:
            uint8 [B, H, W, 3], and soft labels float32 [B, 2], the shares of both classes.
        """
        hard = torch.nn.functional.one_hot(labels, 2).float()
        if draws.shares is None or draws.cuts is None or draws.places is None:
            return pixels, hard
        shares, cuts, partners = draws.shares, draws.cuts, pixels.flip(0)
        masks = ops.cut_masks(shares, draws.places, *_size(pixels)) & cuts[:, None, None]
        shares = torch.where(cuts, 1 - masks.float().mean(dim=(1, 2)), shares)
        mixed = ops.mixup(pixels, partners, torch.where(cuts, 1.0, shares))
        mixed = torch.where(masks[..., None], partners, mixed)
        return mixed, shares[:, None] * hard + (1 - shares[:, None]) * hard.flip(0)


def _size(pixels: Tensor) -> tuple[int, int]:
    return pixels.shape[1], pixels.shape[2]


def _symmetric(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return 2 * torch.rand(shape, generator=generator) - 1


def _whole(batch: int, reach: int, generator: torch.Generator) -> Tensor:
    """Whole numbers from -reach to reach, int64 [B, 1]."""
    return torch.randint(-reach, reach + 1, (batch, 1), generator=generator)
