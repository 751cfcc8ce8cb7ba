"""Augmentation keeps the form, changes the picture, and repeats itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cascade_train.augment import Augment

STILL = {"flip": 0.0, "shift": 0.0, "brightness": 0.0, "contrast": 0.0}


def run(pixels: Tensor, seed: int = 0, **settings: float) -> Tensor:
    return Augment(**settings)(pixels, torch.Generator().manual_seed(seed))


def test_form_stays_uint8_of_the_same_shape(pixels: Tensor) -> None:
    out = run(pixels)
    assert out.dtype == torch.uint8
    assert out.shape == pixels.shape


def test_same_seed_same_bytes_and_another_seed_others(pixels: Tensor) -> None:
    assert torch.equal(run(pixels, 5), run(pixels, 5))
    assert not torch.equal(run(pixels, 5), run(pixels, 6))


def test_only_the_given_generator_is_drawn_from(pixels: Tensor) -> None:
    torch.manual_seed(1)
    first = run(pixels)
    before = torch.random.get_rng_state()
    assert torch.equal(run(pixels), first)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_input_is_left_alone(pixels: Tensor) -> None:
    before = pixels.clone()
    run(pixels)
    assert torch.equal(pixels, before)


def test_nothing_asked_for_changes_nothing(pixels: Tensor) -> None:
    assert torch.equal(run(pixels, **STILL), pixels)


def test_flip_mirrors_left_and_right(pixels: Tensor) -> None:
    assert torch.equal(run(pixels, **{**STILL, "flip": 1.0}), pixels.flip(2))


def test_shift_moves_by_whole_pixels_within_reach_and_repeats_the_edge() -> None:
    ramp = torch.arange(0, 200, 10, dtype=torch.uint8)  # 20 columns, each its own value
    image = ramp[None, None, :, None].expand(64, 20, 20, 3).contiguous()
    out = run(image, **{**STILL, "shift": 0.1})
    moves = (out[:, 5, 10, 0].int() - 100) // 10
    assert set(moves.tolist()) == {-2, -1, 0, 1, 2}
    right = out[moves == 2][0, 0, :, 0]
    assert right.tolist() == [*ramp[2:].tolist(), 190, 190]


@pytest.mark.parametrize(("level", "setting"), [(250, "brightness"), (5, "brightness")])
def test_bright_and_dark_levels_stop_at_the_ends_of_the_scale(level: int, setting: str) -> None:
    flat = torch.full((64, 4, 4, 3), level, dtype=torch.uint8)
    out = run(flat, **{**STILL, setting: 0.5}).int()
    assert out.min() >= 0 and out.max() <= 255
    assert (out - level).abs().max() <= 0.25 * 255 + 1  # no wrap-around from 255 to 0
    assert out.unique().numel() > 10


def test_contrast_keeps_the_mean() -> None:
    image = (
        torch.tensor([90, 110], dtype=torch.uint8).repeat(32, 4, 2)[..., None].expand(-1, -1, -1, 3)
    )
    out = run(image.contiguous(), **{**STILL, "contrast": 0.5}).float()
    torch.testing.assert_close(out.mean(dim=(1, 2, 3)), torch.full((32,), 100.0), rtol=0, atol=0.6)
    assert out.std(dim=(1, 2, 3)).unique().numel() > 5
