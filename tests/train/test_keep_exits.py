"""Some exits of a run are a run: its answers are theirs, and all that takes a run takes it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cascade_runtime.errors import ConfigError, DataError
from cascade_train.ancestry import seen_by
from cascade_train.checkpoint import load_network, read_config, read_scores, scores_sha256
from cascade_train.data import load_split_pixels
from cascade_train.join import join
from cascade_train.keep_exits import keep_exits, with_exits
from cascade_train.record import list_runs, summarise

Command = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("name", ["base", "adapted"])
@pytest.mark.parametrize("blocks", [(1,), (2,), (1, 2)])
def test_kept_exits_answer_to_the_bit_as_they_did(
    base_run: Path,
    adapted_run: Path,
    tmp_path: Path,
    pixels: torch.Tensor,
    name: str,
    blocks: tuple[int, ...],
) -> None:
    run = {"base": base_run, "adapted": adapted_run}[name]
    made = keep_exits(run, blocks, tmp_path / "kept")
    assert (made.exits, made.exits_of, made.adapter) == (blocks, (1, 2), None)
    for scores in (True, False):  # as shipped, and as trained
        model, config = load_network(tmp_path / "kept", scores=scores)
        assert config == made
        with torch.no_grad():
            found, were = model(pixels), load_network(run, scores=scores)[0](pixels)
        for ours, theirs in zip(found, (were[block - 1] for block in blocks), strict=True):
            assert torch.equal(ours.logits, theirs.logits)
            assert torch.equal(ours.gate, theirs.gate)


def test_network_with_fewer_exits_shares_its_weights(base_run: Path, pixels: torch.Tensor) -> None:
    model, _ = load_network(base_run)
    last = with_exits(model, [2])
    assert last.backbone is model.backbone
    with torch.no_grad():
        assert torch.equal(last(pixels)[0].gate, model(pixels)[1].gate)
    assert len(model.exits.heads) == 2


def test_scores_are_kept_under_the_new_number(base_run: Path, tmp_path: Path) -> None:
    keep_exits(base_run, [2], tmp_path / "kept")
    [kept], before = read_scores(tmp_path / "kept").exits, read_scores(base_run).exits[1]
    assert (kept.exit, kept.chosen, kept.errors) == (0, before.chosen, before.errors)
    assert kept.sentence == before.sentence.replace("Exit 1 ", "Exit 0 ")
    assert scores_sha256(tmp_path / "kept") != scores_sha256(base_run)


def test_run_without_chosen_scores_stays_without(base_run: Path, tmp_path: Path) -> None:
    shutil.copytree(base_run, tmp_path / "old")
    (tmp_path / "old" / "scores.safetensors").unlink()
    keep_exits(tmp_path / "old", [2], tmp_path / "kept")
    assert scores_sha256(tmp_path / "kept") is None
    load_network(tmp_path / "kept")


def test_exit_that_is_not_there_is_refused(base_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no exit after block 3; .*after blocks 1, 2"):
        keep_exits(base_run, [1, 3], tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


def test_splits_and_what_shaped_the_network_go_with_it(base_run: Path, tmp_path: Path) -> None:
    keep_exits(base_run, [2], tmp_path / "kept")
    select = load_split_pixels(tmp_path / "kept", "val_select", read_config(base_run).preprocess)
    assert len(select)
    (tmp_path / "kept" / "splits.json").unlink()  # then by the run that it was made from
    shutil.copy(base_run / "splits.json", tmp_path / "kept")
    assert seen_by(tmp_path / "kept") == seen_by(base_run)


def test_training_goes_on_from_it_but_does_not_resume_it(
    base_run: Path, tmp_path: Path, fit_squares: Callable[..., list[str]]
) -> None:
    keep_exits(base_run, [2], tmp_path / "kept")
    fit_squares(tmp_path / "more", init=tmp_path / "kept")
    assert read_config(tmp_path / "more").exits == (2,)
    with pytest.raises(ConfigError, match=r"not trained itself; .* --init .*kept"):
        fit_squares(tmp_path / "kept", resume=True)
    with pytest.raises(DataError, match="have shaped"):  # drawn otherwise: its images are known
        fit_squares(tmp_path / "other", init=tmp_path / "kept", split_seed=5)


def test_it_is_listed_shown_and_joined(base_run: Path, tmp_path: Path, command: Command) -> None:
    shutil.copytree(base_run, tmp_path / "base")
    keep_exits(tmp_path / "base", [1], tmp_path / "first")
    keep_exits(tmp_path / "base", [2], tmp_path / "second")
    found = {run.path: run for run in list_runs(tmp_path)}
    assert (found["first"].status, found["first"].init) == ("chosen", "../base")
    assert "exits of ../base" in command("list", tmp_path)[1]
    assert "exits of ../base, not trained itself" in command("show", tmp_path / "first")[1]
    join(tmp_path / "first", tmp_path / "second", tmp_path / "pair")
    assert read_config(tmp_path / "pair").exits == (1, 2)
    (tmp_path / "first" / "model.safetensors").unlink()
    assert summarise(tmp_path / "first", "first").problem == "its weights are missing"
