"""Merged patches count as the patches they are, and a bundle that merges is certified so."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cascade_bench.compare.run import given_of
from cascade_compile import parity, targets
from cascade_compile.bundle import BundleRequest, build
from cascade_compile.export import export_stages
from cascade_compile.merging import (
    MergingBlock,
    State,
    merge,
    merge_tokens,
    merges,
    unmerged,
    unpack,
)
from cascade_compile.stages import describe, example, hidden_shape, split
from cascade_compile.targets import StageSource
from cascade_runtime import engines
from cascade_runtime.cascade import Cascade
from cascade_runtime.errors import ConfigError
from cascade_runtime.stages import Stages
from cascade_train.exits import CascadeModel

from .conftest import ONNX, SIDE, Trained

COUNT, PATCHES = 3, 16


@pytest.fixture
def merging(model: CascadeModel) -> CascadeModel:
    """The trained network, which now merges."""
    merge_tokens(model, COUNT, SIDE)
    return model


@pytest.fixture
def pixels(trained: Trained) -> np.ndarray:
    return trained.select.pixels[:24]


def test_merging_nothing_is_the_network_itself(trained: Trained, model, pixels) -> None:
    merge_tokens(model, 0, SIDE)
    assert not merges(model)
    wanted, _ = parity.run_network(model, pixels)
    merge_tokens(model, COUNT, SIDE)
    assert merges(model)
    changed, _ = parity.run_network(model, pixels)
    with unmerged(model):
        have, _ = parity.run_network(model, pixels)
    for a, b, other in zip(have, wanted, changed, strict=True):
        np.testing.assert_allclose(a.logits, b.logits, atol=2e-5)
        np.testing.assert_allclose(a.gate, b.gate, atol=2e-5)
        assert np.abs(other.logits - b.logits).max() > 1e-3


@torch.no_grad()
def test_copies_merged_answer_as_all_of_them_did(merging: CascadeModel) -> None:
    """Attention and the mean count a token as often as it has patches."""
    first, second = (copy.deepcopy(b) for b in merging.backbone.model.layer[:2])
    first.exits = False
    tokens = torch.randn(2, 1 + PATCHES, 128, generator=torch.Generator().manual_seed(0))
    places = first.places.clone()
    tokens[:, 2::2], places[:, 2::2] = tokens[:, 1::2], places[:, 1::2]  # every patch twice
    state = State(tokens, torch.ones(1, 1 + PATCHES, 1), places)
    answers = []
    for count in (PATCHES // 2, 0):
        first.merge, second.merge = count, 0
        between = first(state)
        assert between.tokens.shape[1] == 1 + PATCHES - count
        packed = second(between)
        answers.append((packed[:, 0, :128], merging.exits.heads[1].features(packed)))
    for have, wanted in zip(*answers, strict=True):
        torch.testing.assert_close(have, wanted, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_no_patch_is_lost_and_places_stay_centred(merging: CascadeModel, pixels) -> None:
    for index, packed in enumerate(merging.hidden(torch.from_numpy(pixels)), start=1):
        _, sizes, places = unpack(packed)
        assert packed.shape == (len(pixels), 1 + PATCHES - COUNT * index, 128 + 3)
        assert (sizes >= 1).all() and (sizes.sum(1) == 1 + PATCHES).all()
        assert (sizes[:, 0] == 1).all() and (places[:, 0] == 0).all()
        assert places.abs().max() < 1
        torch.testing.assert_close((sizes * places).sum(1), torch.zeros(len(pixels), 2))


@pytest.mark.parametrize("patches", [8, 9])
def test_the_most_alike_become_their_average(patches: int) -> None:
    keys = torch.eye(patches, 8)[None].repeat(2, 1, 1)
    keys[1, 4] = 3 * keys[1, 1]  # an offered one that points where another does
    tokens = torch.randn(2, 1 + patches, 5)
    sizes = torch.ones(2, 1 + patches, 1)
    sizes[1, 1 + 4] = 2
    found = merge(State(tokens, sizes, torch.zeros(2, 1 + patches, 2)), keys, 1)
    assert found.tokens.shape[1] == patches
    assert torch.equal(found.tokens[:, 0], tokens[:, 0])
    [row] = (found.sizes[1, :, 0] == 3).nonzero()
    torch.testing.assert_close(
        found.tokens[1, row], (tokens[1, 2] + 2 * tokens[1, 5])[None] / 3, rtol=0, atol=1e-6
    )
    assert sorted(found.sizes[0, :, 0].tolist())[-1] == 2  # all alike: still one pair, the first


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "torchscript"])
def test_engines_answer_as_the_merging_network(
    backend: str, merging: CascadeModel, pixels, tmp_path: Path
) -> None:
    files, modules = export_stages(merging, SIDE, tmp_path), split(merging, SIDE)
    loaded = []
    for index, (file, module) in enumerate(zip(files, modules, strict=True)):
        (folder := tmp_path / str(index)).mkdir()
        source = StageSource(index, file, module, lambda: pixels)
        made = targets.builder(backend).build(source, folder, "fp32", "cpu")
        data = {name: (folder / name).read_bytes() for name in made.files}
        loaded.append(
            engines.load(backend, data, made.files[0], precision="fp32", device="cpu", threads=1)
        )
    found = parity.measure(merging, Stages(loaded), pixels, "fp32")
    assert found.ok and found.typical < 1e-4 < found.merging
    assert {part.output for part in found.stages} == {"logits", "gate"}


def test_limits_hold_for_half_of_the_images_and_widen_by_merging_for_the_others() -> None:
    fields = {"images": 4, "mean_difference": 0.0, "scale": 2.0, "limit": 0.1}
    fields |= {"engine": {}, "reference": []}
    for typical, largest, ok in ((0.1, 0.6, True), (0.1, 0.8, False), (0.3, 0.6, False)):
        found = parity.Parity(max_difference=largest, typical=typical, merging=0.5, **fields)
        assert found.ok is ok
        assert {"median_difference", "merging_max_difference"} <= set(found.differences())
    assert not parity.Parity(max_difference=0.6, typical=0.1, **fields).ok


def test_costs_are_those_that_torch_counts(merging: CascadeModel) -> None:
    stages, infos = split(merging, SIDE), describe(merging, SIDE)
    for stage, info in zip(stages, infos, strict=True):
        assert all(isinstance(block, MergingBlock) for block in stage.blocks)
        assert (info.tokens, info.width) == hidden_shape(stage, stage.last)
        plain = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
        with torch.no_grad(), plain, FlopCounterMode(display=False) as counter:
            stage(example(stage, 1))
        assert info.macs == pytest.approx(counter.get_total_flops() / 2, rel=0.02)


def test_bundle_that_merges_is_certified_opened_and_says_so(
    request_for: Callable[..., BundleRequest], trained: Trained, tmp_path: Path
) -> None:
    out = tmp_path / "merging.cascade"
    manifest = build(request_for(out, merge_tokens=COUNT), say=lambda line: None)
    assert manifest.model.preset == "tiny, 3 patches merged a block"
    assert [(info.tokens, info.width) for info in manifest.stages] == [(14, 131), (11, 131)]
    assert manifest.targets[ONNX].parity["merging_max_difference"] > 0
    cascade = Cascade.open(out, self_test=True, threads=1, warm_up=False)
    assert cascade.certificate.status == "CERTIFIED"
    results = cascade.classify(list(trained.calib.pixels[:40]))
    wanted = [manifest.model.classes[label] for label in trained.calib.labels[:40]]
    acted = [(r.decision, name) for r, name in zip(results, wanted, strict=True) if r.decision]
    assert len(acted) >= 20
    assert sum(have == name for have, name in acted) >= 0.8 * len(acted)
    given = given_of(trained.run, cascade, 1, tmp_path)  # it may be compared with its run
    assert given.network.exit_blocks == manifest.model.exits


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"merge_tokens": 6}, "with 16 patches and 2 blocks it is at most 5 a block"),
        (
            {"merge_tokens": 1, "targets": (targets.parse("onnxruntime/int8/cpu"),)},
            "int8 engines are made by comparing hidden tokens",
        ),
        ({"merge_tokens": 1, "recipes": ("tensorrt/fp16",)}, "a recipe does not say"),
    ],
)
def test_what_cannot_be_merged_is_refused_with_the_reason(
    fields: dict, words: str, request_for: Callable[..., BundleRequest], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=words):
        build(replace(request_for(tmp_path / "x.cascade"), **fields), say=lambda line: None)
