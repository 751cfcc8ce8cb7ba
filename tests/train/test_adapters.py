"""Adapters: what is trained, what is saved, and that merging changes no answer."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import DINOv3ViTConfig, DINOv3ViTModel

from cascade_runtime.errors import ConfigError
from cascade_train.adapters import (
    INITS,
    KINDS,
    TARGETS,
    AdapterConfig,
    add_adapter,
    load_adapter,
    merge,
    save_adapter,
    save_merged,
    share_text,
    trainable_share,
    wrap,
)
from cascade_train.backbone import build_backbone
from cascade_train.checkpoint import load_exact, load_network, read_config, start_network
from cascade_train.exits import CascadeModel
from cascade_train.presets import preset

Make = Callable[[int], CascadeModel]


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
    assert len(lora) == 2 * 6 * 2  # A and B of six linear layers in the two blocks that are run
    whole = (adapted_run.with_name("base") / "model.safetensors").stat().st_size
    saved = sum(file.stat().st_size for file in (adapted_run / "adapter").iterdir())
    assert saved < whole / 5


def test_merged_answers_equal_unmerged_ones(adapted_run: Path, pixels: Tensor) -> None:
    apart = answers(unmerged(adapted_run), pixels)
    merged, _ = load_network(adapted_run, scores=False)
    assert isinstance(merged, CascadeModel)
    assert not any("lora" in name for name, _ in merged.named_parameters())
    torch.testing.assert_close(answers(merged, pixels), apart, rtol=0, atol=1e-5)
    base, _ = load_network(adapted_run.with_name("base"), scores=False)
    assert (answers(base, pixels) - apart).abs().max() > 1e-2  # the adapter does something


def test_trained_heads_ship_with_the_adapter(adapted_run: Path) -> None:
    merged, _ = load_network(adapted_run, scores=False)
    base, _ = load_network(adapted_run.with_name("base"), scores=False)
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
    lora = 2 * 2 * (4 * width + width * 4)  # q and v of the two blocks that are run
    assert trainable_share(adapted) == (lora + heads, plain + lora)
    frozen = {name for name, p in adapted.named_parameters() if not p.requires_grad}
    assert any("q_proj.base_layer" in name for name in frozen)


@pytest.mark.parametrize(("targets", "layers"), [("qv", 2), ("attention", 4), ("all", 6)])
def test_targets_name_the_layers_of_every_block_that_is_run(
    model: CascadeModel, targets: str, layers: int
) -> None:
    assert set(TARGETS) == {"qv", "attention", "all"}
    adapted = add_adapter(model, AdapterConfig(rank=2, targets=targets))
    names = [name for name, _ in adapted.named_parameters() if "lora_A" in name]
    assert len(names) == 2 * layers  # blocks after the last exit would never get a gradient
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


def trained(model: CascadeModel, config: AdapterConfig, pixels: Tensor) -> PeftModel:
    """An adapter after a few real steps, in eval mode: everything trainable has moved."""
    adapted = add_adapter(model, config).train()
    parameters = [p for p in adapted.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=3e-3)
    for _ in range(3):
        outputs = [t for out in adapted(pixels) for t in vars(out).values()]
        optimizer.zero_grad()
        torch.stack([t.square().mean() + t.mean() for t in outputs]).sum().backward()
        assert all(p.grad is not None for p in parameters)
        optimizer.step()
    return adapted.eval()


@pytest.mark.parametrize(("kind", "init"), [*itertools.product(KINDS, INITS)])
def test_saved_loaded_and_merged_is_what_was_trained(
    kind: str, init: str, make_model: Make, pixels: Tensor, tmp_path: Path
) -> None:
    before = answers(make_model(0), pixels)
    config = AdapterConfig(kind=kind, init=init, rank=4, unfreeze=1)
    torch.testing.assert_close(
        answers(add_adapter(make_model(0), config), pixels), before, rtol=0, atol=1e-5
    )
    live = answers(adapted := trained(make_model(0), config, pixels), pixels)
    assert (live - before).abs().max() > 0.1
    save_adapter(copy.deepcopy(adapted), tmp_path)  # a copy, as the average of a run is one
    loaded = load_adapter(make_model(0), tmp_path)
    torch.testing.assert_close(answers(loaded, pixels), live, rtol=0, atol=1e-5)
    merged = merge(loaded)
    assert not any("lora" in name for name, _ in merged.named_parameters())
    torch.testing.assert_close(answers(merged, pixels), live, rtol=0, atol=1e-5)
    torch.testing.assert_close(answers(merge(adapted), pixels), live, rtol=0, atol=1e-5)


def test_saved_adapter_is_one_that_peft_itself_loads(
    make_model: Make, pixels: Tensor, tmp_path: Path
) -> None:
    adapted = trained(make_model(0), AdapterConfig(kind="dora", init="olora", rank=4), pixels)
    save_adapter(adapted, tmp_path)
    theirs = PeftModel.from_pretrained(make_model(0), str(tmp_path))
    ours = load_adapter(make_model(0), tmp_path)
    assert torch.equal(answers(theirs, pixels), answers(ours, pixels))


@pytest.mark.parametrize(("kind", "scale"), [("lora", 8 / 4), ("rslora", 8 / 2)])
def test_scale_is_alpha_over_rank_or_over_its_root(
    kind: str, scale: float, model: CascadeModel
) -> None:
    adapted = add_adapter(model, AdapterConfig(kind=kind, rank=4, alpha=8))
    layer = adapted.base_model.model.backbone.model.layer[0].attention.q_proj
    assert layer.scaling["default"] == scale


def test_default_alpha_keeps_the_scale_of_each_kind() -> None:
    def alpha(**settings: object) -> int:
        return AdapterConfig(rank=16, **settings).scale_numerator()  # type: ignore[arg-type]

    assert alpha() == alpha(kind="dora") == 32
    assert alpha(kind="rslora") / 16**0.5 == 32 / 16
    assert alpha(init="pissa") == alpha(init="olora") == 16
    assert alpha(init="pissa", alpha=5) == 5


def test_dora_lengths_survive_saving_and_loading(make_model: Make, tmp_path: Path) -> None:
    adapted = stirred(make_model(0), AdapterConfig(kind="dora", rank=2))
    lengths = {n: p for n, p in adapted.named_parameters() if "magnitude" in n}
    assert len(lengths) == 6 * 2
    with torch.no_grad():
        for index, length in enumerate(lengths.values(), start=2):
            length.mul_(index)
    save_adapter(adapted, tmp_path)
    loaded = dict(load_adapter(make_model(0), tmp_path).named_parameters())
    assert all(torch.equal(loaded[name], length) for name, length in lengths.items())


def test_lost_dora_length_is_refused(make_model: Make, tmp_path: Path) -> None:
    save_adapter(add_adapter(make_model(0), AdapterConfig(kind="dora", rank=2)), tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    change(path, drop=next(key for key in load_file(path) if "magnitude" in key))
    with pytest.raises(ConfigError, match=r"lacks 1 keys, first '.*lora_magnitude_vector"):
        load_adapter(make_model(0), tmp_path)


def test_adapter_with_names_of_transformers_4_is_refused_where_peft_ignores_it(
    make_model: Make, tmp_path: Path
) -> None:
    save_adapter(stirred(make_model(0), AdapterConfig(rank=2)), tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    state = load_file(path)
    old = {key.replace("backbone.model.layer.", "backbone.layer."): state[key] for key in state}
    save_file(old, path)
    with pytest.warns(UserWarning, match="missing adapter keys"):
        theirs = PeftModel.from_pretrained(make_model(0), str(tmp_path))
    ups = [p for name, p in theirs.named_parameters() if "lora_B" in name]
    assert len(ups) == 6 * 2
    assert not any(p.any() for p in ups)  # it would answer as if nothing had been trained
    with pytest.raises(ConfigError, match="lacks 24 keys"):
        load_adapter(make_model(0), tmp_path)


def test_unfrozen_blocks_train_whole_and_carry_no_adapter(make_model: Make) -> None:
    model = make_model(0)
    block = sum(p.numel() for p in model.backbone.model.layer[1].parameters())
    heads = sum(p.numel() for p in model.exits.parameters())
    adapted = add_adapter(model, AdapterConfig(rank=2, unfreeze=1))
    lora = {name: p for name, p in adapted.named_parameters() if "lora_" in name}
    assert {name.partition(".layer.")[2][0] for name in lora} == {"0"}
    some, total = trainable_share(adapted)
    assert some == block + heads + sum(p.numel() for p in lora.values())
    assert total == sum(p.numel() for p in make_model(0).parameters()) + some - block - heads


def test_last_block_is_not_mistaken_for_one_of_similar_number() -> None:
    """PEFT compares the ends of names: block 1 of two that are run, beside blocks 11 and 21."""
    config = DINOv3ViTConfig(
        hidden_size=8,
        num_hidden_layers=22,
        num_attention_heads=2,
        intermediate_size=8,
        image_size=32,
    )
    adapted = wrap(
        DINOv3ViTModel(config), AdapterConfig(rank=1, unfreeze=1), layers="model.layer", blocks=2
    )
    whole: set[int] = set()
    low_rank: set[int] = set()
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad:
            number = int(name.partition(".layer.")[2].partition(".")[0])
            (low_rank if "lora_" in name else whole).add(number)
    assert (whole, low_rank) == ({1}, {0})


def test_unfrozen_blocks_and_heads_are_saved_and_loaded(
    make_model: Make, pixels: Tensor, tmp_path: Path
) -> None:
    adapted = trained(make_model(0), AdapterConfig(rank=2, unfreeze=1), pixels)
    save_adapter(adapted, tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    prefix = "base_model.model."
    whole = {key.removeprefix(prefix) for key in saved if "lora_" not in key}
    plain = make_model(0)
    parts = ("exits.", "backbone.model.layer.1.")
    assert whole == {key for key in plain.state_dict() if key.startswith(parts)}
    merged = merge(load_adapter(make_model(0), tmp_path)).state_dict()
    assert all(torch.equal(merged[key], saved[prefix + key]) for key in whole)
    norm = "backbone.model.layer.{}.norm1.weight"
    assert torch.equal(merged[norm.format(0)], plain.state_dict()[norm.format(0)])
    assert not torch.equal(merged[norm.format(1)], plain.state_dict()[norm.format(1)])


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_start_taken_from_the_base_is_the_same_whatever_the_seed(
    init: str, make_model: Make
) -> None:
    """A resumed run makes its base anew and loads only what trains."""
    states = []
    for seed in (1, 2):
        model = make_model(0)
        torch.manual_seed(seed)
        drawn = torch.rand(1)
        torch.manual_seed(seed)
        adapted = add_adapter(model, AdapterConfig(init=init, rank=4))
        assert torch.equal(torch.rand(1), drawn)  # and it takes no number from the run
        states.append(adapted.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    changed = "base_model.model.backbone.model.layer.0.mlp.up_proj.base_layer.weight"
    plain = make_model(0).backbone.model.layer[0].mlp.up_proj.weight
    assert (states[0][changed] - plain).abs().max() > 1e-3


def test_pissa_takes_the_largest_directions_of_the_base(make_model: Make) -> None:
    model = make_model(0)
    with torch.no_grad():  # a spectrum with a gap, as trained weights have; random ones have none
        left, _ = torch.linalg.qr(torch.randn(128, 128))
        right, _ = torch.linalg.qr(torch.randn(128, 128))
        values = torch.cat([torch.tensor([9.0, 8.0, 7.0, 6.0]), torch.full((124,), 0.1)])
        model.backbone.model.layer[0].attention.q_proj.weight.copy_(left * values @ right)
    adapted = add_adapter(model, AdapterConfig(init="pissa", rank=4))
    layer = adapted.base_model.model.backbone.model.layer[0].attention.q_proj
    rest = torch.linalg.svdvals(layer.base_layer.weight)
    assert rest[0] < 0.11
    torch.testing.assert_close(
        torch.linalg.svdvals(layer.get_delta_weight("default"))[:4], values[:4], rtol=0, atol=1e-4
    )


def test_adapter_that_would_change_its_base_when_loaded_is_refused(
    make_model: Make, tmp_path: Path
) -> None:
    add_adapter(make_model(0), AdapterConfig(init="pissa", rank=4)).save_pretrained(str(tmp_path))
    with pytest.raises(ConfigError, match=r"starts by 'pissa.*save it as a plain LoRA"):
        load_adapter(make_model(0), tmp_path)


def test_run_with_every_option_ships_what_it_selected(
    runs: Path, fit_squares: Callable[..., list[str]], pixels: Tensor
) -> None:
    config = AdapterConfig(kind="dora", init="pissa", rank=4, unfreeze=1)
    run = runs / "whole"
    fit_squares(run, init=runs / "base", adapter=config)
    assert read_config(run).adapter == config
    assert json.loads((run / "adapter" / "adapter_config.json").read_bytes())["r"] == 8
    shipped, _ = load_network(run, scores=False)
    assert isinstance(shipped, CascadeModel)
    torch.testing.assert_close(
        answers(shipped, pixels), answers(unmerged(run), pixels), rtol=0, atol=1e-5
    )
    base, _ = load_network(runs / "base", scores=False)
    old, new = (network.backbone.model.layer[1].norm1.weight for network in (base, shipped))
    assert not torch.equal(old, new)


def test_merged_checkpoint_is_one_that_a_plain_network_loads(
    make_model: Make, pixels: Tensor, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    adapted = trained(make_model(0), AdapterConfig(rank=4), pixels)
    live = answers(adapted, pixels)
    returned = save_merged(adapted, path)
    plain = make_model(1)
    load_exact(plain, path)
    torch.testing.assert_close(answers(plain, pixels), live, rtol=0, atol=1e-5)
    assert torch.equal(answers(plain, pixels), answers(returned, pixels))


def test_merged_checkpoint_of_a_bfloat16_base_holds_the_float32_sum(
    make_model: Make, tmp_path: Path
) -> None:
    adapted = stirred(make_model(0).bfloat16(), AdapterConfig(rank=4))
    layer = adapted.base_model.model.backbone.model.layer[0].attention.q_proj
    up, down = layer.lora_B["default"].weight, layer.lora_A["default"].weight
    wanted = layer.base_layer.weight.float() + layer.scaling["default"] * (up @ down)
    save_merged(adapted, tmp_path / "model.safetensors")
    saved = load_file(tmp_path / "model.safetensors")
    assert {value.dtype for value in saved.values()} == {torch.float32}
    weight = saved["backbone.model.layer.0.attention.q_proj.weight"]
    torch.testing.assert_close(weight, wanted.detach(), rtol=0, atol=1e-6)


def test_training_mode_rescales_positions_so_answers_are_compared_in_eval_mode(
    pixels: Tensor,
) -> None:
    published = dataclasses.replace(preset("tiny"), rescale=2.0)  # as the published presets have it
    torch.manual_seed(0)
    model = CascadeModel(build_backbone(published, image_size=32), (1, 2))
    adapted = stirred(model, AdapterConfig(rank=4)).train()
    with torch.no_grad():
        first, second = (adapted(pixels)[-1].logits for _ in range(2))
    assert (first - second).abs().max() > 1e-4
    apart = answers(adapted, pixels)
    torch.testing.assert_close(answers(merge(adapted), pixels), apart, rtol=0, atol=1e-5)


def test_share_is_said_for_people(model: CascadeModel) -> None:
    assert share_text(model) == "training 1.25 M of 1.25 M parameters (100.0 %)"
    adapted = add_adapter(model, AdapterConfig(rank=1, targets="qv"))
    some, total = trainable_share(adapted)
    share = f"({100 * some / total:.1f} %)"
    assert share_text(adapted) == f"training {some / 1e3:.1f} k of 1.25 M parameters {share}"


def test_settings_of_an_older_run_are_read_and_misspelt_ones_refused() -> None:
    old = b'{"kind":"lora","rank":4,"alpha":null,"dropout":0.1,"targets":"qv"}'
    read = msgspec.json.decode(old, type=AdapterConfig)
    assert read == AdapterConfig(rank=4, dropout=0.1, targets="qv")
    assert (read.init, read.unfreeze) == ("default", 0)
    with pytest.raises(msgspec.ValidationError, match="unknown field `rnak`"):
        msgspec.json.decode(b'{"rnak":4}', type=AdapterConfig)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kind": "dara"}, "adapter kind 'dara' is unknown; choose one of lora, dora, rslora"),
        ({"targets": "mlp"}, "adapter targets 'mlp' is unknown; choose one of qv, attention, all"),
        ({"init": "svd"}, "adapter init 'svd' is unknown; choose one of default, pissa, olora"),
        ({"rank": 0}, "adapter rank is 0, it must be at least 1"),
        ({"alpha": 0}, "adapter alpha is 0, it must be at least 1"),
        ({"dropout": 1.0}, "adapter dropout is 1.0, it must be at least 0 and below 1"),
        ({"unfreeze": -1}, "adapter unfreeze is -1, it must be at least 0"),
    ],
)
def test_adapter_settings_out_of_range_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        AdapterConfig(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"unfreeze": 2}, "adapter unfreeze is 2 but 2 blocks are run; leave at least one"),
        ({"init": "pissa", "rank": 129}, "rank is 129, but pissa finds only 128 directions"),
        ({"init": "olora", "rank": 129}, "rank is 129, but olora finds only 128 directions"),
    ],
)
def test_adapter_that_does_not_fit_the_network_is_refused(
    settings: dict[str, object], words: str, model: CascadeModel
) -> None:
    with pytest.raises(ConfigError, match=words):
        add_adapter(model, AdapterConfig(**settings))  # type: ignore[arg-type]
