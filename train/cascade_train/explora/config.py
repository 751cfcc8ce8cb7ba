"""Settings of domain-adaptive pretraining. Light to import: the command line reads its defaults.

In: fields by name. Out: frozen structures, or a `ConfigError` naming field, value and range.
"""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from cascade_runtime.errors import ConfigError

Objective = Literal["mae", "distill"]


def _check(field: str, value: object, good: bool, wanted: str) -> None:
    if not good:
        raise ConfigError(f"explora: {field} is {value}, it must be {wanted}")


def _check_scale(field: str, scale: tuple[float, float]) -> None:
    good = 0 < scale[0] <= scale[1] <= 1
    _check(field, scale, good, "two shares of the image, above 0, at most 1, the lower first")


class MaeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Masked autoencoding (arXiv 2111.06377, section 3).

    `mask` is the share of patches that is hidden, and that the encoder never computes. `width` 0
    makes the decoder half as wide as the encoder. `scale` bounds a crop's share of the image.
    """

    mask: float = 0.75
    width: int = 0
    blocks: int = 2
    scale: tuple[float, float] = (0.4, 1.0)

    def __post_init__(self) -> None:
        _check("mae.mask", self.mask, 0 < self.mask < 1, "between 0 and 1")
        _check("mae.width", self.width, self.width >= 0, "at least 0")
        _check("mae.blocks", self.blocks, self.blocks >= 1, "at least 1")
        _check_scale("mae.scale", self.scale)


class DistillConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Self-distillation: DINO on class tokens, iBOT on masked patches, KoLeo to spread features.

    Temperatures and the teacher's momentum are those of DINO (arXiv 2104.14294, section 3.1 and
    appendix), centring is theirs ("mean") or Sinkhorn-Knopp as in DINOv2 (arXiv 2304.07193,
    section 4). Of the large crops, a share `masked` loses a block of `mask` of its patches.
    Sizes are for small data; DINOv2 itself uses 65,536 or more prototypes and 8 small crops.
    """

    prototypes: int = 1024
    hidden: int = 512
    bottleneck: int = 128
    local_crops: int = 4
    local_size: int = 0  # pixels; 0: three sevenths of the image, 96 of 224
    global_scale: tuple[float, float] = (0.4, 1.0)
    local_scale: tuple[float, float] = (0.1, 0.4)
    centering: Literal["sinkhorn", "mean"] = "sinkhorn"
    student_temperature: float = 0.1
    teacher_temperature: tuple[float, float] = (0.04, 0.07)  # at first, and after `warmup`
    warmup: float = 0.3
    momentum: float = 0.99  # of the teacher, rising to 1
    masked: float = 0.5
    mask: tuple[float, float] = (0.1, 0.5)
    ibot: float = 1.0
    koleo: float = 0.1

    def __post_init__(self) -> None:
        for field in ("prototypes", "hidden", "bottleneck"):
            _check(f"distill.{field}", getattr(self, field), getattr(self, field) >= 2, "2 or more")
        for field in ("local_crops", "local_size", "ibot", "koleo"):
            value = getattr(self, field)
            _check(f"distill.{field}", value, 0 <= value < math.inf, "at least 0")
        for field in ("student_temperature", "warmup", "masked"):
            value = getattr(self, field)
            _check(f"distill.{field}", value, 0 < value <= 1, "above 0 and at most 1")
        _check("distill.momentum", self.momentum, 0 <= self.momentum < 1, "from 0 to below 1")
        first, last = self.teacher_temperature
        good = 0 < first <= last < self.student_temperature
        text = "rising, above 0 and below the student's"
        _check("distill.teacher_temperature", self.teacher_temperature, good, text)
        good = 0 < self.mask[0] <= self.mask[1] < 1
        _check("distill.mask", self.mask, good, "two shares between 0 and 1, the lower first")
        _check_scale("distill.global_scale", self.global_scale)
        _check_scale("distill.local_scale", self.local_scale)


class ExploraConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to adapt. ExPLoRA's own choice is rank 64 on queries and values of a ViT-L.

    `unfreeze` last blocks train in full, the others through adapters on `targets`;
    `norms` also trains every LayerNorm. `lr` is the peak; `warmup` the share of steps spent rising
    to it. For the first `head_first` of the steps the backbone waits while the objective's own new
    head or decoder learns: what a random one asks for would only harm trained weights.
    """

    objective: Objective = "distill"
    epochs: int = 20
    batch_size: int = 128
    lr: float = 5e-4
    weight_decay: float = 0.05
    warmup: float = 0.1
    head_first: float = 0.1
    clip: float = 1.0
    unfreeze: int = 1
    kind: Literal["lora", "dora", "rslora"] = "lora"
    rank: int = 16
    alpha: int | None = None  # see `adapters.AdapterConfig`
    targets: Literal["qv", "attention", "all"] = "qv"
    norms: bool = True
    checkpointing: bool = False  # compute activations twice, hold them once
    amp: Literal["auto", "bf16", "none"] = "auto"
    seed: int = 0
    mae: MaeConfig = MaeConfig()
    distill: DistillConfig = DistillConfig()

    def __post_init__(self) -> None:
        for field, low in {"epochs": 1, "batch_size": 2, "unfreeze": 0, "rank": 1}.items():
            _check(field, getattr(self, field), getattr(self, field) >= low, f"at least {low}")
        _check("lr", self.lr, 0 < self.lr < math.inf, "above 0")
        _check("alpha", self.alpha, self.alpha is None or self.alpha >= 1, "at least 1")
        good = 0 <= self.weight_decay < math.inf
        _check("weight_decay", self.weight_decay, good, "at least 0")
        _check("clip", self.clip, 0 < self.clip < math.inf, "above 0")
        for field in ("warmup", "head_first"):
            _check(field, getattr(self, field), 0 <= getattr(self, field) < 1, "from 0 to below 1")
