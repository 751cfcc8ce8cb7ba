"""The named network sizes: what `--preset` accepts.

Dimensions are those of the published DINOv3 ViT checkpoints (arXiv 2508.10104, table of the model
family; the checkpoints' own `config.json`). "ViT-H/16" is often quoted as a 311 M model: the real
ones are ViT-L (303.1 M) and ViT-H+ (840.6 M), and both are here. `tiny` is this project's own, for
edge-sized questions at 64 px and for everything that must run in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

from cascade_runtime.errors import ConfigError


@dataclass(frozen=True)
class Preset:
    """One ViT: `hidden` wide, `blocks` deep, SwiGLU feed-forward when `gated`."""

    name: str
    hidden: int
    blocks: int
    heads: int
    feed_forward: int
    gated: bool = False
    qv_bias: bool = True
    patch: int = 16
    registers: int = 4
    image_size: int = 224
    rescale: float | None = 2.0
    exits: tuple[int, ...] = ()
    hub_id: str | None = None

    @property
    def tokens(self) -> int:
        """Tokens of one image: class token, registers, patches."""
        return 1 + self.registers + (self.image_size // self.patch) ** 2


def _hub(name: str) -> str:
    return f"facebook/dinov3-{name}-pretrain-lvd1689m"


_ALL = (
    Preset("tiny", 128, 6, 4, 512, patch=8, registers=0, image_size=64, rescale=None, exits=(2, 6)),
    Preset("vits16", 384, 12, 6, 1536, exits=(4, 12), hub_id=_hub("vits16")),
    Preset("vits16plus", 384, 12, 6, 1536, gated=True, exits=(4, 12), hub_id=_hub("vits16plus")),
    Preset("vitb16", 768, 12, 12, 3072, exits=(4, 12), hub_id=_hub("vitb16")),
    Preset("vitl16", 1024, 24, 16, 4096, exits=(8, 24), hub_id=_hub("vitl16")),
    Preset("vith16plus", 1280, 32, 20, 5120, gated=True, exits=(10, 32), hub_id=_hub("vith16plus")),
    Preset(
        "vit7b16",
        4096,
        40,
        32,
        8192,
        gated=True,
        qv_bias=False,
        exits=(12, 40),
        hub_id=_hub("vit7b16"),
    ),
)
PRESETS = {preset.name: preset for preset in _ALL}


def preset(name: str) -> Preset:
    """Look a preset up.

    Raises:
        ConfigError: no such preset; the message lists them.
    """
    if name not in PRESETS:
        raise ConfigError(f"preset {name!r} is unknown; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]
