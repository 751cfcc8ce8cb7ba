"""The cascade network: a DINOv3 backbone with classifier, gate and auxiliary heads at its exits.

In: uint8 pixels [B, H, W, 3]. Out: one `ExitLogits` an exit. Scaling by mean and standard
deviation is part of the network, so that the exported engine takes raw pixels.
Heads follow SelectiveNet (arXiv 1901.09192): prediction, selection and auxiliary head; here every
exit has all three, and the gate is trained to predict whether its own classifier is right.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn
from transformers import DINOv3ViTModel

from cascade_runtime.errors import ConfigError

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ExitLogits:
    """One exit's raw outputs: logits [B, 2], gate [B], auxiliary [B, 2]."""

    logits: Tensor
    gate: Tensor
    auxiliary: Tensor


def normalize(pixels: Tensor) -> Tensor:
    """uint8 [B, H, W, 3] to float32 [B, 3, H, W] with ImageNet mean and standard deviation."""
    scale = torch.tensor([1.0 / (255.0 * s) for s in STD], device=pixels.device)
    shift = torch.tensor([m / s for m, s in zip(MEAN, STD, strict=True)], device=pixels.device)
    return (pixels.to(torch.float32) * scale - shift).permute(0, 3, 1, 2)


class ExitHeads(nn.Module):
    """Classifier, gate and auxiliary head over the class token and the mean patch token."""

    score: nn.Module | None

    def __init__(self, width: int, prefix_tokens: int) -> None:
        super().__init__()
        self.joint_gate = False  # whether the gate's gradient also shapes the features
        self.register_module("score", None)  # what ships as `gate` instead of it, see `gates`
        self.prefix_tokens = prefix_tokens
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(2 * width, 2)
        self.gate = nn.Sequential(
            nn.Linear(2 * width, width // 2), nn.GELU(), nn.Linear(width // 2, 1)
        )
        self.auxiliary = nn.Linear(width, 2)

    def features(self, tokens: Tensor) -> Tensor:
        """Class token and mean patch token, [B, 2 D]."""
        tokens = self.norm(tokens)
        mean = tokens[:, self.prefix_tokens :].mean(dim=1)
        return torch.cat([tokens[:, 0], mean], dim=1)

    def answer(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """What ships: logits [B, 2] and gate [B]. The auxiliary head is training only."""
        features = self.features(tokens)
        logits, gate = self.classifier(features), self.gate(features)[:, 0]
        return logits, gate if self.score is None else self.score(features, logits, gate)

    def forward(self, tokens: Tensor) -> ExitLogits:
        return self.from_features(self.features(tokens))

    def from_features(self, features: Tensor) -> ExitLogits:
        """All three heads on [B, 2 D]; the auxiliary one reads the mean patch token alone."""
        mean = features[:, features.shape[1] // 2 :]
        logits = self.classifier(features)
        gate = self.gate(features if self.joint_gate else features.detach())
        gate = gate.mean(dim=1)  # of one column: FSDP2 does not take a view for an output
        if self.score is not None:
            gate = self.score(features, logits, gate)
        return ExitLogits(logits, gate, self.auxiliary(mean))


class Exits(nn.Module):
    """All exits' heads as one module, so that an adapter can train and save them whole."""

    def __init__(self, count: int, width: int, prefix_tokens: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(ExitHeads(width, prefix_tokens) for _ in range(count))

    def forward(self, hidden: list[Tensor]) -> list[ExitLogits]:
        return [head(tokens) for head, tokens in zip(self.heads, hidden, strict=True)]


class CascadeModel(nn.Module):
    """Backbone and exits. `exit_blocks` are block counts: (2, 6) answers after blocks 2 and 6."""

    def __init__(self, backbone: DINOv3ViTModel, exit_blocks: tuple[int, ...]) -> None:
        super().__init__()
        config = backbone.config
        check_exits(exit_blocks, config.num_hidden_layers)
        self.exit_blocks = tuple(exit_blocks)
        self.backbone = backbone
        prefix = 1 + config.num_register_tokens
        self.exits = Exits(len(exit_blocks), config.hidden_size, prefix)
        for head in self.exits.heads:  # start from the norm the backbone was trained with
            head.norm.load_state_dict(backbone.norm.state_dict())
            head.norm.eps = config.layer_norm_eps
        for parameter in self.parameters():
            if not parameter.numel():  # register tokens, of a preset that has none
                parameter.requires_grad_(False)

    def forward(self, pixels: Tensor) -> list[ExitLogits]:
        """Args: pixels uint8 [B, H, W, 3]. Returns one `ExitLogits` an exit, first exit first."""
        return self.exits(self.hidden(pixels))

    def hidden(self, pixels: Tensor) -> list[Tensor]:
        """The tokens [B, N, D] behind each exit's last block."""
        images = normalize(pixels)
        tokens = self.backbone.embeddings(images)
        positions = self.backbone.rope_embeddings(images)
        hidden = []
        for index, block in enumerate(self.backbone.model.layer[: self.exit_blocks[-1]], start=1):
            tokens = block(tokens, position_embeddings=positions)
            if index in self.exit_blocks:
                hidden.append(tokens)
        return hidden

    @property
    def parts(self) -> list[CascadeModel]:
        """Itself: see `JoinedModel`."""
        return [self]


class JoinedModel(nn.Module):
    """Cascades one after the other, the small one first, each of them taking the pixels."""

    def __init__(self, parts: Sequence[CascadeModel]) -> None:
        super().__init__()
        self.models = nn.ModuleList(parts)

    @property
    def parts(self) -> list[CascadeModel]:
        """The cascades, in their order."""
        return [model for model in self.models if isinstance(model, CascadeModel)]

    def forward(self, pixels: Tensor) -> list[ExitLogits]:
        """Args: pixels uint8 [B, H, W, 3]. Returns the exits of all parts, first part first."""
        return [out for part in self.parts for out in part(pixels)]


Network: TypeAlias = CascadeModel | JoinedModel


def check_exits(exit_blocks: tuple[int, ...], blocks: int) -> None:
    """Exits are distinct block counts in rising order, the last one within the backbone.

    Raises:
        ConfigError: they are not.
    """
    rising = all(a < b for a, b in itertools.pairwise(exit_blocks))
    if not exit_blocks or not rising or exit_blocks[0] < 1 or exit_blocks[-1] > blocks:
        raise ConfigError(
            f"exits {','.join(map(str, exit_blocks)) or '(none)'}: give rising block counts "
            f"between 1 and {blocks}, for example {max(1, blocks // 3)},{blocks}"
        )
