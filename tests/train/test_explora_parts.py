"""The parts of domain-adaptive pretraining: masks, the masked encoder, both losses, adapters."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DINOv3ViTConfig, DINOv3ViTModel

from cascade_runtime.errors import ConfigError
from cascade_train.backbone import build_backbone
from cascade_train.exits import normalize
from cascade_train.explora import distill, health, views
from cascade_train.explora.adapt import adapt, merged, shadow_of
from cascade_train.explora.config import DistillConfig, ExploraConfig, MaeConfig
from cascade_train.explora.distill import DistillObjective
from cascade_train.explora.mae import Decoder, MaeObjective, hidden_patch_loss
from cascade_train.explora.masking import draw_blocks, draw_kept, encode, patches_of
from cascade_train.presets import preset

SMALL = DistillConfig(prototypes=16, hidden=16, bottleneck=8, local_crops=2)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def trained_looking(model: DINOv3ViTModel) -> DINOv3ViTModel:
    """Weights large enough that attention, and so position, matters."""
    draws = generator(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=draws))
    return model


@pytest.fixture
def backbone() -> DINOv3ViTModel:
    """Three blocks, two registers, SwiGLU, and the published presets' jitter of positions."""
    shape = DINOv3ViTConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=48,
        use_gated_mlp=True,
        patch_size=8,
        num_register_tokens=2,
        image_size=32,
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    return trained_looking(DINOv3ViTModel(shape)).eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn((3, 3, 32, 32), generator=generator())


def noise(n: int = 4, side: int = 32) -> Tensor:
    return torch.randint(0, 256, (n, side, side, 3), generator=generator(), dtype=torch.uint8)


# Masks and the masked encoder


def test_encoder_without_a_mask_is_the_backbone(backbone: DINOv3ViTModel, images: Tensor) -> None:
    whole = backbone(images).last_hidden_state
    torch.testing.assert_close(encode(backbone, images), whole, rtol=0, atol=0)
    every = torch.arange(16).expand(3, -1)
    torch.testing.assert_close(encode(backbone, images, kept=every), whole, rtol=0, atol=1e-5)


def test_mask_tokens_stand_where_the_backbone_puts_them(
    backbone: DINOv3ViTModel, images: Tensor
) -> None:
    hidden = draw_blocks(3, (4, 4), (0.2, 0.5), generator())
    whole = backbone(images, bool_masked_pos=hidden).last_hidden_state
    torch.testing.assert_close(encode(backbone, images, hidden=hidden), whole, rtol=0, atol=0)


def test_kept_patches_are_encoded_at_their_own_places(
    backbone: DINOv3ViTModel, images: Tensor
) -> None:
    """The oracle: all tokens go in, and attention to the hidden ones is forbidden."""
    kept, hidden = draw_kept(3, 16, 0.75, generator())
    blind = torch.zeros((3, 19)).masked_fill(F.pad(hidden, (3, 0)), -math.inf)[:, None, None, :]
    tokens, places = backbone.embeddings(images), backbone.rope_embeddings(images)
    for block in backbone.model.layer:
        tokens = block(tokens, attention_mask=blind, position_embeddings=places)
    wanted = backbone.norm(tokens)[~F.pad(hidden, (3, 0))].reshape(3, 3 + 4, -1)
    got = encode(backbone, images, kept=kept)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)
    elsewhere = encode(backbone, images.roll(8, dims=3), kept=(kept + 1) % 16)
    assert not torch.allclose(elsewhere[0], got[0], atol=1e-2)  # the test can tell places apart


def test_hidden_pixels_do_not_reach_the_encoder(backbone: DINOv3ViTModel, images: Tensor) -> None:
    kept, hidden = draw_kept(3, 16, 0.75, generator())
    squares = hidden.reshape(3, 1, 4, 4).float()
    other = images + 5 * F.interpolate(squares, scale_factor=8)
    assert torch.equal(encode(backbone, images, kept=kept), encode(backbone, other, kept=kept))


def test_training_jitters_positions_alike_with_and_without_a_mask(
    backbone: DINOv3ViTModel, images: Tensor
) -> None:
    backbone.train()
    torch.manual_seed(1)
    whole = encode(backbone, images)
    torch.manual_seed(1)
    chosen = encode(backbone, images, kept=torch.arange(16).expand(3, -1))
    torch.testing.assert_close(chosen, whole, rtol=0, atol=1e-5)
    assert not torch.allclose(encode(backbone, images), whole)


def test_a_quarter_of_the_patches_is_computed_in_every_block() -> None:
    tiny = build_backbone(preset("tiny"))
    seen: list[int] = []
    for block in tiny.model.layer:
        block.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    objective = MaeObjective(adapt(tiny, ExploraConfig()), MaeConfig(), 64)
    objective.loss(noise(2, 64), generator(), 0.0)
    assert seen == [1 + 16] * 6  # of 1 + 64
    assert objective.about == "17 of 65 tokens encoded"


@pytest.mark.parametrize(
    ("patches", "masked", "count"), [(64, 0.75, 16), (4, 0.99, 1), (4, 0.01, 3)]
)
def test_every_image_keeps_as_many_patches(patches: int, masked: float, count: int) -> None:
    kept, hidden = draw_kept(5, patches, masked, generator())
    assert kept.shape == (5, count)
    for row, blind in zip(kept, hidden, strict=True):
        assert sorted(row.tolist()) == row.tolist() == (~blind).nonzero()[:, 0].tolist()
    assert not torch.equal(kept, draw_kept(5, patches, masked, generator(1))[0])
    assert torch.equal(kept, draw_kept(5, patches, masked, generator())[0])


def test_every_patch_is_hidden_about_as_often() -> None:
    _, hidden = draw_kept(4000, 16, 0.75, generator())
    assert (hidden.float().mean(0) - 0.75).abs().max() < 0.04
    blocks = draw_blocks(4000, (4, 4), (0.1, 0.5), generator()).float()
    assert (blocks.mean(0) - blocks.mean()).abs().max() < 0.04


def test_blocks_are_rectangles_of_the_asked_area() -> None:
    blocks = draw_blocks(500, (8, 8), (0.1, 0.5), generator()).reshape(500, 8, 8)
    rows, columns = blocks.any(2), blocks.any(1)
    assert torch.equal(blocks, rows[:, :, None] & columns[:, None, :])
    area = blocks.float().mean((1, 2))
    assert area.min() >= 0.06
    assert area.max() <= 0.56
    tight = draw_blocks(200, (2, 2), (0.9, 0.99), generator())
    assert tight.any(1).all()
    assert not tight.all(1).any()


# Masked autoencoding


def test_patches_are_cut_row_by_row(images: Tensor) -> None:
    patches = patches_of(images, 8)
    assert patches.shape == (3, 16, 192)
    assert torch.equal(patches[1, 6].reshape(8, 8, 3), images[1, :, 8:16, 16:24].permute(1, 2, 0))


def test_loss_is_about_hidden_patches_alone(images: Tensor) -> None:
    _, hidden = draw_kept(3, 16, 0.75, generator())
    cut = patches_of(images, 8)
    perfect = (cut - cut.mean(2, keepdim=True)) / cut.std(2, keepdim=True)
    assert hidden_patch_loss(perfect, images, hidden, 8) < 1e-6
    visible = perfect + 9 * (~hidden)[:, :, None]
    assert hidden_patch_loss(visible, images, hidden, 8) < 1e-6
    wrong = perfect + 2 * hidden[:, :, None]
    assert hidden_patch_loss(wrong, images, hidden, 8) == pytest.approx(4, rel=1e-3)


def test_flat_patches_give_a_finite_loss(images: Tensor) -> None:
    _, hidden = draw_kept(3, 16, 0.75, generator())
    loss = hidden_patch_loss(torch.zeros(3, 16, 192), torch.ones_like(images), hidden, 8)
    assert loss == 0


def test_decoder_paints_by_place(backbone: DINOv3ViTModel, images: Tensor) -> None:
    """Mask tokens are all alike; what is painted for two of them differs by position alone."""
    torch.manual_seed(0)
    decoder = Decoder(backbone.config, MaeConfig())
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(5)
    kept, hidden = draw_kept(3, 16, 0.75, generator())
    painted = decoder(encode(backbone, images, kept=kept), kept, images)
    assert painted.shape == (3, 16, 192)
    blank = painted[0][hidden[0]]
    assert (blank[0] - blank[1]).abs().max() > 1e-3


# Self-distillation


def test_sinkhorn_uses_every_prototype() -> None:
    logits = 5 * torch.randn((64, 16), generator=generator())
    logits[:, 0] += 30  # what a collapse looks like: one prototype wins everywhere
    target = distill.sinkhorn(logits, rounds=50)
    torch.testing.assert_close(target.sum(1), torch.ones(64))
    torch.testing.assert_close(target.sum(0), torch.full((16,), 4.0), rtol=0.05, atol=0)
    assert logits.softmax(1)[:, 0].mean() > 0.9


def test_mean_centring_pulls_against_the_winner() -> None:
    targets = distill.Targets(DistillConfig(prototypes=4, centering="mean"))
    cosines = torch.tensor([[0.5, 0.1, 0.0, 0.1]]).repeat(8, 1)
    first = targets(cosines, 0.1)[0, 0]
    for _ in range(50):
        last = targets(cosines, 0.1)[0, 0]
    assert first > 0.9
    assert last == pytest.approx(0.25, abs=0.02)


def test_agreement_is_cross_entropy() -> None:
    cosines = torch.randn((5, 7), generator=generator())
    hard = torch.tensor([0, 3, 6, 2, 2])
    got = distill.agreement(F.one_hot(hard, 7).float(), cosines, 0.1)
    torch.testing.assert_close(got, F.cross_entropy(cosines / 0.1, hard, reduction="none"))


def test_koleo_pushes_neighbours_apart() -> None:
    features = torch.tensor([[1.0, 0.0], [0.999, 0.04], [-1.0, 0.0], [0.0, 1.0]]).requires_grad_()
    loss = distill.koleo(features)
    assert loss > distill.koleo(torch.eye(4))
    moved = features - 0.01 * torch.autograd.grad(loss, features)[0]
    before, after = (F.cosine_similarity(f[0], f[1], dim=0) for f in (features, moved))
    assert after < before
    assert torch.isfinite(distill.koleo(torch.ones(3, 2)))


def test_patch_loss_weighs_images_alike() -> None:
    hidden = torch.tensor([[1, 1, 1, 0], [0, 0, 0, 0], [0, 1, 0, 0]]).bool()
    losses = torch.tensor([1.0, 2.0, 3.0, 10.0])
    assert distill._mean_by_image(losses, hidden) == pytest.approx((2 + 10) / 2)


def test_teacher_follows_and_shares_what_is_frozen(backbone: DINOv3ViTModel) -> None:
    torch.manual_seed(0)
    objective = DistillObjective(adapt(backbone, ExploraConfig(rank=2)), SMALL, noise())
    student = dict(objective.live["trunk"].named_parameters())
    teacher = dict(objective.best.named_parameters())
    for name, weight in student.items():
        assert (teacher[name].data_ptr() == weight.data_ptr()) != weight.requires_grad, name
    name = next(n for n, p in student.items() if p.requires_grad)
    old = teacher[name].detach().clone()
    with torch.no_grad():
        student[name].add_(1)
    objective.after_step(0.0)
    torch.testing.assert_close(teacher[name], old + (1 - SMALL.momentum))
    objective.after_step(1.0)  # at the end the teacher stands still
    torch.testing.assert_close(teacher[name], old + (1 - SMALL.momentum))


def test_gradients_reach_the_student_and_never_the_teacher(backbone: DINOv3ViTModel) -> None:
    torch.manual_seed(0)
    objective = DistillObjective(adapt(backbone, ExploraConfig(rank=2)), SMALL, noise())
    loss, parts = objective.loss(noise(), generator(), 0.0)
    loss.backward()
    assert set(parts) == {"dino", "ibot", "koleo"}
    lacking = [
        n for n, p in objective.live.named_parameters() if p.requires_grad and p.grad is None
    ]
    assert lacking == []
    assert all(p.grad is None for p in objective.shadow.parameters())
    assert objective.backbone.embeddings.mask_token.grad.abs().sum() > 0


def test_a_crop_is_not_asked_about_itself(
    backbone: DINOv3ViTModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pairs of (teacher's crop, student's crop): two large ones crossed, and all small ones."""
    torch.manual_seed(0)
    objective = DistillObjective(adapt(backbone, ExploraConfig(rank=2)), SMALL, noise())
    asked: list[int] = []
    agreement = distill.agreement
    monkeypatch.setattr(
        distill, "agreement", lambda t, c, h: (asked.append(len(c)), agreement(t, c, h))[1]
    )
    objective.loss(noise(4), generator(), 0.0)
    assert asked[:-1] == [4] * (2 * (2 + SMALL.local_crops) - 2)


def test_teacher_warms_up() -> None:
    config = DistillConfig(teacher_temperature=(0.04, 0.08), warmup=0.5)
    heats = [distill.teacher_temperature(config, p) for p in (0.0, 0.25, 0.5, 1.0)]
    assert heats == pytest.approx([0.04, 0.06, 0.08, 0.08])


def test_heads_start_from_standardised_tokens() -> None:
    head = distill.Head(8, SMALL)
    tokens = 100 + torch.randn((500, 8), generator=generator()) * torch.arange(1, 9)
    head.settle(tokens)
    seen: list[Tensor] = []
    head.layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    head(tokens)
    torch.testing.assert_close(seen[0].mean(0), torch.zeros(8), rtol=0, atol=1e-4)
    torch.testing.assert_close(seen[0].std(0), torch.ones(8), rtol=0, atol=1e-4)


# That they learn: each has a loss that knowing nothing cannot go below


def steps(
    objective: MaeObjective | DistillObjective, pixels: Tensor, lr: float, n: int
) -> dict[str, Tensor]:
    """The parts of the loss after `n` steps."""
    objective.live.train()
    weights = [p for p in objective.live.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=lr)
    draws = generator()
    for step in range(n):
        loss, parts = objective.loss(pixels, draws, step / n)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        objective.after_step(step / n)
    return parts


def test_hidden_patches_are_told_from_the_others(backbone: DINOv3ViTModel) -> None:
    """Ramps, each in its own direction: a hidden patch follows from any other patch, but the best
    answer without looking, the mean, has an error of 1."""
    angle = 2 * math.pi * torch.rand(48, generator=generator())[:, None, None, None]
    place = torch.arange(32) - 15.5
    ramp = angle.cos() * place[:, None, None] + angle.sin() * place[None, :, None]
    pixels = (128 + 4 * ramp).round().to(torch.uint8).expand(-1, -1, -1, 3).contiguous()
    objective = MaeObjective(adapt(backbone, ExploraConfig(rank=4)), MaeConfig(), 32)
    assert steps(objective, pixels, 1e-2, 1)["mae"] > 0.9
    assert steps(objective, pixels, 1e-2, 60)["mae"] < 0.5


def test_crops_of_an_image_are_told_from_others(backbone: DINOv3ViTModel) -> None:
    """Images of one colour each; an even answer costs log(prototypes), and collapse no less."""
    colours = 255 * torch.rand((32, 1, 1, 3), generator=generator(5))
    pixels = colours.to(torch.uint8).expand(-1, 32, 32, -1).contiguous()
    heads = DistillConfig(
        prototypes=32,
        hidden=32,
        bottleneck=16,
        local_crops=1,
        momentum=0.9,
        teacher_temperature=(0.04, 0.04),
    )
    torch.manual_seed(0)
    objective = DistillObjective(adapt(backbone, ExploraConfig(rank=4)), heads, pixels)
    parts = steps(objective, pixels, 3e-3, 40)
    assert parts["dino"] < math.log(32) - 0.15
    assert parts["ibot"] < math.log(32) - 0.5


# Adapters, views, health, settings


def test_only_what_the_paper_trains_is_trained(backbone: DINOv3ViTModel) -> None:
    wrapped = adapt(backbone, ExploraConfig(rank=2, unfreeze=1))
    for name, parameter in wrapped.named_parameters():
        adapter = "lora_" in name
        assert not adapter or ("layer.2." not in name and ("q_proj" in name or "v_proj" in name))
        last = "layer.2.modules_to_save" in name
        norm = ".norm" in name and "original_module" not in name
        assert parameter.requires_grad == (adapter or last or norm), name
    assert sum("lora_A" in name for name, _ in wrapped.named_parameters()) == 2 * 2


def test_norms_and_last_block_can_stay_frozen(backbone: DINOv3ViTModel) -> None:
    wrapped = adapt(backbone, ExploraConfig(rank=2, unfreeze=0, norms=False, targets="all"))
    moving = [n for n, p in wrapped.named_parameters() if p.requires_grad]
    assert all("lora_" in name for name in moving)
    assert len(moving) == 2 * 3 * (4 + 3)


def test_unfreezing_everything_is_refused(backbone: DINOv3ViTModel) -> None:
    with pytest.raises(ConfigError, match=r"unfreeze is 3 but 3 blocks"):
        adapt(backbone, ExploraConfig(unfreeze=3))


def test_merged_is_unmerged_and_frozen_weights_are_untouched(
    backbone: DINOv3ViTModel, images: Tensor
) -> None:
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    wrapped = adapt(backbone, ExploraConfig(rank=2))
    draws = generator()
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=draws))
    unmerged = encode(backbone, images)
    plain = merged(wrapped)
    torch.testing.assert_close(encode(plain, images), unmerged, rtol=0, atol=1e-5)
    after = plain.state_dict()
    assert list(after) == list(before)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    moved = ("layer.2.", "norm", "q_proj.weight", "v_proj.weight")
    assert changed == {name for name in before if any(part in name for part in moved)}


def test_weights_that_are_no_numbers_are_not_merged(backbone: DINOv3ViTModel) -> None:
    wrapped = adapt(backbone, ExploraConfig(rank=2))
    with torch.no_grad():
        next(p for n, p in wrapped.named_parameters() if "lora_B" in n).fill_(math.nan)
    with pytest.raises(ConfigError, match="cannot be merged"):
        merged(wrapped)


def test_a_shadow_leaves_its_original_alone() -> None:
    layer = torch.nn.Linear(2, 2)
    layer.bias.requires_grad_(False)
    copy = shadow_of(layer)
    with torch.no_grad():
        copy.weight.add_(1)
    assert not torch.equal(copy.weight, layer.weight)
    assert copy.bias is layer.bias


@pytest.mark.parametrize("objective", ["mae", "distill"])
def test_recomputing_changes_memory_not_gradients(backbone: DINOv3ViTModel, objective: str) -> None:
    wrapped = adapt(backbone, ExploraConfig(rank=2)).train()
    made: MaeObjective | DistillObjective = MaeObjective(wrapped, MaeConfig(), 32)
    if objective == "distill":
        made = DistillObjective(wrapped, SMALL, noise())
    gradients = []
    for recompute in (False, True):
        made.recompute = recompute
        made.live.zero_grad()
        torch.manual_seed(0)
        made.loss(noise(), generator(), 0.0)[0].backward()
        gradients.append([p.grad.clone() for p in wrapped.parameters() if p.grad is not None])
    assert any(g.abs().sum() > 0 for g in gradients[0])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-6)


def test_a_crop_is_a_part_of_the_image_of_the_asked_size_half_of_them_mirrored() -> None:
    ramp = torch.arange(0, 256, 4, dtype=torch.uint8)[None, None, :, None].expand(400, 64, 64, 3)
    cut = views.crop(ramp, 16, (0.25, 0.36), generator())
    assert cut.shape == (400, 16, 16, 3)
    assert torch.allclose(cut, cut[:, :1])  # rows stay rows
    steps = cut[:, 0, 1:, 0] - cut[:, 0, :-1, 0]
    rising = (steps >= -1e-3).all(1)
    assert (rising ^ (steps <= 1e-3).all(1)).all()
    assert 0.4 < rising.float().mean() < 0.6
    width = steps.abs().mean(1) * 16 / 256
    assert width.min() > 0.5 * 0.75**0.5 - 0.04  # a side is the root of the area, 3:4 to 4:3
    assert width.max() < 0.6 * (4 / 3) ** 0.5 + 0.04
    places = cut.mean(dim=(1, 2, 3)) / 256
    assert places.min() < 0.35
    assert places.max() > 0.65


def test_views_repeat_with_the_generator_and_stay_in_range() -> None:
    pixels = noise()
    for view in (views.crop_for_mae, views.crop_for_distill):
        one, same, other = (view(pixels, 16, (0.3, 0.9), generator(s)) for s in (0, 0, 1))
        assert torch.equal(one, same)
        assert not torch.equal(one, other)
        low, high = (normalize(torch.full((1, 1, 1, 3), v, dtype=torch.uint8)) for v in (0, 255))
        assert (one >= low - 1e-4).all()
        assert (one <= high + 1e-4).all()


@pytest.mark.parametrize(("size", "patch", "side"), [(224, 16, 96), (64, 8, 24), (32, 16, 16)])
def test_small_crops_are_whole_patches(size: int, patch: int, side: int) -> None:
    assert views.local_side(size, patch, 0) == side
    assert views.local_side(size, patch, 32) == 32


def test_health_tells_a_collapse() -> None:
    good = health.measure(torch.randn((400, 16), generator=generator()))
    assert good.feature_std == pytest.approx(1, abs=0.05)
    assert good.effective_rank == pytest.approx(16, abs=0.5)
    same = health.measure(torch.ones(400, 16))
    assert (same.feature_std, same.effective_rank) == (pytest.approx(0, abs=1e-6), pytest.approx(1))
    line = health.measure(torch.randn((400, 1), generator=generator()) * torch.ones(16))
    assert line.effective_rank == pytest.approx(1, abs=0.01)
    assert same.collapsed(good)
    assert line.collapsed(good)
    assert not good.collapsed(good)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: MaeConfig(mask=1.0), "mae.mask is 1.0"),
        (lambda: MaeConfig(scale=(0.9, 0.1)), "mae.scale"),
        (lambda: DistillConfig(teacher_temperature=(0.04, 0.2)), "below the student's"),
        (lambda: DistillConfig(momentum=1.0), "distill.momentum is 1.0"),
        (lambda: DistillConfig(mask=(0.0, 0.5)), "distill.mask"),
        (lambda: DistillConfig(koleo=math.nan), "distill.koleo is nan"),
        (lambda: ExploraConfig(rank=0), "rank is 0"),
        (lambda: ExploraConfig(lr=math.inf), "lr is inf"),
        (lambda: ExploraConfig(batch_size=1), "batch_size is 1"),
        (lambda: ExploraConfig(head_first=1.0), "head_first is 1.0"),
    ],
)
def test_settings_out_of_range_are_named(make: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words.replace(".", r"\.")):
        make()  # type: ignore[operator]
