"""Augmentation keeps the form, changes the picture as asked, and repeats itself."""

from __future__ import annotations

import io
from dataclasses import fields

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cascade_runtime.errors import ConfigError
from cascade_runtime.manifest import Preprocess
from cascade_train import augment_image
from cascade_train import augment_ops as ops
from cascade_train.augment import POLICIES, Augment, AugmentConfig, Policy, decode_spec


def run(pixels: Tensor, seed: int = 0, policy: str = "none", **settings: float) -> Tensor:
    config = AugmentConfig(policy=policy, **settings)  # type: ignore[arg-type]
    return Augment(config)(pixels, torch.Generator().manual_seed(seed))


def picture(side: int = 32) -> np.ndarray:
    """uint8 [side, side, 3]: smooth, coloured, with an edge; no two rows or columns alike."""
    y, x = np.mgrid[0:side, 0:side] / (side - 1)
    image = np.stack([255 * x, 200 * y, 120 * (x + y) / 2], axis=2)
    image[: side // 3, : side // 3] = (240, 120, 20)
    return image.astype(np.uint8)


def lights(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """The policy "light" written out: trained runs are repeated to the bit only while it stays."""

    def symmetric(batch: int) -> Tensor:
        return 2 * torch.rand((batch, 1, 1, 1), generator=generator) - 1

    def moved(batch: int, size: int) -> Tensor:
        reach = int(size * 0.08)
        offset = torch.randint(-reach, reach + 1, (batch, 1), generator=generator)
        return (torch.arange(size)[None, :] + offset).clamp(0, size - 1)

    batch, height, width, _ = pixels.shape
    flips = torch.rand(batch, generator=generator) < 0.5
    rows, columns = moved(batch, height), moved(batch, width)
    columns = torch.where(flips[:, None], columns.flip(1), columns)
    index = torch.arange(batch)[:, None, None]
    out = pixels[index, rows[:, :, None], columns[:, None, :]].float()
    gain = 1 + 0.2 * symmetric(batch)
    offset = 255 * 0.2 * 0.5 * symmetric(batch)
    mean = out.mean(dim=(1, 2, 3), keepdim=True)
    return ((out - mean) * gain + mean + offset).round().clamp(0, 255).to(torch.uint8)


# Policies and settings


def test_light_is_bit_for_bit_what_it_has_always_been() -> None:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (37, 32, 24, 3), dtype=torch.uint8, generator=generator)
    ours, written_out = torch.Generator().manual_seed(2), torch.Generator().manual_seed(2)
    for _ in range(3):
        assert torch.equal(Augment()(pixels, ours), lights(pixels, written_out))
    assert torch.equal(ours.get_state(), written_out.get_state())


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_keeps_the_form_and_repeats_itself(policy: str, pixels: Tensor) -> None:
    before = pixels.clone()
    out = run(pixels, 5, policy)
    assert out.dtype == torch.uint8
    assert out.shape == pixels.shape
    assert torch.equal(out, run(pixels, 5, policy))
    assert torch.equal(pixels, before)
    assert torch.equal(out, run(pixels, 6, policy)) == (policy == "none")


@pytest.mark.parametrize("policy", ["light", "strong"])
def test_only_the_given_generator_is_drawn_from(policy: str, pixels: Tensor) -> None:
    before = torch.random.get_rng_state()
    run(pixels, policy=policy)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_none_changes_and_draws_nothing(pixels: Tensor) -> None:
    generator = torch.Generator().manual_seed(0)
    state = generator.get_state()
    assert torch.equal(Augment(AugmentConfig(policy="none"))(pixels, generator), pixels)
    assert torch.equal(generator.get_state(), state)


def test_a_setting_replaces_the_policys_and_leaves_the_others() -> None:
    changed = AugmentConfig(policy="strong", hue=0.0, flip=0.25).resolved()
    assert (changed.hue, changed.flip) == (0.0, 0.25)
    assert (changed.crop, changed.jpeg) == (POLICIES["strong"].crop, POLICIES["strong"].jpeg)


def test_every_setting_can_be_given() -> None:
    assert AugmentConfig.__struct_fields__ == ("policy", *(field.name for field in fields(Policy)))
    for field in fields(Policy):
        with pytest.raises(ConfigError, match=rf"augment\.{field.name} is -1, expected a number"):
            AugmentConfig(**{field.name: -1})


@pytest.mark.parametrize("value", [1.5, float("nan")])
def test_a_setting_out_of_range_is_refused_by_name(value: float) -> None:
    with pytest.raises(ConfigError, match=r"augment\.flip is .*, expected a number from 0 to 1"):
        AugmentConfig(flip=value)


def test_an_unknown_policy_or_setting_is_refused() -> None:
    with pytest.raises(ConfigError, match="choose one of none, light, strong, randaugment"):
        AugmentConfig(policy="storng")  # type: ignore[arg-type]
    with pytest.raises(msgspec.ValidationError, match="flop"):
        msgspec.convert({"flop": 0.5}, AugmentConfig)


def test_decoding_is_larger_only_where_crops_are_cut() -> None:
    spec = Preprocess(height=64, width=48, crop="center")
    assert decode_spec(spec, AugmentConfig()) == spec
    larger = decode_spec(spec, AugmentConfig(policy="strong"))
    assert (larger.height, larger.width, larger.crop) == (80, 60, "center")


# Geometry


def test_flip_mirrors_left_and_right(pixels: Tensor) -> None:
    assert torch.equal(run(pixels, flip=1.0), pixels.flip(2))


def test_shift_moves_by_whole_pixels_within_reach_and_repeats_the_edge() -> None:
    ramp = torch.arange(0, 200, 10, dtype=torch.uint8)  # 20 columns, each its own value
    image = ramp[None, None, :, None].expand(64, 20, 20, 3).contiguous()
    out = run(image, shift=0.1)
    moves = (out[:, 5, 10, 0].int() - 100) // 10
    assert set(moves.tolist()) == {-2, -1, 0, 1, 2}
    right = out[moves == 2][0, 0, :, 0]
    assert right.tolist() == [*ramp[2:].tolist(), 190, 190]


def test_the_whole_box_at_the_same_size_is_the_image() -> None:
    image = torch.from_numpy(picture())[None].float()
    out = ops.resized_crop(image, torch.tensor([[0.0, 0.0, 32.0, 32.0]]), (32, 32))
    torch.testing.assert_close(out, image, rtol=0, atol=0.01)


def test_a_crop_shows_its_box_at_the_size_asked_for() -> None:
    image = torch.zeros(1, 40, 40, 3)
    image[:, 10:20, 20:40] = 200  # the box, and nothing but
    out = ops.resized_crop(image, torch.tensor([[10.0, 20.0, 10.0, 20.0]]), (16, 24))
    assert out.shape == (1, 16, 24, 3)
    assert out[:, 1:-1, 1:-1].min() > 199
    beside = ops.resized_crop(image, torch.tensor([[20.5, 0.0, 10.0, 20.0]]), (16, 24))
    assert beside.max() == 0


def test_crop_boxes_stay_inside_and_have_the_area_and_shape_asked_for() -> None:
    draw = torch.Generator().manual_seed(0)
    areas = 0.3 + 0.5 * torch.rand(500, generator=draw)
    ratios = torch.exp(torch.rand(500, generator=draw) * 0.4 - 0.2)
    places = torch.rand((500, 2), generator=draw)
    top, left, tall, wide = ops.crop_boxes(areas, ratios, places, 40, 80).unbind(1)
    assert min(float(top.min()), float(left.min())) >= 0
    assert float((top + tall).max()) <= 40.001 and float((left + wide).max()) <= 80.001
    torch.testing.assert_close(tall * wide / 3200, areas, rtol=1e-4, atol=0)
    torch.testing.assert_close(wide / tall, 2 * ratios, rtol=1e-4, atol=0)


def test_crops_bring_a_larger_image_to_the_training_size() -> None:
    large = torch.from_numpy(picture(40))[None].expand(8, -1, -1, -1)
    out = Augment(AugmentConfig(policy="none", crop=0.5))(
        large, torch.Generator().manual_seed(0), (32, 24)
    )
    assert out.shape == (8, 32, 24, 3)
    assert len({image.numpy().tobytes() for image in out}) == 8


# Colour


@pytest.mark.parametrize("level", [250, 5])
def test_bright_and_dark_levels_stop_at_the_ends_of_the_scale(level: int) -> None:
    flat = torch.full((64, 4, 4, 3), level, dtype=torch.uint8)
    out = run(flat, brightness=0.5).int()
    assert out.min() >= 0 and out.max() <= 255
    assert (out - level).abs().max() <= 0.25 * 255 + 1  # no wrap-around from 255 to 0
    assert out.unique().numel() > 10


def test_contrast_keeps_the_mean() -> None:
    image = (
        torch.tensor([90, 110], dtype=torch.uint8).repeat(32, 4, 2)[..., None].expand(-1, -1, -1, 3)
    )
    out = run(image.contiguous(), contrast=0.5).float()
    torch.testing.assert_close(out.mean(dim=(1, 2, 3)), torch.full((32,), 100.0), rtol=0, atol=0.6)
    assert out.std(dim=(1, 2, 3)).unique().numel() > 5


@pytest.mark.parametrize("setting", ["saturation", "hue"])
def test_saturation_and_hue_change_colours_and_never_greys(setting: str) -> None:
    grey = torch.arange(0, 256, 4, dtype=torch.uint8)[None, :, None, None].expand(4, 64, 2, 3)
    high = {"saturation": 1.0, "hue": 0.5}[setting]
    assert torch.equal(run(grey.contiguous(), **{setting: high}), grey)
    orange = torch.tensor([230, 120, 20], dtype=torch.uint8).expand(32, 2, 2, 3).contiguous()
    assert run(orange, **{setting: high}).reshape(32, -1).unique(dim=0).shape[0] > 20


def test_saturation_scales_the_distance_to_grey_and_hue_turns_by_circles() -> None:
    colour = torch.tensor([200.0, 80.0, 30.0]).expand(4, 1, 1, 3)
    factors, turns = torch.tensor([1.0, 0.0, 0.5, 1.0]), torch.tensor([0.0, 0.0, 0.0, 1.0])
    same, grey, half, circle = ops.recolour(colour, ops.colour_matrices(factors, turns))[:, 0, 0]
    luma = float(colour[0, 0, 0] @ torch.tensor([0.299, 0.587, 0.114]))
    torch.testing.assert_close(same, colour[0, 0, 0], rtol=0, atol=0.01)
    torch.testing.assert_close(circle, colour[0, 0, 0], rtol=0, atol=0.01)
    torch.testing.assert_close(grey, torch.full((3,), luma), rtol=0, atol=0.1)
    torch.testing.assert_close(half, (colour[0, 0, 0] + luma) / 2, rtol=0, atol=0.1)
    turned = ops.recolour(colour[:1], ops.colour_matrices(torch.ones(1), torch.tensor([1 / 3])))
    assert int(turned.argmax()) != 0  # no longer mostly red


# Blur and noise


def test_blur_is_the_gaussian_of_its_sigma_and_spares_images_without() -> None:
    image = torch.zeros(2, 31, 31, 3)
    image[:, 15, 15] = 1000.0
    sharp, soft = ops.blur(image, torch.tensor([0.0, 2.0]))
    assert torch.equal(sharp, image[0])
    assert float(soft.sum()) == pytest.approx(3000, rel=1e-4)
    at = torch.arange(31) - 15.0
    spread = (soft[..., 0].sum(dim=0) * at**2).sum() / 1000
    assert float(spread) == pytest.approx(4.0, rel=0.05)  # the variance; cut off at 3 sigma


def test_noise_has_the_level_asked_for_and_belongs_to_the_image() -> None:
    grey = torch.full((3, 64, 64, 3), 128.0)
    levels, seeds = torch.tensor([0.0, 5.0, 10.0]), torch.tensor([7, 8, 9])
    out = ops.noise(grey, levels, seeds)
    assert torch.equal(out[0], grey[0])
    assert float(out[1].std()) == pytest.approx(5, rel=0.05)
    assert float(out[2].std()) == pytest.approx(10, rel=0.05)
    assert torch.equal(ops.noise(grey[2:], levels[2:], seeds[2:])[0], out[2])


def test_shares_are_shares_of_the_images() -> None:
    image = torch.from_numpy(picture())[None].expand(400, -1, -1, -1)
    for setting in ("blur", "noise"):
        out = run(image, **{setting: 0.3, "blur_sigma": 0.1, "noise_level": 0.5})
        changed = (out != image).flatten(1).any(dim=1)
        assert float(changed.float().mean()) == pytest.approx(0.3, abs=0.08)


def test_a_part_of_a_batch_is_augmented_as_within_the_whole(pixels: Tensor) -> None:
    augment = Augment(AugmentConfig(policy="strong", blur=1.0, noise=1.0))
    draws = augment.draw(4, (32, 32), torch.Generator().manual_seed(0))
    whole, half = augment.apply(pixels, draws), slice(2, 4)
    assert torch.equal(augment.apply(pixels[half], draws.part(half)), whole[half])


# One image at a time


def test_an_image_is_changed_by_its_own_seed_alone() -> None:
    augment = Augment(AugmentConfig(policy="none", randaugment=2, jpeg=1.0))
    first = augment.image(picture(), (0, 1, 2))
    assert first.shape == (32, 32, 3) and first.dtype == np.uint8
    assert np.array_equal(first, augment.image(picture(), (0, 1, 2)))
    others = {augment.image(picture(), (0, 1, i)).tobytes() for i in range(20)}
    assert len(others) >= 18


def test_jpeg_is_that_of_the_quality_and_worse_the_lower_it_is() -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    errors = []
    for quality in (95, 60, 20):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format="JPEG", quality=quality)
        out = augment_image.recompress(image, quality)
        assert np.array_equal(out, np.asarray(Image.open(buffer)))
        errors.append(float(np.abs(out.astype(int) - image).mean()))
    assert 0 < errors[0] < errors[1] < errors[2]


@pytest.mark.parametrize("name", augment_image.NAMES)
def test_an_operation_changes_the_picture_at_full_magnitude(name: str) -> None:
    before = Image.fromarray(picture() // 2 + 40)
    for sign in (-1.0, 1.0):
        after = augment_image.OPERATIONS[name](before, 1.0, sign)
        assert (after.size, after.mode) == (before.size, "RGB")
        assert (after.tobytes() == before.tobytes()) == (name == "identity")


@pytest.mark.parametrize(
    "name", [n for n in augment_image.NAMES if n not in ("autocontrast", "equalize")]
)
def test_an_operation_changes_nothing_at_magnitude_zero(name: str) -> None:
    before = Image.fromarray(picture() // 2 + 40)
    assert augment_image.OPERATIONS[name](before, 0.0, 1.0).tobytes() == before.tobytes()


def test_moves_and_turns_keep_the_middle_where_it_is() -> None:
    image = np.zeros((33, 33, 3), dtype=np.uint8)
    image[15:18, 15:18] = 255
    for name in ("rotate", "shear x", "shear y"):
        out = np.asarray(augment_image.OPERATIONS[name](Image.fromarray(image), 1.0, 1.0))
        assert out[16, 16].min() > 150, name
    right = np.asarray(augment_image.OPERATIONS["move x"](Image.fromarray(image), 1.0, -1.0))
    assert right[16, 26].min() > 100  # a third of the width


# Mixing


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_a_soft_label_says_how_much_of_each_class_is_to_be_seen(kind: str) -> None:
    """Class 1 is white and class 0 black, so the mean level is the share of class 1."""
    labels = torch.tensor([0, 1]).repeat(16)  # counterparts are of the other class
    pixels = (labels * 255).to(torch.uint8)[:, None, None, None].expand(-1, 20, 20, 3)
    augment = Augment(AugmentConfig(policy="none", **{kind: 1.0}))
    draws = augment.draw(32, (20, 20), torch.Generator().manual_seed(3))
    mixed, soft = augment.mix(pixels, labels, draws)
    assert mixed.dtype == torch.uint8 and soft.dtype == torch.float32
    torch.testing.assert_close(soft.sum(dim=1), torch.ones(32))
    seen = mixed.float().mean(dim=(1, 2, 3)) / 255
    torch.testing.assert_close(soft[:, 1], seen, rtol=0, atol=0.003)
    assert soft[:, 1].unique().numel() > 10
    within = mixed.flatten(1).float().std(dim=1)
    assert (float(within.max()) > 0) == (kind == "cutmix")


def test_both_kinds_of_mixing_take_turns_and_some_images_stay() -> None:
    labels = torch.tensor([0, 1]).repeat(100)
    pixels = (labels * 255).to(torch.uint8)[:, None, None, None].expand(-1, 16, 16, 3)
    augment = Augment(AugmentConfig(policy="none", mixup=1.0, cutmix=1.0, mix=0.5))
    draws = augment.draw(200, (16, 16), torch.Generator().manual_seed(0))
    mixed, soft = augment.mix(pixels, labels, draws)
    whole = (mixed == pixels).flatten(1).all(dim=1)
    patchy = mixed.flatten(1).float().std(dim=1) > 0
    assert 60 < int(whole.sum()) < 140
    assert int(patchy.sum()) > 20 and int((~whole & ~patchy).sum()) > 20
    hard = torch.nn.functional.one_hot(labels, 2).float()
    assert torch.equal(soft[whole], hard[whole])
