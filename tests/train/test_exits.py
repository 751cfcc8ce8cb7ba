"""The cascade network walks the same blocks as the published backbone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cascade_runtime.errors import ConfigError
from cascade_train.backbone import build_backbone
from cascade_train.exits import MEAN, STD, CascadeModel, check_exits, normalize
from cascade_train.presets import preset

Make = Callable[[int], CascadeModel]


def seen_by_heads(model: CascadeModel, pixels: Tensor) -> list[Tensor]:
    """The hidden tokens that each exit is given."""
    seen: list[Tensor] = []
    hook = model.exits.register_forward_pre_hook(lambda _, args: seen.extend(args[0]))
    with torch.no_grad():
        model(pixels)
    hook.remove()
    return seen


@pytest.fixture
def whole(pixels: Tensor) -> CascadeModel:
    """A network with an exit after the last block, registers, and a norm that does something."""
    torch.manual_seed(3)
    backbone = build_backbone(preset("tiny"), image_size=pixels.shape[1])
    torch.nn.init.normal_(backbone.norm.weight)
    torch.nn.init.normal_(backbone.norm.bias)
    return CascadeModel(backbone, (2, 6)).eval()


def test_last_exit_after_the_norm_is_the_backbones_last_hidden_state(
    whole: CascadeModel, pixels: Tensor
) -> None:
    with torch.no_grad():
        wanted = whole.backbone(normalize(pixels)).last_hidden_state
        have = whole.backbone.norm(seen_by_heads(whole, pixels)[-1])
    assert torch.equal(have, wanted)


def test_early_exit_sees_the_tokens_after_its_block(whole: CascadeModel, pixels: Tensor) -> None:
    with torch.no_grad():
        states = whole.backbone(normalize(pixels), output_hidden_states=True).hidden_states
    assert torch.equal(seen_by_heads(whole, pixels)[0], states[2])


def test_heads_start_from_the_norm_the_backbone_was_trained_with(whole: CascadeModel) -> None:
    for head in whole.exits.heads:
        assert torch.equal(head.norm.weight, whole.backbone.norm.weight)
        assert torch.equal(head.norm.bias, whole.backbone.norm.bias)
        assert head.norm.eps == whole.backbone.norm.eps


def test_every_exit_gives_two_logits_a_gate_and_an_auxiliary(
    model: CascadeModel, pixels: Tensor
) -> None:
    for out in model(pixels):
        assert (out.logits.shape, out.gate.shape, out.auxiliary.shape) == ((4, 2), (4,), (4, 2))


def test_what_ships_equals_what_was_trained(model: CascadeModel, pixels: Tensor) -> None:
    with torch.no_grad():
        trained = model(pixels)
        for head, tokens, out in zip(
            model.exits.heads, seen_by_heads(model, pixels), trained, strict=True
        ):
            logits, gate = head.answer(tokens)
            assert torch.equal(logits, out.logits)
            assert torch.equal(gate, out.gate)


def test_mean_token_leaves_out_class_token_and_registers(make_model: Make) -> None:
    head = make_model(0).exits.heads[0]
    head.prefix_tokens = 3
    tokens = torch.randn(2, 3 + 4, head.norm.normalized_shape[0])
    moved = tokens.clone()
    moved[:, 1:3] += 5.0
    features, width = head.features(tokens), tokens.shape[2]
    assert torch.equal(head.features(moved)[:, width:], features[:, width:])
    assert torch.equal(features[:, :width], head.norm(tokens)[:, 0])


def test_an_image_does_not_depend_on_the_others_of_its_batch(
    model: CascadeModel, pixels: Tensor
) -> None:
    with torch.no_grad():
        together, alone = model(pixels)[-1].logits, model(pixels[2:3])[-1].logits
    torch.testing.assert_close(together[2:3], alone, rtol=0, atol=1e-5)


def test_normalize_is_the_published_scaling(pixels: Tensor) -> None:
    wanted = (pixels.double() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    have = normalize(pixels)
    assert have.dtype == torch.float32
    torch.testing.assert_close(have, wanted.permute(0, 3, 1, 2).float(), rtol=0, atol=2e-6)


@pytest.mark.parametrize("exits", [(), (0, 6), (-1, 2), (2, 7), (6, 2), (2, 2)])
def test_exits_that_are_no_rising_block_counts_are_refused(exits: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="rising block counts between 1 and 6, for example 2,6"):
        check_exits(exits, 6)
