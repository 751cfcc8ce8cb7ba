"""Weights come from where they were asked for, whole, or not at all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cascade_runtime.errors import ConfigError
from cascade_train.backbone import build_backbone
from cascade_train.presets import preset

SMALL = replace(preset("tiny"), hidden=32, blocks=2, feed_forward=64, registers=2, exits=(1, 2))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A random DINOv3 as transformers saves it."""
    folder = tmp_path / "weights"
    build_backbone(SMALL).save_pretrained(folder)
    return folder


def change(folder: Path, **tensors: torch.Tensor | None) -> None:
    """Replace, add or (None) drop tensors of the saved file; `__` stands for a dot."""
    path = folder / "model.safetensors"
    state = load_file(path)
    for name, tensor in tensors.items():
        key = name.replace("__", ".")
        state.pop(key, None)
        if tensor is not None:
            state[key] = tensor
    save_file(state, path, {"format": "pt"})


def test_local_folder_loads_to_the_bit(saved: Path) -> None:
    wanted = load_file(saved / "model.safetensors")
    have = build_backbone(SMALL, weights=str(saved)).state_dict()
    as_saved = {name.replace("model.layer", "layer"): value for name, value in have.items()}
    assert set(as_saved) == set(wanted)
    assert all(torch.equal(as_saved[name], wanted[name]) for name in wanted)


def test_weights_published_in_bfloat16_are_trained_in_float32(saved: Path) -> None:
    build_backbone(SMALL).to(torch.bfloat16).save_pretrained(saved)
    assert load_file(saved / "model.safetensors")["norm.weight"].dtype == torch.bfloat16
    loaded = build_backbone(SMALL, weights=str(saved))
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"norm__weight": None}, r"1 missing keys, first 'norm.weight'"),
        ({"head__weight": torch.zeros(3)}, r"1 unexpected keys, first 'head.weight'"),
        ({"norm__bias": torch.zeros(7)}, r"1 mismatched keys, first 'norm.bias'"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(
    saved: Path, tensors: dict[str, torch.Tensor | None], words: str
) -> None:
    change(saved, **tensors)
    with pytest.raises(ConfigError, match=words):
        build_backbone(SMALL, weights=str(saved))


def test_weights_of_another_depth_are_refused(saved: Path) -> None:
    with pytest.raises(ConfigError, match="unexpected keys"):
        build_backbone(replace(SMALL, blocks=1), weights=str(saved))


def test_truncated_weights_are_refused(saved: Path) -> None:
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ConfigError, match="cannot be loaded"):
        build_backbone(SMALL, weights=str(saved))


def test_pickled_weights_are_not_loaded(saved: Path) -> None:
    state = load_file(saved / "model.safetensors")
    (saved / "model.safetensors").unlink()
    torch.save(state, saved / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"model\.safetensors"):
        build_backbone(SMALL, weights=str(saved))


def test_unreachable_hub_id_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # read at its import
    with pytest.raises(ConfigError) as caught:
        build_backbone(preset("vits16"), weights="hub")
    message = str(caught.value)
    assert "facebook/dinov3-vits16-pretrain-lvd1689m" in message
    assert "pass its folder with --weights" in message
    assert "\n" not in message


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere' cannot be loaded \(no local folder"):
        build_backbone(SMALL, weights=str(tmp_path / "nowhere"))


def test_tiny_has_no_published_weights() -> None:
    with pytest.raises(ConfigError, match="no published weights; use --weights random"):
        build_backbone(preset("tiny"), weights="hub")


@pytest.mark.parametrize(("size", "suggested"), [(60, 64), (3, 8), (-64, 8)])
def test_image_size_off_the_patch_grid_is_refused_with_one_that_fits(
    size: int, suggested: int
) -> None:
    with pytest.raises(ConfigError, match=f"image size {size} is not.*try {suggested}$"):
        build_backbone(preset("tiny"), image_size=size)
