"""The study of a ViT-H+ adapted within a memory limit, run here on the smallest network."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner
from safetensors.torch import load_file

STUDY = Path(__file__).parents[2] / "benchmarks" / "studies" / "vith_lora.py"


@pytest.fixture(scope="module")
def study() -> ModuleType:
    spec = importlib.util.spec_from_file_location("vith_lora", STUDY)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where msgspec looks up the types of its fields
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("saving", [False, True])
def test_step_trains_and_merge_answers_alike(
    study: ModuleType, tmp_path: Path, saving: bool
) -> None:
    order = study.Order(
        preset="tiny",
        batch_size=2,
        rank=4,
        checkpointing=saving,
        bf16=saving,
        threads=1,
        folder=str(tmp_path),
    )
    step, merge = study.train_step(order), study.merge_and_write(order)
    trained = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    ups = [value for key, value in trained.items() if "lora_B" in key]
    assert len(ups) == 36
    assert all(value.any() for value in ups)  # B starts at zero: every layer took its step
    assert merge.difference < 1e-5
    assert step.share == "training 90.4 k of 1.31 M parameters (6.9 %)"
    assert min(step.peak_gib, merge.peak_gib) > 0.05
    merged = load_file(tmp_path / "model.safetensors")
    assert not any("lora" in key for key in merged)


def test_peak_above_the_limit_ends_with_status_1(
    study: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = study.Found(seconds={"forward": 1.0}, peak_gib=21.5, share="training all")
    found = {"step": found, "merge": study.Found(seconds={}, peak_gib=3.0, difference=0.0)}
    monkeypatch.setattr(study, "in_fresh_process", lambda phase, order: found[phase])
    above = CliRunner().invoke(study.main, ["--json"])
    assert above.exit_code == 1
    assert "the peak of 21.50 GiB is above 20 GiB" in above.stderr
    said = json.loads(above.stdout)
    assert (said["peak_gib"], said["step"]["seconds"]) == (21.5, {"forward": 1.0})
    within = CliRunner().invoke(study.main, ["--limit", "22"])
    assert within.exit_code == 0
    assert "vith16plus, batch 2, float32, all activations kept: training all" in within.stdout
    assert "highest peak 21.50 GiB (limit 22 GiB)" in within.stdout
