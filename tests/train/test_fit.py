"""From a folder of images to a run, from there to the next, and through a kill."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from cascade_runtime.errors import CascadeError, ConfigError, DataError
from cascade_train.adapters import AdapterConfig
from cascade_train.checkpoint import load_network, read_config
from cascade_train.data import load_split_pixels
from cascade_train.fit import FitRequest, run_fit
from cascade_train.loop import FitConfig, predict
from cascade_train.scale import ScaleConfig

Fit = Callable[..., list[str]]
replace = msgspec.structs.replace


def accuracy(run: Path, split: str = "val_test") -> float:
    """Of the last exit of the run's selected network on a split it never saw."""
    model, config = load_network(run)
    data = load_split_pixels(run, split, config.preprocess)
    logits, _ = predict(model, data.pixels)
    return float((logits[-1].argmax(axis=1) == data.labels).mean())


def test_an_easy_question_is_learnt(base_run: Path) -> None:
    assert accuracy(base_run) > 0.9


def test_run_folder_holds_what_later_steps_read(base_run: Path) -> None:
    names = {path.name for path in base_run.iterdir()}
    assert names == {
        "config.json",
        "splits.json",
        "log.jsonl",
        "contact_sheet.png",
        "model.safetensors",
        "last.safetensors",
        "scores.json",
        "scores.safetensors",
        "environment.json",
        "curves.png",
    }
    with Image.open(base_run / "contact_sheet.png") as sheet:
        assert min(sheet.size) > 200


def test_what_is_happening_is_said(square_folder: Path, tmp_path: Path, fit_squares: Fit) -> None:
    said = fit_squares(tmp_path / "run")
    assert said[0] == "240 images read, none skipped"
    assert said[1] == (
        "network: tiny, exits after blocks 1, 2; training 1.25 M of 1.25 M parameters (100.0 %) on "
        "132 images"
    )
    assert [line[:11] for line in said[2:5]] == ["epoch   1/3", "epoch   2/3", "epoch   3/3"]
    assert said[5].startswith("selected epoch ")


def test_bad_images_are_skipped_and_listed(square_folder: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(square_folder, tmp_path / "data"))
    (data / "plain" / "0000.png").write_bytes(b"")
    said: list[str] = []
    request = FitRequest(
        data=str(data), out=tmp_path / "run", exits=(1, 2), image_size=32, threads=1
    )
    run_fit(request, FitConfig(epochs=1, batch_size=64, amp="none"), say=said.append)
    assert said[0].splitlines()[0] == "239 images read, 1 skipped:"
    assert "plain/0000.png" in said[0]


def test_init_starts_from_the_earlier_runs_weights(
    base_run: Path, tmp_path: Path, fit_squares: Fit, quick: FitConfig
) -> None:
    out = tmp_path / "next"
    fit_squares(out, init=base_run, config=replace(quick, lr=1e-30, epochs=1))
    config = read_config(out)
    assert config.init is not None
    assert (out / config.init.path).resolve() == base_run.resolve()
    old, new = (load_file(run / "model.safetensors") for run in (base_run, out))
    assert all(torch.allclose(new[name], old[name], rtol=0, atol=1e-6) for name in old)


def test_a_run_goes_on_at_another_image_size(
    base_run: Path, tmp_path: Path, fit_squares: Fit
) -> None:
    """Places are turned by, not learned: patches may be of any number."""
    out = tmp_path / "larger"
    fit_squares(out, init=base_run, adapter=AdapterConfig(rank=4), image_size=48)
    assert read_config(base_run).preprocess.height == 32
    preprocess = read_config(out).preprocess
    assert (preprocess.height, preprocess.width) == (48, 48)
    assert accuracy(out) > 0.9
    with pytest.raises(ConfigError, match="image size 30 is not a multiple"):
        fit_squares(tmp_path / "not", init=base_run, image_size=30)


def test_adapter_run_says_what_it_trains_and_answers_as_well(
    base_run: Path, adapted_run: Path, tmp_path: Path, fit_squares: Fit
) -> None:
    said = fit_squares(tmp_path / "again", init=base_run, adapter=AdapterConfig(rank=4))
    assert "training 53.5 k of 1.27 M parameters (4.2 %)" in said[1]
    assert accuracy(adapted_run) > 0.9
    assert read_config(adapted_run).adapter == AdapterConfig(rank=4)


def test_same_seed_gives_the_same_bytes(base_run: Path, tmp_path: Path, fit_squares: Fit) -> None:
    fit_squares(tmp_path / "run")
    again = (tmp_path / "run" / "model.safetensors").read_bytes()
    assert again == (base_run / "model.safetensors").read_bytes()


KILLED = """
import os, signal, sys
from pathlib import Path
from cascade_train.fit import FitRequest, run_fit
from cascade_train.loop import FitConfig
import msgspec

def die(what, done, total):
    if what == "training" and done == 2 * total // 3 - 1:  # in the second of three epochs
        os.kill(os.getpid(), signal.SIGKILL)

data, out, config = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
request = FitRequest(data=data, out=out, exits=(1, 2), image_size=32, threads=1)
run_fit(request, msgspec.json.decode(config, type=FitConfig), progress=die)
"""


def test_process_killed_within_an_epoch_is_resumed_to_the_same_bytes(
    base_run: Path, square_folder: Path, tmp_path: Path, fit_squares: Fit, quick: FitConfig
) -> None:
    out = tmp_path / "run"
    arguments = [str(square_folder), str(out), msgspec.json.encode(quick).decode()]
    ended = subprocess.run([sys.executable, "-c", KILLED, *arguments], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert len((out / "log.jsonl").read_text().splitlines()) == 1
    said = fit_squares(out, resume=True)
    assert "epoch   2/3" in "\n".join(said)
    assert "epoch   1/3" not in "\n".join(said)
    for name in ("model.safetensors", "last.safetensors"):
        old, new = load_file(base_run / name), load_file(out / name)
        assert old.keys() == new.keys()
        assert all(torch.equal(old[key], new[key]) for key in old)
    assert (out / "model.safetensors").read_bytes() == (base_run / "model.safetensors").read_bytes()


@pytest.fixture
def run(base_run: Path, tmp_path: Path) -> Path:
    """A copy of a finished run, to be resumed."""
    return Path(shutil.copytree(base_run, tmp_path / "run"))


def test_resuming_with_the_same_settings_is_accepted(run: Path, fit_squares: Fit) -> None:
    before = (run / "model.safetensors").read_bytes()
    said = fit_squares(run, resume=True)
    assert said[-3].startswith("selected epoch ")
    assert (run / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"config": {"lr": 5e-4}}, "lr is 0.0005 now and was 0.002"),
        ({"config": {"epochs": 9}}, "epochs is 9 now and was 3"),
        ({"exits": (1, 3)}, r"exits is \(1, 3\) now and was \(1, 2\)"),
        ({"image_size": 64}, "image_size is 64 now and was 32"),
        ({"preset": "vits16"}, "preset is 'vits16' now and was 'tiny'"),
        ({"positive": "plain"}, "positive is 'plain' now and was 'square'"),
        ({"adapter": AdapterConfig(rank=2)}, "adapter is {.*} now and was None"),
        ({"weights": "hub"}, "weights is 'hub' now and was 'random'"),
        ({"fractions": (0.4, 0.2, 0.2, 0.2)}, "splits is .* now and was"),
    ],
)
def test_resuming_with_changed_settings_is_refused(
    run: Path, fit_squares: Fit, quick: FitConfig, changes: dict[str, object], words: str
) -> None:
    if "config" in changes:
        changes = {"config": replace(quick, **changes["config"])}  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=words):
        fit_squares(run, resume=True, **changes)


def test_resuming_with_other_data_is_refused(run: Path, tmp_path: Path, quick: FitConfig) -> None:
    request = FitRequest(data="elsewhere", out=run, threads=1, resume=True)
    with pytest.raises(ConfigError, match="data is 'elsewhere' now and was"):
        run_fit(request, quick, say=lambda line: None)


def test_an_existing_run_is_not_written_over(run: Path, fit_squares: Fit) -> None:
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    with pytest.raises(ConfigError, match=r"already holds a run; resume it with --resume"):
        fit_squares(run)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_resuming_nothing_is_refused(tmp_path: Path, fit_squares: Fit) -> None:
    with pytest.raises(ConfigError, match="holds no run to resume"):
        fit_squares(tmp_path / "none", resume=True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"exits": (1, 9)}, "exits 1,9: give rising block counts between 1 and 6"),
        ({"image_size": 30}, "image size 30 is not a multiple"),
        ({"preset": "vit"}, "preset 'vit' is unknown"),
        ({"adapter": AdapterConfig()}, "an adapter needs trained weights"),
        ({"positive": "digger"}, "digger"),
        ({"init": Path("nowhere")}, "nowhere is no run folder"),
        ({"init": Path("x"), "exits": (1, 2)}, "exits comes from the --init run"),
        ({"init": Path("x"), "weights": "hub"}, "weights come from the --init run"),
    ],
)
def test_requests_that_cannot_be_met_are_refused_and_leave_no_run(
    tmp_path: Path, fit_squares: Fit, changes: dict[str, object], words: str
) -> None:
    with pytest.raises(CascadeError, match=words):
        fit_squares(tmp_path / "run", **changes)
    assert not (tmp_path / "run" / "config.json").exists()


def test_splits_are_the_shares_asked_for(
    square_folder: Path, tmp_path: Path, fit_squares: Fit
) -> None:
    fit_squares(tmp_path / "run", fractions=(0.4, 0.3, 0.2, 0.1))
    entries = json.loads((tmp_path / "run" / "splits.json").read_text())["entries"]
    counts = {name: sum(e["split"] == name for e in entries) for name in ("train", "val_test")}
    assert counts == {"train": 96, "val_test": 24}


@pytest.mark.parametrize("decode", ["cached", "files"])
def test_images_read_as_they_are_needed_train_the_same_network(
    decode: str, base_run: Path, tmp_path: Path, fit_squares: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CASCADE_EDGE_CACHE", str(tmp_path / "cache"))
    fit_squares(tmp_path / "run", decode=decode)
    found = (tmp_path / "run" / "model.safetensors").read_bytes()
    assert found == (base_run / "model.safetensors").read_bytes()
    fit_squares(tmp_path / "run", decode=decode, resume=True)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == found


def test_split_that_would_certify_on_images_seen_before_is_refused(
    base_run: Path, adapted_run: Path, tmp_path: Path, fit_squares: Fit
) -> None:
    """Also through a run in between, and only where another split is asked for."""
    for start in (base_run, adapted_run):
        with pytest.raises(DataError, match=r"images of val_\w+ have shaped .*--split-seed"):
            fit_squares(tmp_path / start.name, init=start, split_seed=1)
        assert not (tmp_path / start.name / "config.json").exists()


def test_run_of_another_version_is_not_resumed_and_says_why(run: Path, fit_squares: Fit) -> None:
    path = run / "config.json"
    config = json.loads(path.read_text())
    config["fit"]["max_fnr"] = 0.2
    path.write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"another version of cascade-train .* max_fnr"):
        fit_squares(run, resume=True)


def test_batch_that_cannot_be_cut_is_refused_before_a_folder_is_claimed(
    tmp_path: Path, fit_squares: Fit, quick: FitConfig
) -> None:
    odd = replace(quick, batch_size=15, scale=ScaleConfig(accumulate=2))
    with pytest.raises(ConfigError, match="batch_size is 15"):
        fit_squares(tmp_path / "run", config=odd)
    assert not (tmp_path / "run").exists()


def test_adapter_whose_weights_folder_has_changed_is_refused(
    base_run: Path, tmp_path: Path, fit_squares: Fit
) -> None:
    folder = tmp_path / "weights"
    backbone = load_network(base_run)[0].backbone
    backbone.save_pretrained(folder)
    shape = {"exits": (1, 2), "image_size": 32}
    fit_squares(tmp_path / "run", weights=str(folder), adapter=AdapterConfig(rank=2), **shape)
    load_network(tmp_path / "run")
    with torch.no_grad():
        backbone.norm.weight.add_(1.0)
    backbone.save_pretrained(folder)
    with pytest.raises(ConfigError, match="holds other weights than"):
        load_network(tmp_path / "run")


def test_heads_alone_leave_the_backbone_as_it_was(
    base_run: Path, tmp_path: Path, fit_squares: Fit, quick: FitConfig
) -> None:
    config = replace(quick, freeze="backbone", epochs=6, lr=1e-2)
    fit_squares(tmp_path / "heads", config=config, init=base_run)
    before, after = (load_network(r, scores=False)[0] for r in (base_run, tmp_path / "heads"))
    old, new = before.state_dict(), after.state_dict()
    moved = {name for name in old if not torch.equal(old[name], new[name])}
    assert moved and all(
        re.match(r"exits\.heads\.\d\.(classifier|gate|auxiliary)", n) for n in moved
    )
    assert accuracy(tmp_path / "heads") > 0.9
