"""Several processes train what one does, and a killed one costs no more than its epoch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file

from cascade_train.constraints import Constraints
from cascade_train.loop import Epoch, FitConfig
from cascade_train.scale import ScaleConfig

from .distributed_worker import train

WORKER = Path(__file__).with_name("distributed_worker.py")
CONFIG = FitConfig(epochs=2, batch_size=32, lr=1e-3, amp="none")
replace = msgspec.structs.replace


def launch(run: Path, config: FitConfig, *words: str) -> subprocess.CompletedProcess[str]:
    """Two processes over gloo."""
    run.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--standalone", "--max-restarts", "0", str(WORKER), str(run)]
    settings = msgspec.json.encode(config).decode()
    return subprocess.run(
        [*command, settings, *words], capture_output=True, text=True, timeout=240, check=False
    )


def selected(run: Path, adapter: bool) -> dict[str, torch.Tensor]:
    return load_file(
        run / ("adapter/adapter_model.safetensors" if adapter else "model.safetensors")
    )


def log(run: Path) -> list[Epoch]:
    lines = (run / "log.jsonl").read_bytes().splitlines()
    return [msgspec.json.decode(line, type=Epoch) for line in lines]


def assert_close(
    first: dict[str, torch.Tensor], second: dict[str, torch.Tensor], exactly: bool = False
) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(
            value, second[name], atol=0 if exactly else 1e-5, rtol=0, msg=name
        )


@pytest.mark.parametrize("kind", ["full", "lora", "sharded"])
def test_two_processes_train_what_one_does_in_two_parts(kind: str, tmp_path: Path) -> None:
    sharded = replace(CONFIG, scale=ScaleConfig(sharded=kind == "sharded"))
    done = launch(tmp_path / "two", sharded, kind)
    assert done.returncode == 0, done.stderr
    (tmp_path / "one").mkdir()
    parts = replace(CONFIG, scale=ScaleConfig(accumulate=2))
    expected = train(tmp_path / "one", parts, kind == "lora", False, False)
    found = log(tmp_path / "two")
    assert [e.accuracy for e in found] == [e.accuracy for e in expected]
    assert [e.loss for e in found] == pytest.approx([e.loss for e in expected], abs=1e-5)
    assert_close(*(selected(tmp_path / name, kind == "lora") for name in ("one", "two")))
    assert_close(*(load_file(tmp_path / name / "last.safetensors") for name in ("one", "two")))


def test_shards_hold_live_weights_again_after_an_epoch_that_was_not_selected(
    tmp_path: Path,
) -> None:
    """Judging leaves the averaged weights whole in FSDP2; training must not go on from them."""
    free = Constraints(coverage=0.0, error=1.0, fnr=1.0)
    config = replace(CONFIG, epochs=3, constraints=free)
    sharded = replace(config, scale=ScaleConfig(sharded=True))
    done = launch(tmp_path / "two", sharded)
    assert done.returncode == 0, done.stderr
    (tmp_path / "one").mkdir()
    parts = replace(config, scale=ScaleConfig(accumulate=2))
    train(tmp_path / "one", parts, False, False, False)
    assert not all(e.selected for e in log(tmp_path / "two"))
    assert_close(*(load_file(tmp_path / name / "last.safetensors") for name in ("one", "two")))


def test_killed_process_costs_its_epoch_and_no_more(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert launch(whole, CONFIG).returncode == 0
    killed = launch(broken, CONFIG, "die")
    assert killed.returncode != 0 and "SIGKILL" in killed.stderr
    assert [e.epoch for e in log(broken)] == [0]
    load_file(broken / "model.safetensors")  # whole, and that of the first epoch
    again = launch(broken, CONFIG, "resume")
    assert again.returncode == 0, again.stderr
    for name in ("last.safetensors", "model.safetensors"):  # the header of the first tells the time
        assert_close(load_file(whole / name), load_file(broken / name), exactly=True)


def test_accumulated_parts_make_the_same_step_as_the_whole_batch(tmp_path: Path) -> None:
    runs = {}
    for parts in (1, 4):
        (tmp_path / f"{parts}").mkdir()
        config = replace(CONFIG, scale=ScaleConfig(accumulate=parts))
        runs[parts] = train(tmp_path / f"{parts}", config, False, False, False)
    assert [e.loss for e in runs[1]] == pytest.approx([e.loss for e in runs[4]], abs=1e-5)
    assert_close(selected(tmp_path / "1", False), selected(tmp_path / "4", False))
