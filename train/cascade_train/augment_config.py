"""Which changes an image may undergo in training and how strong: named policies, changeable.

In: `AugmentConfig`, a policy by name with single settings changed where wanted. Out: `Policy`,
every setting by its value. `augment` says what happens with them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal, cast

import msgspec

from cascade_runtime.errors import ConfigError
from cascade_runtime.manifest import Preprocess

_OVERSIZE = 1.25  # side of the decoded image where crops are cut from it, in training sides


@dataclass(frozen=True)
class Policy:
    """Every setting, with the values that change nothing. Shares are probabilities an image.

    flip: share mirrored left to right. shift: reach, as a fraction of the side. crop: the smallest
    area that a random resized crop keeps; 1: no crops. aspect: the largest stretch of a crop.
    brightness, contrast, saturation: largest relative change. hue: largest turn, in whole circles.
    blur, jpeg, noise: shares. blur_sigma: largest, as a fraction of the height. jpeg_quality: the
    lowest, up to 95. noise_level: largest standard deviation, as a fraction of white.
    randaugment: operations an image. magnitude: theirs, 0 to 10. mixup, cutmix: the parameter of
    Beta(a, a); both: each image gets one of them by chance. mix: share of images that are mixed.
    """

    flip: float = 0.0
    shift: float = 0.0
    crop: float = 1.0
    aspect: float = 4 / 3
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    blur: float = 0.0
    blur_sigma: float = 0.02
    jpeg: float = 0.0
    jpeg_quality: int = 30
    noise: float = 0.0
    noise_level: float = 0.05
    randaugment: int = 0
    magnitude: float = 9.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mix: float = 1.0


_LIGHT = Policy(flip=0.5, shift=0.08, brightness=0.2, contrast=0.2)
POLICIES = {
    "none": Policy(),
    "light": _LIGHT,
    "strong": Policy(
        flip=0.5,
        crop=0.5,
        brightness=0.4,
        contrast=0.4,
        saturation=0.4,
        hue=0.03,
        blur=0.2,
        jpeg=0.3,
        noise=0.3,
    ),
    "randaugment": replace(_LIGHT, brightness=0.0, contrast=0.0, crop=0.5, shift=0, randaugment=2),
}

_ONE = (0.0, 1.0)
_RANGES: dict[str, tuple[float, float]] = {
    "flip": _ONE,
    "shift": (0.0, 0.5),
    "crop": (0.05, 1.0),
    "aspect": (1.0, 4.0),
    "brightness": _ONE,
    "contrast": _ONE,
    "saturation": _ONE,
    "hue": (0.0, 0.5),
    "blur": _ONE,
    "blur_sigma": (0.002, 0.2),
    "jpeg": _ONE,
    "jpeg_quality": (1, 95),
    "noise": _ONE,
    "noise_level": _ONE,
    "randaugment": (0, 14),
    "magnitude": (0.0, 10.0),
    "mixup": (0.0, 10.0),
    "cutmix": (0.0, 10.0),
    "mix": _ONE,
}


class AugmentConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A policy by name; a setting that is not None replaces the policy's (see `Policy`).

    Mixing is in no named policy: a gate learns "this answer is right", which a mixed image blurs.
    """

    policy: Literal["none", "light", "strong", "randaugment"] = "light"
    flip: float | None = None
    shift: float | None = None
    crop: float | None = None
    aspect: float | None = None
    brightness: float | None = None
    contrast: float | None = None
    saturation: float | None = None
    hue: float | None = None
    blur: float | None = None
    blur_sigma: float | None = None
    jpeg: float | None = None
    jpeg_quality: int | None = None
    noise: float | None = None
    noise_level: float | None = None
    randaugment: int | None = None
    magnitude: float | None = None
    mixup: float | None = None
    cutmix: float | None = None
    mix: float | None = None

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise ConfigError(
                f"augment.policy is {self.policy!r}; choose one of {', '.join(POLICIES)}"
            )
        for name, value in self._changes().items():
            low, high = _RANGES[name]
            if not low <= value <= high:  # written so that NaN is refused
                raise ConfigError(
                    f"augment.{name} is {value:g}, expected a number from {low:g} to {high:g}"
                )

    def resolved(self) -> Policy:
        """The policy with the changes."""
        changes = self._changes()
        if not changes:
            return POLICIES[self.policy]
        return replace(POLICIES[self.policy], **changes)  # type: ignore[arg-type]

    def _changes(self) -> dict[str, float]:
        values = ((field.name, getattr(self, field.name)) for field in fields(Policy))
        return {name: cast(float, value) for name, value in values if value is not None}


def decode_spec(spec: Preprocess, config: AugmentConfig) -> Preprocess:
    """How to decode for training: larger than `spec` where crops are cut, else just so."""
    if config.resolved().crop == 1:
        return spec
    height, width = (round(side * _OVERSIZE) for side in (spec.height, spec.width))
    return msgspec.structs.replace(spec, height=height, width=width)
