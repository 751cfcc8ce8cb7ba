"""Which patches are hidden, and the encoder over the ones that are not.

In: images and the numbers of the patches to keep. Out: their tokens, from an encoder that computes
these alone: a quarter of the patches costs about a quarter (He et al., arXiv 2111.06377, section
3). Patches know where they are by RoPE only, which is applied to queries and keys inside every
block, so the angles are taken at the kept patches' own places in the whole image.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import DINOv3ViTConfig, DINOv3ViTModel


def draw_kept(
    batch: int, patches: int, masked: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Hide the same share of every image's patches, at random.

    Returns:
        kept int64 [B, `kept_count`] in rising order, and hidden bool [B, patches].
    """
    count = kept_count(patches, masked)
    order = torch.rand((batch, patches), generator=generator).argsort(dim=1)
    kept = order[:, :count].sort(dim=1).values
    hidden = torch.ones((batch, patches), dtype=torch.bool).scatter(1, kept, False)
    return kept, hidden


def kept_count(patches: int, masked: float) -> int:
    """How many patches are left when a share is hidden: at least 1, and not all."""
    return min(max(1, round((1 - masked) * patches)), patches - 1)


def draw_blocks(
    batch: int, grid: tuple[int, int], share: tuple[float, float], generator: torch.Generator
) -> Tensor:
    """Hide one rectangle an image, wrapped around the edges so that every patch is as likely.

    iBOT hides blocks, not single patches (arXiv 2111.07832, section 4.1): a lone patch is too easy
    to guess from its neighbours.

    Args:
        share: between which shares of the image the rectangle's area lies, before rounding.

    Returns:
        bool [B, rows * columns], at least one True and one False in each row.
    """
    rows, columns = grid
    area = share[0] + (share[1] - share[0]) * torch.rand(batch, generator=generator)
    aspect = 4 ** (torch.rand(batch, generator=generator) - 0.5)  # from 1:2 to 2:1
    height = (area * rows * columns * aspect).sqrt().round().clamp(1, rows)
    width = (area * rows * columns / height).round().clamp(1, columns)
    width = torch.where((height == rows) & (width == columns), width - 1, width)
    top = torch.randint(rows, (batch,), generator=generator)
    left = torch.randint(columns, (batch,), generator=generator)
    in_row = (torch.arange(rows)[None, :] - top[:, None]) % rows < height[:, None]
    in_column = (torch.arange(columns)[None, :] - left[:, None]) % columns < width[:, None]
    return (in_row[:, :, None] & in_column[:, None, :]).flatten(1)


def encode(
    backbone: DINOv3ViTModel,
    images: Tensor,
    *,
    kept: Tensor | None = None,
    hidden: Tensor | None = None,
    recompute: bool = False,
) -> Tensor:
    """The backbone's normalised output tokens.

    Args:
        images: float [B, 3, H, W], scaled by mean and standard deviation.
        kept: int64 [B, K], the only patches to compute; default all P.
        hidden: bool [B, P], patches to replace by the mask token, and to compute all the same.
        recompute: keep only each block's input for the backward pass (arXiv 1604.06174).

    Returns:
        [B, 1 + registers + K, D]: class token, registers, then patches in the order of `kept`.
    """
    tokens = backbone.embeddings(images, bool_masked_pos=hidden)
    cos, sin = backbone.rope_embeddings(images)
    if kept is not None:
        prefix = tokens.shape[1] - cos.shape[0]
        index = kept[:, :, None].expand(-1, -1, tokens.shape[2])
        patches = tokens[:, prefix:].gather(1, index)
        tokens = torch.cat([tokens[:, :prefix], patches], dim=1)
        cos, sin = cos[kept][:, None], sin[kept][:, None]  # [B, 1, K, D of a head], for all heads
    for block in backbone.model.layer:
        if recompute and torch.is_grad_enabled():
            tokens = checkpoint(block, tokens, position_embeddings=(cos, sin), use_reentrant=False)
        else:
            tokens = block(tokens, position_embeddings=(cos, sin))
    return backbone.norm(tokens)


def patch_side(backbone: DINOv3ViTConfig) -> int:
    """Pixels along a patch; every preset's patches are square."""
    assert isinstance(backbone.patch_size, int)
    return backbone.patch_size


def patches_of(images: Tensor, patch: int) -> Tensor:
    """[B, 3, H, W] to [B, P, patch * patch * 3]: the pixels of each patch, row by row."""
    batch, channels, height, width = images.shape
    cut = images.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, patch * patch * channels)
