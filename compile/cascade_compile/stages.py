"""The network cut at its exits: one exportable module a stage.

In: a merged float32 network. Out: stage 0 from uint8 pixels, every later stage from the hidden
tokens of the one before, so that nothing is computed twice; of joined networks each is cut by
itself, and its first stage takes the pixels. RoPE tables are constants of the image size; batch is
the only free axis (DESIGN, "Static shapes, dynamic batch"). What a graph is the smaller for is done
here, where every engine gains from it (docs/decisions/0016-smaller-graph.md): pixels are scaled and
embedded by one product, and RoPE turns all tokens, those without a place by nothing, and scales
queries.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DINOv3ViTConfig
from transformers.models.dinov3_vit.modeling_dinov3_vit import (
    DINOv3ViTAttention,
    DINOv3ViTEmbeddings,
    DINOv3ViTLayer,
    rotate_half,
)

from cascade_compile.merging import STATE
from cascade_runtime.manifest import StageInfo
from cascade_train import cost
from cascade_train.exits import MEAN, STD, CascadeModel, Network
from cascade_train.explora.masking import patch_side


class Stage(nn.Module):
    """Blocks `first` up to `last` (block counts) and the heads of the exit after them.

    forward: uint8 pixels [B, H, W, 3] (a network's first stage) or float32 tokens [B, N, D] to
    logits [B, 2], gate [B] and, unless this is the network's last stage, tokens [B, N, D].
    Where patches are merged (`merging`), tokens are fewer after each block, and D is wider.
    """

    cos: Tensor
    sin: Tensor
    query_cos: Tensor
    query_sin: Tensor

    def __init__(self, model: CascadeModel, index: int, image_size: int) -> None:
        super().__init__()
        bounds = (0, *model.exit_blocks)
        self.first, self.last = bounds[index], bounds[index + 1]
        self.is_first = index == 0
        self.is_last = index == len(model.exit_blocks) - 1
        backbone = model.backbone
        self.config, self.image_size = backbone.config, image_size
        if self.is_first:
            self.embeddings = RawPixels(backbone.embeddings)
        self.blocks = backbone.model.layer[self.first : self.last]
        self.heads = model.exits.heads[index]
        self.merge = getattr(self.blocks[0], "merge", 0)
        with torch.no_grad():
            cos, sin = backbone.rope_embeddings(torch.zeros(1, 3, image_size, image_size))
        scaling = self.blocks[0].attention.scaling
        for name, table, still in (("cos", cos, 1.0), ("sin", sin, 0.0)):
            turning = _with_prefix(table, self.config, still)
            self.register_buffer(name, turning)
            self.register_buffer(f"query_{name}", turning * scaling)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        tokens = self.embeddings(x) if self.is_first else x
        for block in self.blocks:
            tokens = block(tokens) if self.merge else self._through(block, tokens)
        logits, gate = self.heads.answer(tokens)
        return (logits, gate) if self.is_last else (logits, gate, tokens)

    def _through(self, block: DINOv3ViTLayer, tokens: Tensor) -> Tensor:
        attended = self._attend(block.attention, block.norm1(tokens))
        tokens = tokens + block.layer_scale1(attended)
        return tokens + block.layer_scale2(block.mlp(block.norm2(tokens)))

    def _attend(self, attention: DINOv3ViTAttention, tokens: Tensor) -> Tensor:
        """Self-attention [B, N, D] of the backbone's own layers, RoPE on every token."""
        batch, count, width = tokens.shape
        query, key, value = (
            layer(tokens).view(batch, count, attention.num_heads, -1).transpose(1, 2)
            for layer in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        query = query * self.query_cos + rotate_half(query) * self.query_sin
        key = key * self.cos + rotate_half(key) * self.sin
        mixed = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        projected: Tensor = attention.o_proj(mixed.transpose(1, 2).reshape(batch, count, width))
        return projected

    @property
    def input_name(self) -> str:
        return "pixels" if self.is_first else "tokens_in"

    @property
    def output_names(self) -> list[str]:
        return ["logits", "gate"] if self.is_last else ["logits", "gate", "tokens"]


class RawPixels(nn.Module):
    """The backbone's embedding for pixels as they are: uint8 [B, H, W, 3] to tokens [B, N, D].

    Mean and deviation (`exits.normalize`) are in its weights, exactly, as no patch is padded.
    Patches do not overlap, so their convolution is one product.
    """

    def __init__(self, embeddings: DINOv3ViTEmbeddings) -> None:
        super().__init__()
        self.cls_token, self.register_tokens = embeddings.cls_token, embeddings.register_tokens
        convolution = embeddings.patch_embeddings
        weight, bias = convolution.weight.detach(), convolution.bias.detach()  # [D, 3, P, P], [D]
        std, mean = torch.tensor(STD), torch.tensor(MEAN)
        self.patch = weight.shape[2]
        scaled = weight / (255.0 * std)[None, :, None, None]
        self.patch_embeddings = nn.Linear(3 * self.patch**2, len(weight))
        with torch.no_grad():
            self.patch_embeddings.weight.copy_(scaled.permute(0, 2, 3, 1).flatten(1))
            self.patch_embeddings.bias.copy_(bias - weight.sum(dim=(2, 3)) @ (mean / std))

    def forward(self, pixels: Tensor) -> Tensor:
        side = self.patch
        rows, columns = pixels.shape[1] // side, pixels.shape[2] // side
        # A row of a patch is one axis: OpenVINO moves it as a block.
        lines = pixels.float().view(-1, rows, side, columns, 3 * side).transpose(2, 3)
        patches = lines.reshape(-1, rows * columns, 3 * side**2)
        embedded: Tensor = self.patch_embeddings(patches)
        parts = (self.cls_token, self.register_tokens)
        prefix = (part.expand(embedded.shape[0], -1, -1) for part in parts)
        return torch.cat([*prefix, embedded], dim=1)


def _with_prefix(table: Tensor, config: DINOv3ViTConfig, value: float) -> Tensor:
    """A RoPE table [P, head width] of all tokens: class token and registers are not turned."""
    prefix = torch.full((1 + config.num_register_tokens, table.shape[1]), value)
    return torch.cat([prefix, table])


def split(model: Network, image_size: int) -> list[Stage]:
    """One `Stage` an exit, in eval mode; they share the model's weights but for the embedding."""
    model.eval()
    return [stage.eval() for stage in _stages(model, image_size)]


def _stages(model: Network, image_size: int) -> list[Stage]:
    return [
        Stage(part, index, image_size)
        for part in model.parts
        for index in range(len(part.exit_blocks))
    ]


def example(stage: Stage, batch: int) -> Tensor:
    """An input of the stage's shape, for tracing."""
    size = stage.image_size
    if stage.is_first:
        return torch.zeros((batch, size, size, 3), dtype=torch.uint8)
    make = torch.ones if stage.merge else torch.zeros  # of sizes, too
    return make((batch, *hidden_shape(stage, stage.first)))


def hidden_shape(stage: Stage, blocks: int) -> tuple[int, int]:
    """Tokens and width of what goes from block to block after so many of them."""
    tokens = token_count(stage.config, stage.image_size) - blocks * stage.merge
    return tokens, stage.config.hidden_size + (STATE if stage.merge else 0)


def token_count(config: DINOv3ViTConfig, image_size: int) -> int:
    """Class token, registers and patches of one image."""
    return 1 + config.num_register_tokens + (image_size // patch_side(config)) ** 2


def describe(model: Network, image_size: int) -> tuple[StageInfo, ...]:
    """Parameters and multiply-adds of each stage, counted from the dimensions."""
    return tuple(
        _describe(stage, f"stage{index}") for index, stage in enumerate(_stages(model, image_size))
    )


def _describe(stage: Stage, name: str) -> StageInfo:
    config, size = stage.config, stage.image_size
    embedding = cost.embedding(size, patch_side(config), config.hidden_size)
    tokens, width = hidden_shape(stage, stage.last)
    shipped = (p for key, p in stage.named_parameters() if ".auxiliary." not in key)
    return StageInfo(
        name=name,
        blocks=(stage.first, stage.last),
        parameters=sum(p.numel() for p in shipped),
        macs=(embedding if stage.is_first else 0) + _blocks(stage),
        tokens=tokens,
        width=width,
        input="pixels" if stage.is_first else "tokens",
    )


def _blocks(stage: Stage) -> int:
    """Multiply-adds of the stage's blocks."""
    width, feed_forward = stage.config.hidden_size, stage.config.intermediate_size
    gated, total = stage.config.use_gated_mlp, 0
    for index in range(stage.first, stage.last):
        before, _ = hidden_shape(stage, index)
        total += sum(cost.block(before, width, feed_forward, gated))
        if stage.merge:
            total += cost.merging(before, before - stage.merge, width, feed_forward, gated)
    return total
