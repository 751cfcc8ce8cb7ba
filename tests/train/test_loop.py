"""The loop: resuming, stopping, choosing, and failing without loss."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from cascade_calib.labelled import Loaded
from cascade_calib.metrics import augrc
from cascade_runtime.errors import ConfigError
from cascade_train import loop
from cascade_train.adapters import AdapterConfig, add_adapter
from cascade_train.augment_config import AugmentConfig
from cascade_train.checkpoint import load_exact
from cascade_train.constraints import Constraints, better
from cascade_train.exits import CascadeModel
from cascade_train.loop import Epoch, FitConfig, fit, predict

Make = Callable[[int], CascadeModel]
replace = msgspec.structs.replace


FREE = Constraints(coverage=0.0, fnr=1.0)


class Killed(BaseException):
    """Stands for a process that goes away; nothing catches it."""


@pytest.fixture(scope="module")
def data(squares: Callable[..., Loaded]) -> tuple[Loaded, Loaded]:
    """64 images to train on and 40 to select on."""
    return squares(64), squares(40, first=1000)


@pytest.fixture(scope="module")
def config(quick: FitConfig) -> FitConfig:
    """Four epochs of two steps, with augmentation and an average, as real runs have them."""
    return replace(quick, epochs=4, augment=AugmentConfig(), ema=0.9)


def tensors(path: Path) -> dict[str, bytes]:
    """Every tensor's bytes by name."""
    return {name: value.numpy().tobytes() for name, value in load_file(path).items()}


def die_at(moment: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Arguments of `fit` that end the process in the third epoch, at the moment named."""

    def raise_in_third(epoch: int) -> None:
        if epoch == 2:
            raise Killed

    if moment == "after the second epoch":
        return {"report": lambda entry: raise_in_third(entry.epoch + 1)}
    if moment == "within the third epoch":  # two steps an epoch
        return {"progress": lambda _, done, total: raise_in_third(2 if done == 5 else 0)}
    save = loop.save_state

    def save_or_die(*args: Any, **more: Any) -> None:
        raise_in_third(len(args[-1]["log"]) - 1)
        save(*args, **more)

    monkeypatch.setattr(loop, "save_state", save_or_die)
    return {}


MOMENTS = (
    "after the second epoch",
    "within the third epoch",
    "between selected weights and state",
)


def network(kind: str, seed: int, make_model: Make) -> nn.Module:
    """To train in full, or with an adapter on a base that is the same for every seed."""
    if kind == "full":
        return make_model(seed)
    base = make_model(0)
    torch.manual_seed(seed)
    return add_adapter(base, AdapterConfig(rank=2, targets="qv", dropout=0.1))


@pytest.fixture(scope="module", params=["full", "lora"])
def unbroken(
    request: pytest.FixtureRequest,
    data: tuple[Loaded, Loaded],
    config: FitConfig,
    make_model: Make,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[str, Path, list[Epoch]]:
    """The kind of training, the run folder and the log of a run that nothing stopped."""
    run = tmp_path_factory.mktemp("unbroken")
    return request.param, run, fit(network(request.param, 0, make_model), *data, config, run)


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_and_resumed_run_ends_with_the_bytes_of_an_unbroken_one(
    unbroken: tuple[str, Path, list[Epoch]],
    data: tuple[Loaded, Loaded],
    config: FitConfig,
    make_model: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
) -> None:
    kind, whole, log = unbroken
    with monkeypatch.context() as patch, pytest.raises(Killed):
        fit(network(kind, 0, make_model), *data, config, tmp_path, **die_at(moment, patch))
    again = fit(network(kind, 7, make_model), *data, config, tmp_path, resume=True)
    assert tensors(tmp_path / "last.safetensors") == tensors(whole / "last.safetensors")
    selected = "model.safetensors" if kind == "full" else "adapter/adapter_model.safetensors"
    assert (tmp_path / selected).read_bytes() == (whole / selected).read_bytes()
    clock = {"seconds": 0.0, "images_per_s": 0.0}
    assert [replace(e, **clock) for e in again] == [replace(e, **clock) for e in log]


def test_resuming_does_continue_and_not_start_again(
    data: tuple[Loaded, Loaded], config: FitConfig, make_model: Make, tmp_path: Path
) -> None:
    def stop(entry: Epoch) -> None:
        if entry.epoch == 1:
            raise Killed

    with pytest.raises(Killed):
        fit(make_model(0), *data, config, tmp_path, report=stop)
    reported: list[int] = []
    fit(
        make_model(0),
        *data,
        config,
        tmp_path,
        resume=True,
        report=lambda entry: reported.append(entry.epoch),
    )
    assert reported == [2, 3]


def test_resuming_a_finished_run_changes_nothing(
    data: tuple[Loaded, Loaded], config: FitConfig, make_model: Make, tmp_path: Path
) -> None:
    log = fit(make_model(0), *data, replace(config, epochs=1), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert fit(make_model(1), *data, replace(config, epochs=1), tmp_path, resume=True) == log
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_another_seed_gives_other_weights(
    data: tuple[Loaded, Loaded], config: FitConfig, make_model: Make, tmp_path: Path
) -> None:
    for seed in (1, 2):
        (tmp_path / f"{seed}").mkdir()
        fit(make_model(0), *data, replace(config, epochs=1, seed=seed), tmp_path / f"{seed}")
    first, second = (tensors(tmp_path / name / "last.safetensors") for name in ("1", "2"))
    assert first != second


def test_state_of_another_network_is_refused(
    data: tuple[Loaded, Loaded], config: FitConfig, make_model: Make, tmp_path: Path
) -> None:
    fit(make_model(0), *data, replace(config, epochs=1), tmp_path)
    adapted = add_adapter(make_model(0), AdapterConfig(rank=2))
    with pytest.raises(ConfigError, match=r"last\.safetensors: does not fit the network"):
        fit(adapted, *data, config, tmp_path, resume=True)


def test_truncated_state_is_refused(
    data: tuple[Loaded, Loaded], config: FitConfig, make_model: Make, tmp_path: Path
) -> None:
    (tmp_path / "last.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(ConfigError, match=r"last\.safetensors: cannot resume from it"):
        fit(make_model(0), *data, config, tmp_path, resume=True)


def test_training_stops_when_patience_is_used_up_also_after_resuming(
    data: tuple[Loaded, Loaded], config: FitConfig, make_model: Make, tmp_path: Path
) -> None:
    still = replace(config, epochs=9, patience=2, lr=1e-30)  # nothing moves, nothing improves
    log = fit(make_model(0), *data, still, tmp_path)
    assert [entry.selected for entry in log] == [True, False, False]
    assert len(fit(make_model(0), *data, still, tmp_path, resume=True)) == 3


def test_no_patience_means_every_epoch(
    data: tuple[Loaded, Loaded], config: FitConfig, make_model: Make, tmp_path: Path
) -> None:
    assert len(fit(make_model(0), *data, replace(config, lr=1e-30), tmp_path)) == config.epochs


def test_selected_weights_are_those_that_the_log_line_was_measured_on(
    data: tuple[Loaded, Loaded], config: FitConfig, make_model: Make, tmp_path: Path
) -> None:
    train, select = data
    labels = np.where(np.arange(len(select)) % 5 == 0, 1 - select.labels, select.labels)
    hard = Loaded(select.pixels, labels, select.names, None)  # so that no figure is a round one
    kept: dict[int, bytes] = {}

    def keep(entry: Epoch) -> None:
        kept[entry.epoch] = (tmp_path / "model.safetensors").read_bytes()

    log = fit(make_model(0), train, hard, replace(config, constraints=FREE), tmp_path, report=keep)
    best = [entry for entry in log if entry.selected][-1]
    assert kept[best.epoch] == (tmp_path / "model.safetensors").read_bytes()
    model = make_model(9)
    load_exact(model, tmp_path / "model.safetensors")
    logits, gates = predict(model, hard.pixels)
    wrong = logits.argmax(axis=2) != labels
    margins = np.abs(logits[:, :, 1] - logits[:, :, 0])
    areas = [min(augrc(m, w), augrc(g, w)) for m, g, w in zip(margins, gates, wrong, strict=True)]
    assert 0 < best.augrc == pytest.approx(np.mean(areas), rel=1e-9)
    assert best.accuracy == pytest.approx(1 - wrong.mean(axis=1), abs=1e-6)
    assert best.augrc == min(entry.augrc for entry in log)


def test_epochs_beyond_the_constraints_are_marked_and_the_nearest_is_kept(
    data: tuple[Loaded, Loaded], config: FitConfig, make_model: Make, tmp_path: Path
) -> None:
    train, select = data
    swapped = Loaded(
        select.pixels, 1 - select.labels, select.names, None
    )  # learning makes it worse
    strict = replace(config, constraints=Constraints(coverage=1.0, fnr=0.0), epochs=8)
    log = fit(make_model(0), train, swapped, strict, tmp_path)
    assert log[-1].fnr > 0.5
    assert not log[-1].eligible
    for now in log[1:]:
        best = [e for e in log[: now.epoch] if e.selected][-1]
        assert now.selected == better(now.standing, best.standing)


def test_loss_that_is_no_number_stops_and_keeps_the_best_weights(
    data: tuple[Loaded, Loaded], config: FitConfig, make_model: Make, tmp_path: Path
) -> None:
    log = fit(make_model(0), *data, replace(config, epochs=1), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    wild = replace(config, lr=1e30, epochs=5)
    with pytest.raises(ConfigError, match=r"no longer a number.*Try a lower --lr than 1e\+30"):
        fit(make_model(0), *data, wild, tmp_path, resume=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert len(log) == 1


def test_outputs_that_are_no_numbers_are_never_selected(
    squares: Callable[..., Loaded], config: FitConfig, make_model: Make, tmp_path: Path
) -> None:
    one_step = squares(32)  # the loss of the only step is fine, what it leads to is not
    with pytest.raises(ConfigError, match="an output on val_select is no longer a number"):
        fit(make_model(0), one_step, one_step, replace(config, lr=1e30, epochs=1), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_log_has_one_json_line_an_epoch_and_equals_what_is_returned(
    data: tuple[Loaded, Loaded], config: FitConfig, make_model: Make, tmp_path: Path
) -> None:
    log = fit(make_model(0), *data, config, tmp_path)
    lines = (tmp_path / "log.jsonl").read_bytes().splitlines()
    assert [msgspec.json.decode(line, type=Epoch) for line in lines] == log
    assert [entry.epoch for entry in log] == [0, 1, 2, 3]
    assert all(len(entry.accuracy) == 2 for entry in log)


def test_learning_rate_rises_then_falls_to_almost_nothing(
    data: tuple[Loaded, Loaded], config: FitConfig, make_model: Make, tmp_path: Path
) -> None:
    log = fit(make_model(0), *data, replace(config, epochs=4, warmup=0.5), tmp_path)
    rates = [entry.lr for entry in log]
    assert rates[0] < rates[1] == config.lr
    assert rates[1] > rates[2] > rates[3]
    assert rates[3] < 0.2 * config.lr


def test_bfloat16_autocast_trains_float32_weights(
    data: tuple[Loaded, Loaded], config: FitConfig, make_model: Make, tmp_path: Path
) -> None:
    fit(make_model(0), *data, replace(config, amp="bf16", epochs=1), tmp_path)
    assert {value.dtype for value in load_file(tmp_path / "model.safetensors").values()} == {
        torch.float32
    }


def test_fewer_images_than_a_batch_are_one_step(
    squares: Callable[..., Loaded], config: FitConfig, make_model: Make, tmp_path: Path
) -> None:
    done: list[tuple[str, int, int]] = []
    few = squares(6)
    one = replace(config, epochs=1)
    fit(make_model(0), few, few, one, tmp_path, progress=lambda *now: done.append(now))
    assert done == [("training", 1, 1)]


def test_predict_gives_the_same_in_every_batch_size(
    data: tuple[Loaded, Loaded], model: CascadeModel
) -> None:
    pixels = data[1].pixels
    model.train()
    at_once, in_parts = (predict(model, pixels, batch_size=b) for b in (64, 7))
    assert at_once[0].shape == (2, 40, 2)
    assert at_once[1].shape == (2, 40)
    np.testing.assert_allclose(at_once[0], in_parts[0], atol=1e-5)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("batch_size", 1),
        ("lr", 0.0),
        ("lr", float("nan")),
        ("lr", float("inf")),
        ("warmup", 1.0),
        ("ema", 1.0),
        ("patience", -1),
        ("workers", -1),
    ],
)
def test_settings_out_of_range_are_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{field} is {value}, which is out of range"):
        FitConfig(**{field: value})  # type: ignore[arg-type]
