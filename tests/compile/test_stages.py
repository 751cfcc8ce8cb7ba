"""Stages one after the other are the whole network."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cascade_compile.stages import describe, example, split, token_count
from cascade_runtime.manifest import stage_inputs
from cascade_train.backbone import backbone_config, build_backbone
from cascade_train.exits import CascadeModel, JoinedModel
from cascade_train.presets import preset

SIDE = 32


@pytest.fixture
def pixels(trained) -> torch.Tensor:
    """uint8 [6, 32, 32, 3]."""
    return torch.from_numpy(trained.select.pixels[:6])


def assert_same(found: torch.Tensor, wanted: torch.Tensor) -> None:
    """Equal but for the order in which float32 is rounded."""
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


@torch.no_grad()
def test_stages_one_after_the_other_are_the_whole_network(
    model: CascadeModel, pixels: torch.Tensor
) -> None:
    hidden = pixels
    for stage, out in zip(split(model, SIDE), model(pixels), strict=True):
        logits, gate, *tokens = stage(hidden)
        assert_same(logits, out.logits)
        assert_same(gate, out.gate)
        hidden = tokens[0] if tokens else None
    assert hidden is None  # the last stage passes nothing on


@torch.no_grad()
@pytest.mark.parametrize("name", ["vits16", "vits16plus"])
def test_stages_of_a_backbone_with_registers_are_the_whole_network(name: str) -> None:
    small = replace(preset(name), hidden=64, blocks=2, heads=2, feed_forward=128)
    torch.manual_seed(0)
    network = CascadeModel(build_backbone(small, image_size=SIDE), (1, 2)).eval()
    pixels = torch.randint(0, 256, (2, SIDE, SIDE, 3), dtype=torch.uint8)
    hidden = pixels
    for stage, out in zip(split(network, SIDE), network(pixels), strict=True):
        logits, _, *tokens = stage(hidden)
        assert_same(logits, out.logits)
        hidden = tokens[0] if tokens else None


@torch.no_grad()
def test_cutting_leaves_the_network_as_it_was(model: CascadeModel) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    split(model, SIDE)
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_later_stages_take_the_tokens_of_the_one_before(model: CascadeModel) -> None:
    first, second = split(model, SIDE)
    assert (first.input_name, first.output_names) == ("pixels", ["logits", "gate", "tokens"])
    assert (second.input_name, second.output_names) == ("tokens_in", ["logits", "gate"])
    assert not hasattr(second, "embeddings")
    tokens = first(example(first, 2))[2]
    assert tokens.shape == example(second, 2).shape == (2, 1 + 16, 128)
    with pytest.raises(RuntimeError):
        second(example(first, 2).float())


@torch.no_grad()
def test_joined_networks_are_cut_one_by_one(model: CascadeModel, pixels: torch.Tensor) -> None:
    wide = build_backbone(replace(preset("tiny"), hidden=64), image_size=SIDE)
    other = CascadeModel(wide, (2, 3)).eval()
    joined = JoinedModel([other, model])
    stages = split(joined, SIDE)
    wanted = joined(pixels)
    hidden = None
    assert [stage.input_name for stage in stages] == ["pixels", "tokens_in"] * 2
    assert [len(stage.output_names) for stage in stages] == [3, 2, 3, 2]
    for stage, out in zip(stages, wanted, strict=True):
        logits, gate, *tokens = stage(pixels if stage.is_first else hidden)
        assert_same(logits, out.logits)
        assert_same(gate, out.gate)
        hidden = tokens[0] if tokens else None
    infos = describe(joined, SIDE)
    assert stage_inputs(infos) == ("pixels", "tokens", "pixels", "tokens")
    assert [info.name for info in infos] == [f"stage{i}" for i in range(4)]
    assert [(info.macs, info.width) for info in infos] == [
        (info.macs, info.width) for part in (other, model) for info in describe(part, SIDE)
    ]


def test_no_block_is_in_two_stages_and_none_is_left_out(model: CascadeModel) -> None:
    stages = split(model, SIDE)
    blocks = [block for stage in stages for block in stage.blocks]
    wanted = list(model.backbone.model.layer[: model.exit_blocks[-1]])
    assert [id(block) for block in blocks] == [id(block) for block in wanted]
    assert [(stage.first, stage.last) for stage in stages] == [(0, 1), (1, 2)]


def test_position_tables_are_constants_of_the_image_size(model: CascadeModel) -> None:
    model.train()  # in which the backbone jitters them
    for stage in split(model, SIDE):
        cos, sin = model.backbone.rope_embeddings(torch.zeros(1, 3, SIDE, SIDE))
        assert torch.equal(stage.cos[1:], cos) and stage.cos[0].eq(1).all()
        assert torch.equal(stage.sin[1:], sin) and stage.sin[0].eq(0).all()  # not turned
        scaling = stage.blocks[0].attention.scaling  # queries are scaled by theirs
        assert torch.equal(stage.query_cos, stage.cos * scaling)
        assert torch.equal(stage.query_sin, stage.sin * scaling)
        assert {"cos", "sin"} <= set(dict(stage.named_buffers()))


def test_tokens_are_class_token_registers_and_patches() -> None:
    config = backbone_config(preset("vits16"))
    assert token_count(config, 224) == preset("vits16").tokens == 1 + 4 + 14 * 14


def test_costs_add_up_however_the_network_is_cut(model: CascadeModel) -> None:
    macs = []
    for exits in ((2,), (1, 2)):
        cut = CascadeModel(model.backbone, exits)
        infos = describe(cut, SIDE)
        assert all(info.macs > 0 for info in infos)
        assert [info.blocks for info in infos] == list(itertools.pairwise((0, *exits)))
        macs.append(sum(info.macs for info in infos))
    assert macs[0] == macs[1]


@pytest.mark.parametrize(("name", "size"), [("tiny", 64), ("vits16plus", 224)])
def test_costs_are_those_that_torch_counts(name: str, size: int) -> None:
    """Multiply-adds against an independent count; the heads, which are not counted, are small."""
    p = preset(name)
    model = CascadeModel(build_backbone(p, image_size=size), (1, 2)).eval()
    stages = split(model, size)
    for stage, info in zip(stages, describe(model, size), strict=True):
        plain = sdpa_kernel(SDPBackend.MATH)  # the counter knows no fused attention on CPU
        with torch.no_grad(), plain, FlopCounterMode(display=False) as counter:
            stage(example(stage, 1))
        assert info.macs == pytest.approx(counter.get_total_flops() / 2, rel=0.02)


def test_parameters_are_those_that_ship(model: CascadeModel) -> None:
    infos = describe(model, SIDE)
    used = [model.backbone.embeddings, *model.backbone.model.layer[:2]]
    heads = [part for head in model.exits.heads for part in (head.norm, head.classifier, head.gate)]
    wanted = sum(p.numel() for module in (*used, *heads) for p in module.parameters())
    wanted -= model.backbone.embeddings.mask_token.numel()  # of training alone
    assert sum(info.parameters for info in infos) == wanted
    assert [info.name for info in infos] == ["stage0", "stage1"]
    assert {(info.tokens, info.width) for info in infos} == {(17, 128)}
