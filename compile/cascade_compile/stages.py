"""The network cut at its exits: one exportable module a stage.

In: a merged float32 `CascadeModel`. Out: stage 0 from uint8 pixels, every later stage from the
hidden tokens of the one before, so that nothing is computed twice. RoPE tables are constants of
the image size; batch is the only free axis (DESIGN, "Static shapes, dynamic batch").
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from cascade_runtime.manifest import StageInfo
from cascade_train.exits import CascadeModel, normalize


class Stage(nn.Module):
    """Blocks `first` up to `last` (block counts) and the heads of the exit after them.

    forward: uint8 pixels [B, H, W, 3] (stage 0) or float32 tokens [B, N, D] to logits [B, 2],
    gate [B] and, unless this is the last stage, tokens [B, N, D].
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, model: CascadeModel, index: int, image_size: int) -> None:
        super().__init__()
        bounds = (0, *model.exit_blocks)
        self.first, self.last = bounds[index], bounds[index + 1]
        self.is_first = index == 0
        self.is_last = index == len(model.exit_blocks) - 1
        backbone = model.backbone
        if self.is_first:
            self.embeddings = backbone.embeddings
        self.blocks = backbone.model.layer[self.first : self.last]
        self.heads = model.exits.heads[index]
        with torch.no_grad():
            cos, sin = backbone.rope_embeddings(torch.zeros(1, 3, image_size, image_size))
        self.register_buffer("cos", cos.clone())
        self.register_buffer("sin", sin.clone())

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        tokens = self.embeddings(normalize(x)) if self.is_first else x
        for block in self.blocks:
            tokens = block(tokens, position_embeddings=(self.cos, self.sin))
        logits, gate = self.heads.answer(tokens)
        return (logits, gate) if self.is_last else (logits, gate, tokens)

    @property
    def input_name(self) -> str:
        return "pixels" if self.is_first else "tokens_in"

    @property
    def output_names(self) -> list[str]:
        return ["logits", "gate"] if self.is_last else ["logits", "gate", "tokens"]


def split(model: CascadeModel, image_size: int) -> list[Stage]:
    """One `Stage` an exit, in eval mode; they share the model's weights."""
    model.eval()
    model.backbone.set_attn_implementation("sdpa")  # one fusable pattern a block in the graph
    return [Stage(model, i, image_size).eval() for i in range(len(model.exit_blocks))]


def example(stage: Stage, batch: int, model: CascadeModel, image_size: int) -> Tensor:
    """An input of the stage's shape, for tracing."""
    if stage.is_first:
        return torch.zeros((batch, image_size, image_size, 3), dtype=torch.uint8)
    return torch.zeros((batch, token_count(model, image_size), model.backbone.config.hidden_size))


def token_count(model: CascadeModel, image_size: int) -> int:
    """Class token, registers and patches of one image."""
    config = model.backbone.config
    return 1 + config.num_register_tokens + (image_size // config.patch_size) ** 2


def describe(model: CascadeModel, image_size: int) -> tuple[StageInfo, ...]:
    """Parameters and multiply-adds of each stage, counted from the dimensions."""
    config = model.backbone.config
    tokens, width = token_count(model, image_size), config.hidden_size
    projections = 3 if config.use_gated_mlp else 2
    block = tokens * width * (4 * width + 2 * tokens + projections * config.intermediate_size)
    patches = (image_size // config.patch_size) ** 2 * config.patch_size**2 * 3 * width
    infos = []
    bounds = (0, *model.exit_blocks)
    for index, (first, last) in enumerate(itertools.pairwise(bounds)):
        stage = Stage(model, index, image_size)
        parameters = sum(
            p.numel() for name, p in stage.named_parameters() if ".auxiliary." not in name
        )
        infos.append(
            StageInfo(
                name=f"stage{index}",
                blocks=(first, last),
                parameters=parameters,
                macs=(patches if index == 0 else 0) + (last - first) * block,
                tokens=tokens,
                width=width,
            )
        )
    return tuple(infos)
