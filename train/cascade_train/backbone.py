"""The DINOv3 ViT backbone: built from a preset, with random, local or hub weights.

In: a preset, an image size and where weights come from. Out: a `transformers` DINOv3ViTModel. Its
blocks are walked by `exits.CascadeModel`, so that the hidden tokens at every exit are at hand.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import DINOv3ViTConfig, DINOv3ViTModel
from transformers.utils import logging as transformers_logging

from cascade_runtime.errors import ConfigError
from cascade_train.presets import Preset


def backbone_config(preset: Preset, image_size: int | None = None) -> DINOv3ViTConfig:
    """The transformers configuration of a preset.

    Raises:
        ConfigError: the image size is no multiple of the patch size.
    """
    size = image_size or preset.image_size
    if size < preset.patch or size % preset.patch:
        raise ConfigError(
            f"image size {size} is not a multiple of the patch size {preset.patch} "
            f"of preset {preset.name!r}; try {max(1, round(size / preset.patch)) * preset.patch}"
        )
    return DINOv3ViTConfig(
        hidden_size=preset.hidden,
        num_hidden_layers=preset.blocks,
        num_attention_heads=preset.heads,
        intermediate_size=preset.feed_forward,
        use_gated_mlp=preset.gated,
        hidden_act="silu" if preset.gated else "gelu",
        query_bias=preset.qv_bias,
        value_bias=preset.qv_bias,
        patch_size=preset.patch,
        num_register_tokens=preset.registers,
        image_size=size,
        pos_embed_rescale=preset.rescale,
        attn_implementation="eager",
    )


def build_backbone(
    preset: Preset, *, image_size: int | None = None, weights: str = "random"
) -> DINOv3ViTModel:
    """Build the backbone.

    Args:
        weights: "random", "hub" (the preset's own checkpoint), a hub id, or a local folder.

    Raises:
        ConfigError: the weights cannot be had, or do not fit the preset exactly.
    """
    config = backbone_config(preset, image_size)
    if weights == "random":
        return DINOv3ViTModel(config)
    source = (preset.hub_id or "") if weights == "hub" else weights
    if not source:
        raise ConfigError(f"preset {preset.name!r} has no published weights; use --weights random")
    try:
        with quiet():
            model, report = DINOv3ViTModel.from_pretrained(
                source,
                config=config,
                dtype=torch.float32,  # whatever type they were published in
                ignore_mismatched_sizes=True,  # so that they are reported, and refused by name
                use_safetensors=True,  # never a pickle
                output_loading_info=True,
            )
    except Exception as error:  # hub and file errors come in many kinds; all mean "no weights"
        reason = (str(error).strip() or repr(error)).splitlines()[0].rstrip(".")
        local = "" if Path(source).exists() else " (no local folder of that name either)"
        raise ConfigError(
            f"weights {source!r} cannot be loaded{local}: {reason}. Download the checkpoint "
            "(DINOv3 asks you to accept its licence) and pass its folder with --weights, or use "
            "--weights random"
        ) from error
    wrong = {kind: sorted(report[kind]) for kind in ("missing_keys", "unexpected_keys")}
    wrong["mismatched_keys"] = sorted(str(key[0]) for key in report.get("mismatched_keys", ()))
    for kind, keys in wrong.items():
        if keys:
            raise ConfigError(
                f"weights {source!r} do not fit preset {preset.name!r}: {len(keys)} "
                f"{kind.replace('_', ' ')}, first {keys[0]!r}"
            )
    return model


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the library's bar and table of keys: what does not fit is said in one line."""
    verbosity = transformers_logging.get_verbosity()
    bar = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(transformers_logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bar:
            transformers_logging.enable_progress_bar()
