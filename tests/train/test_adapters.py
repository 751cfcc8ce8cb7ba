"""Adapters: what is trained, what is saved, and that merging changes no answer."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cascade_runtime.errors import ConfigError
from cascade_train.adapters import (
    TARGETS,
    AdapterConfig,
    add_adapter,
    load_adapter,
    merge,
    trainable_share,
)
from cascade_train.checkpoint import load_network, read_config, start_network
from cascade_train.exits import CascadeModel


@pytest.fixture
def runs(adapted_run: Path, tmp_path: Path) -> Path:
    """A copy of the base run and the one adapted from it, to be changed."""
    leave = shutil.ignore_patterns("last.safetensors")
    return Path(shutil.copytree(adapted_run.parent, tmp_path / "runs", ignore=leave))


def answers(model: nn.Module, pixels: Tensor) -> Tensor:
    """All outputs of all exits in one row."""
    with torch.no_grad():
        return torch.cat([t.flatten() for out in model.eval()(pixels) for t in vars(out).values()])


def unmerged(run: Path) -> PeftModel:
    return load_adapter(start_network(run, read_config(run)), run / "adapter")


def change(path: Path, drop: str | None = None, **add: Tensor) -> None:
    state = load_file(path)
    if drop is not None:
        del state[drop]
    save_file(state | add, path)


def stirred(model: CascadeModel, config: AdapterConfig) -> PeftModel:
    """An adapter that does something: LoRA starts with B = 0."""
    adapted = add_adapter(model, config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    return adapted


def test_adapter_only_checkpoint_holds_the_heads_and_none_of_the_base(adapted_run: Path) -> None:
    assert not (adapted_run / "model.safetensors").exists()
    keys = set(load_file(adapted_run / "adapter" / "adapter_model.safetensors"))
    lora = {key for key in keys if ".lora_A." in key or ".lora_B." in key}
    heads = {key.partition(".exits.")[2] for key in keys - lora}
    model = start_network(adapted_run, read_config(adapted_run))
    assert heads == set(model.exits.state_dict())
    assert len(lora) == 2 * 6 * 6  # A and B of six linear layers in six blocks
    whole = (adapted_run.with_name("base") / "model.safetensors").stat().st_size
    saved = sum(file.stat().st_size for file in (adapted_run / "adapter").iterdir())
    assert saved < whole / 5


def test_merged_answers_equal_unmerged_ones(adapted_run: Path, pixels: Tensor) -> None:
    apart = answers(unmerged(adapted_run), pixels)
    merged, _ = load_network(adapted_run)
    assert isinstance(merged, CascadeModel)
    assert not any("lora" in name for name, _ in merged.named_parameters())
    torch.testing.assert_close(answers(merged, pixels), apart, rtol=0, atol=1e-5)
    base, _ = load_network(adapted_run.with_name("base"))
    assert (answers(base, pixels) - apart).abs().max() > 1e-2  # the adapter does something


def test_trained_heads_ship_with_the_adapter(adapted_run: Path) -> None:
    merged, _ = load_network(adapted_run)
    base, _ = load_network(adapted_run.with_name("base"))
    saved = load_file(adapted_run / "adapter" / "adapter_model.safetensors")
    for name, value in merged.exits.state_dict().items():
        assert torch.equal(value, saved[f"base_model.model.exits.{name}"])
    moved, was = merged.exits.heads[1].classifier.weight, base.exits.heads[1].classifier.weight
    assert not torch.equal(moved, was)


@pytest.mark.parametrize("kind", ["lora_A", "exits"])
def test_missing_key_is_refused_by_name(runs: Path, kind: str) -> None:
    path = runs / "adapted" / "adapter" / "adapter_model.safetensors"
    key = min(key for key in load_file(path) if kind in key)
    change(path, drop=key)
    with pytest.raises(ConfigError, match=r"lacks 1 keys, first '.*" + kind):
        load_network(runs / "adapted")


def test_renamed_key_is_refused(runs: Path) -> None:
    path = runs / "adapted" / "adapter" / "adapter_model.safetensors"
    key = next(key for key in load_file(path) if "lora_B" in key)
    change(path, drop=key, **{key.replace("layer.", "layers."): load_file(path)[key]})
    with pytest.raises(ConfigError, match="lacks 1 keys"):
        load_network(runs / "adapted")


def test_unknown_key_is_refused(runs: Path) -> None:
    change(
        runs / "adapted" / "adapter" / "adapter_model.safetensors",
        **{"base_model.model.backbone.model.layer.9.mlp.up_proj.lora_A.weight": torch.zeros(4, 4)},
    )
    with pytest.raises(ConfigError, match="has unknown 1 keys"):
        load_network(runs / "adapted")


def test_adapter_of_another_shape_is_refused(runs: Path) -> None:
    path = runs / "adapted" / "adapter" / "adapter_model.safetensors"
    key = next(key for key in load_file(path) if "lora_A" in key)
    change(path, drop=key, **{key: torch.zeros(5, 5)})
    with pytest.raises(ConfigError, match="has other shapes for 1 keys"):
        load_network(runs / "adapted")


def test_adapter_without_its_settings_is_refused_in_one_line(runs: Path) -> None:
    (runs / "adapted" / "adapter" / "adapter_config.json").unlink()
    with pytest.raises(ConfigError, match="cannot be loaded") as caught:
        load_network(runs / "adapted")
    assert "\n" not in str(caught.value)


def test_adapter_of_no_numbers_is_refused(runs: Path) -> None:
    path = runs / "adapted" / "adapter" / "adapter_model.safetensors"
    key = next(key for key in load_file(path) if "lora_B" in key)
    change(path, drop=key, **{key: torch.full_like(load_file(path)[key], torch.nan)})
    with pytest.raises(ConfigError, match="cannot be merged"):
        load_network(runs / "adapted")


def test_base_that_changed_since_is_refused(runs: Path) -> None:
    path = runs / "base" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ConfigError, match=r"base is not the base that .*weights have changed"):
        load_network(runs / "adapted")


def test_runs_may_move_together(runs: Path, adapted_run: Path, pixels: Tensor) -> None:
    moved, _ = load_network(runs / "adapted")
    there, _ = load_network(adapted_run)
    assert torch.equal(answers(moved, pixels), answers(there, pixels))


def test_only_adapters_and_heads_train(model: CascadeModel) -> None:
    plain = sum(p.numel() for p in model.parameters())
    heads = sum(p.numel() for p in model.exits.parameters())
    adapted = add_adapter(model, AdapterConfig(rank=4, targets="qv"))
    width = 128
    lora = 6 * 2 * (4 * width + width * 4)
    assert trainable_share(adapted) == (lora + heads, plain + lora)
    frozen = {name for name, p in adapted.named_parameters() if not p.requires_grad}
    assert any("q_proj.base_layer" in name for name in frozen)


@pytest.mark.parametrize(("targets", "layers"), [("qv", 2), ("attention", 4), ("all", 6)])
def test_targets_name_the_layers_of_every_block(
    model: CascadeModel, targets: str, layers: int
) -> None:
    assert set(TARGETS) == {"qv", "attention", "all"}
    adapted = add_adapter(model, AdapterConfig(rank=2, targets=targets))
    names = [name for name, _ in adapted.named_parameters() if "lora_A" in name]
    assert len(names) == 6 * layers
    assert not any("exits" in name for name in names)


def test_new_adapter_changes_no_answer(model: CascadeModel, pixels: Tensor) -> None:
    before = answers(model, pixels)
    assert torch.equal(answers(add_adapter(model, AdapterConfig()), pixels), before)


@torch.no_grad()
def test_merging_in_bfloat16_errs_more_than_merging_in_float32_and_casting_once(
    model: CascadeModel,
) -> None:
    adapted = stirred(model, AdapterConfig(rank=4))
    layer = adapted.base_model.model.backbone.model.layer[0].mlp.up_proj
    exact = layer.base_layer.weight.double() + layer.get_delta_weight("default").double()
    low = copy.deepcopy(layer).bfloat16()
    low.merge()
    once = merge(adapted).backbone.model.layer[0].mlp.up_proj.weight

    def error(weight: Tensor) -> float:
        return float((weight.bfloat16().double() - exact).abs().mean())

    assert once.dtype == torch.float32
    assert low.base_layer.weight.dtype == torch.bfloat16
    assert error(low.base_layer.weight) > 1.3 * error(once)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kind": "dora"}, "adapter 'dora' is unknown"),
        ({"targets": "mlp"}, "adapter targets 'mlp' are unknown; choose one of qv, attention, all"),
        ({"rank": 0}, "adapter rank is 0, it must be at least 1"),
    ],
)
def test_adapter_settings_out_of_range_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        AdapterConfig(**settings)  # type: ignore[arg-type]
