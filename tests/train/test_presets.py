"""The named sizes are the published ones."""

import pytest
import torch

from cascade_runtime.errors import ConfigError
from cascade_train.backbone import build_backbone
from cascade_train.presets import PRESETS, preset

MILLIONS = {
    "vits16": 21.60,
    "vits16plus": 28.69,
    "vitb16": 85.66,
    "vitl16": 303.13,
    "vith16plus": 840.59,
    "vit7b16": 6716.04,
}


@pytest.mark.parametrize("name", MILLIONS)
def test_preset_has_the_published_parameter_count(name: str) -> None:
    with torch.device("meta"):  # shapes only: 6.7 billion parameters cost nothing
        backbone = build_backbone(preset(name))
    count = sum(parameter.numel() for parameter in backbone.parameters()) / 1e6
    assert count == pytest.approx(MILLIONS[name], abs=0.01)


def test_every_preset_but_tiny_is_checked_against_its_published_count() -> None:
    assert set(PRESETS) == {*MILLIONS, "tiny"}


def test_tiny_is_about_a_million_parameters_at_64_pixels() -> None:
    tiny = build_backbone(preset("tiny"))
    assert sum(p.numel() for p in tiny.parameters()) == pytest.approx(1.2e6, rel=0.05)
    assert tiny.config.image_size == 64
    assert preset("tiny").tokens == 1 + 0 + 8 * 8


@pytest.mark.parametrize("name", PRESETS)
def test_default_exits_rise_and_end_with_the_last_block(name: str) -> None:
    p = preset(name)
    assert list(p.exits) == sorted(set(p.exits))
    assert p.exits[0] >= 1
    assert p.exits[-1] == p.blocks


def test_unknown_preset_is_refused_with_the_list_of_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'vith16' is unknown.*vith16plus"):
        preset("vith16")
