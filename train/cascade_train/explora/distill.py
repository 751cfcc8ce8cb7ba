"""Self-distillation: a student agrees with its own average about other views of an image.

In: uint8 pixels. Out: a loss. Three parts:

- DINO (Caron et al., arXiv 2104.14294, eq. 1-3): the student's class token, from every crop, gives
  the same soft cluster as the teacher's from another large crop;
- iBOT (Zhou et al., arXiv 2111.07832, eq. 2): at masked patches, the student's patch token gives
  what the teacher sees there;
- KoLeo (arXiv 2304.07193, section 4): class tokens keep their distance from their nearest
  neighbour in the batch.

The teacher is an exponential average of the student; frozen weights are shared between both.
"""

from __future__ import annotations

import math

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional as F

from cascade_train.exits import normalize
from cascade_train.explora.adapt import inner, shadow_of
from cascade_train.explora.config import DistillConfig
from cascade_train.explora.masking import draw_blocks, encode, patch_side
from cascade_train.explora.views import crop_for_distill, local_side

GLOBALS = 2  # large crops an image
SETTLE = 64  # images at a time to start the heads from


class Head(nn.Module):
    """Three layers, unit length, then cosines with the prototypes: [.., D] to [.., prototypes].

    The head is new and the backbone is not. Trained tokens share a large common part, which a
    random head passes on, so that its first targets tell little apart. Tokens are therefore
    standardised by the mean and the spread that they have at the start. (Two crops of a night
    image then fall into the same first cluster twice as often as crops of two images, with a model
    trained on day images; 1.35 times as often with DINO's own start.)
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, width: int, config: DistillConfig) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width), persistent=False)
        self.register_buffer("scale", torch.ones(width), persistent=False)
        self.layers = nn.Sequential(
            nn.Linear(width, config.hidden),
            nn.GELU(),
            nn.Linear(config.hidden, config.hidden),
            nn.GELU(),
            nn.Linear(config.hidden, config.bottleneck),
        )
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)
        self.prototypes = nn.Parameter(torch.randn(config.prototypes, config.bottleneck))

    def settle(self, tokens: Tensor) -> None:
        """Take mean and spread from tokens [N, D] of the backbone as it is at the start."""
        self.mean.copy_(tokens.mean(dim=0))
        self.scale.copy_(1 / tokens.std(dim=0).clamp_min(1e-4))

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = (tokens - self.mean) * self.scale
        small = F.normalize(self.layers(tokens).float(), dim=-1, eps=1e-6)
        with torch.autocast(tokens.device.type, enabled=False):  # cosines are divided by .04
            return small @ F.normalize(self.prototypes, dim=1).T


class Heads(nn.Module):
    """One head for class tokens and one for patches, as DINOv2 has them."""

    def __init__(self, width: int, config: DistillConfig) -> None:
        super().__init__()
        self.image = Head(width, config)
        self.patch = Head(width, config)


class Targets(nn.Module):
    """From the teacher's cosines to the distributions that the student is asked for.

    `center` is the running mean that "mean" centring subtracts. It is a parameter, so that it is
    saved among the teacher's weights; no optimiser ever sees it.
    """

    def __init__(self, config: DistillConfig) -> None:
        super().__init__()
        self.sinkhorn = config.centering == "sinkhorn"
        self.center = nn.Parameter(torch.zeros(config.prototypes))

    @torch.no_grad()
    def forward(self, cosines: Tensor, temperature: float) -> Tensor:
        """[N, K] to distributions [N, K]; moves the centre on."""
        if self.sinkhorn:
            return sinkhorn(cosines / temperature)
        target = ((cosines - self.center) / temperature).softmax(dim=1)
        self.center.lerp_(cosines.mean(dim=0), 0.1)
        return target


def sinkhorn(logits: Tensor, rounds: int = 3) -> Tensor:
    """Distributions [N, K] in which every prototype is used about equally often over the N rows.

    Sinkhorn-Knopp of SwAV (Caron et al., arXiv 2006.09882, section 3.1), in logarithms.
    """
    logs = logits.float()
    for _ in range(rounds):
        logs = logs - logs.logsumexp(dim=0, keepdim=True)  # every prototype the same weight,
        logs = logs - logs.logsumexp(dim=1, keepdim=True)  # every row a distribution
    return logs.exp()


def agreement(target: Tensor, cosines: Tensor, temperature: float) -> Tensor:
    """Cross-entropy [N] of the student's cosines [N, K] against distributions [N, K]."""
    return -(target * (cosines / temperature).log_softmax(dim=1)).sum(dim=1)


def koleo(features: Tensor) -> Tensor:
    """Mean of -log distance to the nearest other row, at unit length; features [N, D], N >= 2."""
    unit = F.normalize(features.float(), dim=1, eps=1e-6)
    nearest = (unit @ unit.T).detach().fill_diagonal_(-2).argmax(dim=1)
    return -(F.pairwise_distance(unit, unit[nearest], eps=1e-6) + 1e-6).log().mean()


class DistillObjective:
    """Student `live` and teacher `shadow`; the teacher's backbone is what is kept at the end.

    Args:
        probe: uint8 [N, side, side, 3], some of the images, for the heads to start from.
    """

    def __init__(
        self, wrapped: PeftModel, config: DistillConfig, probe: Tensor, recompute: bool = False
    ) -> None:
        side = probe.shape[1]
        self.config, self.side, self.recompute = config, side, recompute
        self.backbone = inner(wrapped)
        shape = self.backbone.config
        self.backbone.embeddings.mask_token.requires_grad_(True)
        self.head = Heads(shape.hidden_size, config)
        self.prefix = 1 + shape.num_register_tokens
        self._settle(probe)
        self.live = nn.ModuleDict({"trunk": wrapped, "head": self.head})
        self.best = shadow_of(wrapped).eval()
        self.teacher_head = shadow_of(self.head)
        self.image_targets, self.patch_targets = Targets(config), Targets(config)
        self.shadow: nn.Module = nn.ModuleDict(
            {
                "trunk": self.best,
                "head": self.teacher_head,
                "image": self.image_targets,
                "patch": self.patch_targets,
            }
        )
        patch = patch_side(shape)
        self.grid = (side // patch, side // patch)
        self.small = local_side(side, patch, config.local_size)
        self.about = f"{GLOBALS} crops of {side} pixels"
        if config.local_crops:
            self.about += f", {config.local_crops} of {self.small}"

    @torch.no_grad()
    def _settle(self, probe: Tensor) -> None:
        self.backbone.eval()
        parts = [encode(self.backbone, normalize(part)) for part in probe.split(SETTLE)]
        tokens = torch.cat(parts)
        self.head.image.settle(tokens[:, 0])
        self.head.patch.settle(tokens[:, self.prefix :].flatten(0, 1))

    def loss(
        self, pixels: Tensor, generator: torch.Generator, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Scalar loss, and its parts, of uint8 [B, H, W, 3]; `progress` is the share of steps done.

        Crops of one kind go through the network together, crop by crop: row `c * B + b`.
        """
        config, batch = self.config, len(pixels)
        large = torch.cat(
            [
                crop_for_distill(pixels, self.side, config.global_scale, generator)
                for _ in range(GLOBALS)
            ]
        )
        hidden = draw_blocks(len(large), self.grid, config.mask, generator)
        order = torch.randperm(len(large), generator=generator)
        hidden[order[max(1, round(config.masked * len(large))) :]] = False
        hidden = hidden.to(large.device)
        image_target, patch_target = self._teach(large, hidden, progress)

        tokens = encode(self.backbone, large, hidden=hidden, recompute=self.recompute)
        heat = config.student_temperature
        outputs = [*self.head.image(tokens[:, 0]).split(batch)]
        outputs += self._small_crops(pixels, generator)
        pairs = [
            agreement(target, output, heat).mean()
            for t, target in enumerate(image_target.split(batch))
            for s, output in enumerate(outputs)
            if s != t  # a crop is never asked about itself
        ]
        parts = {"dino": torch.stack(pairs).mean()}
        seen = self.head.patch(tokens[:, self.prefix :][hidden])
        parts["ibot"] = _mean_by_image(agreement(patch_target, seen, heat), hidden)
        parts["koleo"] = torch.stack([koleo(t) for t in tokens[:, 0].split(batch)]).mean()
        loss = parts["dino"] + config.ibot * parts["ibot"] + config.koleo * parts["koleo"]
        return loss, {name: part.detach() for name, part in parts.items()}

    def _small_crops(self, pixels: Tensor, generator: torch.Generator) -> list[Tensor]:
        """The student's cosines [B, K] for each small crop."""
        count = self.config.local_crops
        if count == 0:
            return []
        scale = self.config.local_scale
        small = [crop_for_distill(pixels, self.small, scale, generator) for _ in range(count)]
        tokens = encode(self.backbone, torch.cat(small), recompute=self.recompute)
        return list(self.head.image(tokens[:, 0]).split(len(pixels)))

    @torch.no_grad()
    def _teach(self, large: Tensor, hidden: Tensor, progress: float) -> tuple[Tensor, Tensor]:
        """What the teacher says of whole large crops: [2 B, K], and [M, K] at hidden patches."""
        tokens = encode(inner(self.best), large)
        heat = teacher_temperature(self.config, progress)
        image = self.image_targets(self.teacher_head.image(tokens[:, 0]), heat)
        patches = tokens[:, self.prefix :][hidden]
        return image, self.patch_targets(self.teacher_head.patch(patches), heat)

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Move the teacher's weights a little towards the student's."""
        momentum = 1 - (1 - self.config.momentum) * 0.5 * (1 + math.cos(math.pi * progress))
        pairs = [(self.best, self.live["trunk"]), (self.teacher_head, self.head)]
        for slow, fast in pairs:
            for old, new in zip(slow.parameters(), fast.parameters(), strict=True):
                if new.requires_grad:
                    old.lerp_(new, 1 - momentum)


def teacher_temperature(config: DistillConfig, progress: float) -> float:
    """Rises in a straight line over the first `warmup` of the steps: sharp targets come first."""
    first, last = config.teacher_temperature
    return first + (last - first) * min(1.0, progress / config.warmup)


def _mean_by_image(losses: Tensor, hidden: Tensor) -> Tensor:
    """Mean over the images that hide patches of the mean over these; losses [hidden.sum()]."""
    counts = hidden.sum(dim=1, keepdim=True).expand_as(hidden)[hidden]
    return (losses / counts).sum() / hidden.any(dim=1).sum()
