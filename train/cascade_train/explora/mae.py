"""Masked autoencoding: hide most patches, encode the rest, paint the hidden ones.

In: uint8 pixels. Out: a loss (He et al., arXiv 2111.06377, section 3). The decoder is a few blocks
of the backbone's own kind, with the same RoPE over all patches, so that a mask token too knows
where it stands; it is thrown away at the end.
"""

from __future__ import annotations

import copy

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import DINOv3ViTConfig
from transformers.models.dinov3_vit.modeling_dinov3_vit import (
    DINOv3ViTLayer,
    DINOv3ViTRopePositionEmbedding,
)

from cascade_train.explora.adapt import inner
from cascade_train.explora.config import MaeConfig
from cascade_train.explora.masking import draw_kept, encode, kept_count, patch_side, patches_of
from cascade_train.explora.views import crop_for_mae


class Decoder(nn.Module):
    """From the kept patches' tokens to the pixels of all patches."""

    def __init__(self, backbone: DINOv3ViTConfig, config: MaeConfig) -> None:
        super().__init__()
        shape = decoder_shape(backbone, config)
        self.prefix = 1 + backbone.num_register_tokens
        self.embed = nn.Linear(backbone.hidden_size, shape.hidden_size)
        self.mask_token = nn.Parameter(torch.zeros(shape.hidden_size))
        self.rope = DINOv3ViTRopePositionEmbedding(shape)
        self.blocks = nn.ModuleList(DINOv3ViTLayer(shape) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(shape.hidden_size)
        self.paint = nn.Linear(shape.hidden_size, 3 * patch_side(backbone) ** 2)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, tokens: Tensor, kept: Tensor, images: Tensor) -> Tensor:
        """Tokens [B, prefix + K, D] to normalised pixels [B, P, patch * patch * 3]."""
        position = self.rope(images)
        small = self.embed(tokens)
        index = kept[:, :, None].expand(-1, -1, small.shape[2])
        blank = self.mask_token.to(small.dtype).expand(len(small), position[0].shape[0], -1)
        patches = blank.scatter(1, index, small[:, self.prefix :])
        small = torch.cat([small[:, : self.prefix], patches], dim=1)
        for block in self.blocks:
            small = block(small, position_embeddings=position)
        return self.paint(self.norm(small)[:, self.prefix :])


def decoder_shape(backbone: DINOv3ViTConfig, config: MaeConfig) -> DINOv3ViTConfig:
    """The decoder's blocks: narrower, the same heads, and no jitter of positions.

    RoPE takes a quarter of a head's width for each axis' sine and cosine, so the width is rounded
    up to four numbers a head.
    """
    heads = backbone.num_attention_heads
    width = config.width or backbone.hidden_size // 2
    width = -(-width // (4 * heads)) * 4 * heads
    shape = copy.deepcopy(backbone)
    shape.hidden_size, shape.intermediate_size = width, 4 * width
    shape.pos_embed_rescale = shape.pos_embed_jitter = shape.pos_embed_shift = None
    shape.drop_path_rate = 0.0
    return shape


def hidden_patch_loss(painted: Tensor, images: Tensor, hidden: Tensor, patch: int) -> Tensor:
    """Mean squared error over the hidden patches, each patch's pixels scaled to mean 0, variance 1.

    Args:
        painted: [B, P, patch * patch * 3]. images: [B, 3, H, W]. hidden: bool [B, P].
    """
    target = patches_of(images, patch)
    mean = target.mean(dim=2, keepdim=True)
    target = (target - mean) / (target.var(dim=2, keepdim=True) + 1e-6).sqrt()
    error = (painted.float() - target).square().mean(dim=2)
    return error[hidden].mean()


class MaeObjective:
    """Encoder with adapters and a decoder, both in `live`; no teacher, so `shadow` is empty."""

    def __init__(
        self, wrapped: PeftModel, config: MaeConfig, side: int, recompute: bool = False
    ) -> None:
        self.config, self.side, self.recompute = config, side, recompute
        self.backbone = inner(wrapped)
        self.head = Decoder(self.backbone.config, config)
        self.live = nn.ModuleDict({"trunk": wrapped, "head": self.head})
        self.shadow: nn.Module = nn.Module()
        self.best = wrapped  # what is kept at the end
        self.patch = patch_side(self.backbone.config)
        self.patches = (side // self.patch) ** 2
        prefix = self.head.prefix
        kept = prefix + kept_count(self.patches, config.mask)
        self.about = f"{kept} of {prefix + self.patches} tokens encoded"

    def loss(
        self, pixels: Tensor, generator: torch.Generator, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Scalar loss, and its parts, of uint8 [B, H, W, 3]; `progress` is not needed here."""
        images = crop_for_mae(pixels, self.side, self.config.scale, generator)
        kept, hidden = draw_kept(len(images), self.patches, self.config.mask, generator)
        kept, hidden = kept.to(images.device), hidden.to(images.device)
        tokens = encode(self.backbone, images, kept=kept, recompute=self.recompute)
        painted = self.head(tokens, kept, images)
        loss = hidden_patch_loss(painted, images, hidden, self.patch)
        return loss, {"mae": loss.detach()}

    def after_step(self, progress: float) -> None:
        """Nothing follows a step."""
