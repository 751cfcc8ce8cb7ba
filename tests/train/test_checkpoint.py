"""A run folder is read whole or refused by name, and written whole or not at all."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cascade_runtime.errors import ConfigError
from cascade_train import checkpoint
from cascade_train.checkpoint import load_network, read_config, write_atomic
from cascade_train.exits import CascadeModel


@pytest.fixture
def run(base_run: Path, tmp_path: Path) -> Path:
    """A copy of a finished run, to be changed."""
    return Path(shutil.copytree(base_run, tmp_path / "run"))


def edit(run: Path, **fields: object) -> None:
    path = run / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_saved_network_loads_to_the_bit_in_float32_and_eval_mode(base_run: Path) -> None:
    model, config = load_network(base_run, scores=False)
    saved = load_file(base_run / "model.safetensors")
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())
    assert not model.training
    assert config.classes == ("plain", "square")


def test_config_is_readable_json_with_provenance(base_run: Path) -> None:
    config = json.loads((base_run / "config.json").read_text())
    assert config["preset"] == "tiny"
    assert config["exits"] == [1, 2]
    assert config["preprocess"]["height"] == 32
    assert config["fit"]["epochs"] == 3
    assert {"seed", "versions", "git_commit", "command"} <= set(config["made_by"])
    assert "torch" in config["made_by"]["versions"]


@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_weights_that_do_not_fit_are_refused_by_name(run: Path, change: str) -> None:
    path = run / "model.safetensors"
    state = load_file(path)
    if change == "missing":
        del state["exits.heads.0.gate.0.bias"]
    elif change == "extra":
        state["exits.heads.0.gate.0.bias2"] = torch.zeros(1)
    else:
        state["exits.heads.0.gate.0.bias"] = torch.zeros(1)
    save_file(state, path)
    with pytest.raises(ConfigError, match=r"does not fit the network, first at 'exits.heads.0"):
        load_network(run)


def test_truncated_weights_are_refused(run: Path) -> None:
    path = run / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ConfigError, match=r"model\.safetensors: cannot be read"):
        load_network(run)


def test_unfinished_run_is_refused(run: Path) -> None:
    (run / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="holds no finished weights yet"):
        load_network(run)


def test_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is no run folder \(no config.json\)"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"version": 2}, "unknown format 'cascade-edge.run' version 2"),
        ({"format": "other"}, "unknown format 'other'"),
        ({"exits": "1,2"}, r"Expected `array`, got `str` - at `\$\.exits`"),
        ({"preset": "huge"}, "preset 'huge' is unknown"),
        ({"exits": [1, 9]}, "exits 1,9"),
    ],
)
def test_config_that_does_not_fit_is_refused(
    run: Path, fields: dict[str, object], words: str
) -> None:
    edit(run, **fields)
    with pytest.raises(ConfigError, match=words):
        load_network(run)


def test_config_that_is_no_json_is_refused(run: Path) -> None:
    (run / "config.json").write_text('{"format": ')
    with pytest.raises(ConfigError, match=r"config\.json: Input data was truncated"):
        read_config(run)


def test_failed_write_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: CascadeModel
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"old")

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, b"new")
    with pytest.raises(OSError, match="No space"):
        checkpoint.save_selected(tmp_path, model)
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    assert path.read_bytes() == b"old"


def test_nothing_a_run_holds_is_a_pickle(base_run: Path, adapted_run: Path) -> None:
    for run in (base_run, adapted_run):
        files = {file.name for file in run.rglob("*") if file.is_file()}
        assert files <= {
            "config.json",
            "splits.json",
            "log.jsonl",
            "contact_sheet.png",
            "model.safetensors",
            "last.safetensors",
            "adapter_config.json",
            "adapter_model.safetensors",
            "scores.json",
            "scores.safetensors",
            "environment.json",
            "curves.png",
        }


def test_disk_that_is_full_is_one_sentence_and_the_last_weights_stay(
    base_run: Path, tmp_path: Path
) -> None:
    """The limit on a file's size stands for the disk's; the process that has it is a child."""
    run = Path(shutil.copytree(base_run, tmp_path / "run"))
    before = (run / "model.safetensors").read_bytes()
    code = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from cascade_runtime.errors import ConfigError\n"
        "from cascade_train.checkpoint import load_network, save_selected\n"
        "run = Path(sys.argv[1])\n"
        "model, _ = load_network(run, scores=False)\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n    save_selected(run, model)\nexcept ConfigError as error:\n    print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(run)], capture_output=True, text=True, check=False
    )
    assert "model.safetensors cannot be written" in done.stdout, done.stderr
    assert (run / "model.safetensors").read_bytes() == before
    assert not list(run.glob(".*"))
