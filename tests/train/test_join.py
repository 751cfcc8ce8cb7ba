"""Two finished runs are joined into one that answers with both, or refused with what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from cascade_calib.splits_file import Splits, content_hash
from cascade_runtime.errors import CascadeError, ConfigError, DataError
from cascade_train.checkpoint import load_network, read_config
from cascade_train.data import load_split_pixels
from cascade_train.data.splits import SPLITS, read_splits, write_splits
from cascade_train.explora.config import ExploraConfig
from cascade_train.explora.run import run_explora
from cascade_train.explora.start import ExploraRequest
from cascade_train.gates import attach_scores, read_exits
from cascade_train.join import join
from cascade_train.loop import predict
from cascade_train.record import list_runs, show_run

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def runs(base_run: Path, adapted_run: Path, tmp_path: Path) -> Path:
    """A folder with copies of both runs, as `base` and `adapted`; the second adapted the first."""
    for run in (base_run, adapted_run):
        shutil.copytree(run, tmp_path / run.name)
    return tmp_path


@pytest.fixture
def pair(runs: Path) -> Path:
    join(runs / "base", runs / "adapted", runs / "pair")
    return runs / "pair"


def edit(run: Path, **fields: object) -> None:
    path = run / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_pair_answers_with_the_exits_of_both_in_order(
    pair: Path, pixels: torch.Tensor, base_run: Path, adapted_run: Path
) -> None:
    model, config = load_network(pair)
    assert (config.preset, config.exits) == ("tiny + tiny", (1, 2, 1, 2))
    assert not model.training
    with torch.no_grad():
        found = model(pixels)
        wanted = [out for run in (base_run, adapted_run) for out in load_network(run)[0](pixels)]
    for ours, theirs in zip(found, wanted, strict=True):
        assert torch.equal(ours.logits, theirs.logits)
        assert torch.equal(ours.gate, theirs.gate)


def test_pair_is_read_and_scored_like_any_network(pair: Path, pixels: torch.Tensor) -> None:
    model, _ = load_network(pair, scores=False)
    logits, gates = predict(model, pixels.numpy())
    assert (logits.shape, gates.shape) == ((4, 4, 2), (4, 4))
    for exit_, out in enumerate(read_exits(model, pixels.numpy())):
        np.testing.assert_allclose(out.logits, logits[exit_], rtol=0, atol=1e-6)
        np.testing.assert_allclose(out.gate, gates[exit_], rtol=0, atol=1e-6)
    shipped, _ = load_network(pair)
    with_scores = predict(shipped, pixels.numpy())[1]
    assert not np.array_equal(with_scores, gates)
    attach_scores(shipped, None)
    np.testing.assert_array_equal(predict(shipped, pixels.numpy())[1], gates)


def test_pair_holds_no_weights_and_finds_its_images(pair: Path) -> None:
    assert {path.name for path in pair.iterdir()} == {"config.json", "splits.json"}
    config = read_config(pair)
    assert [part.path for part in config.joined] == ["../base", "../adapted"]
    select = load_split_pixels(pair, "val_select", config.preprocess)
    assert len(select) == len(read_splits(pair / "splits.json").of("val_select"))


def test_folder_of_images_written_relative_to_the_splits_is_found_from_the_pair(
    runs: Path, square_folder: Path
) -> None:
    shutil.copytree(square_folder, runs / "base" / "images")
    path = runs / "base" / "splits.json"
    write_splits(msgspec.structs.replace(read_splits(path), root="images"), path)
    join(runs / "base", runs / "adapted", runs / "deep" / "pair")
    spec = read_config(runs / "base").preprocess
    assert len(load_split_pixels(runs / "deep" / "pair", "val_select", spec))


def test_runs_moved_together_are_found_again(pair: Path, pixels: torch.Tensor) -> None:
    with torch.no_grad():
        wanted = load_network(pair)[0](pixels)
        moved = pair.parent.rename(pair.parent.with_name("moved"))
        found = load_network(moved / "pair")[0](pixels)
    assert all(torch.equal(a.logits, b.logits) for a, b in zip(found, wanted, strict=True))


def test_run_of_one_network_says_nothing_of_pairs(base_run: Path) -> None:
    assert read_config(base_run).joined == ()


@pytest.mark.parametrize("file", ["model.safetensors", "scores.safetensors"])
def test_part_whose_weights_or_scores_have_changed_is_refused(pair: Path, file: str) -> None:
    part = pair.parent / "base"
    data = bytearray((part / file).read_bytes())
    data[-1] ^= 1
    (part / file).write_bytes(data)
    with pytest.raises(ConfigError, match=r"weights or scores of .*base have changed"):
        load_network(pair)


def test_part_that_is_gone_is_refused_by_name(pair: Path) -> None:
    shutil.rmtree(pair.parent / "base")
    with pytest.raises(ConfigError, match="base is no run folder"):
        load_network(pair)


def test_part_that_was_described_anew_is_refused(pair: Path) -> None:
    edit(pair.parent / "base", classes=["square", "plain"])
    with pytest.raises(ConfigError, match="classes of its parts is"):
        load_network(pair)


def other_splits(run: Path, *, swap: bool) -> Splits:
    """Those of the run with two images of one class exchanged between splits, or one left out."""
    splits = read_splits(run / "splits.json")
    entries = list(splits.entries)
    first = next(i for i, e in enumerate(entries) if e.split == "train" and e.label == 0)
    last = next(i for i, e in enumerate(entries) if e.split == "val_calib" and e.label == 0)
    if swap:
        entries[first] = msgspec.structs.replace(entries[first], split="val_calib")
        entries[last] = msgspec.structs.replace(entries[last], split="train")
    else:
        del entries[first]
    hashes = {
        split: content_hash(
            [e.sha256 for e in entries if e.split == split],
            [e.label for e in entries if e.split == split],
        )
        for split in SPLITS
    }
    return msgspec.structs.replace(splits, entries=tuple(entries), content_sha256=hashes)


@pytest.mark.parametrize(
    ("swap", "words"),
    [(True, r"2 of 240 images differ, .*train, .*val_calib"), (False, r"1 of 240 .*missing")],
)
def test_other_splits_are_refused_with_the_options_that_give_the_same(
    runs: Path, square_folder: Path, swap: bool, words: str
) -> None:
    path = runs / "adapted" / "splits.json"
    write_splits(other_splits(runs / "adapted", swap=swap), path)
    with pytest.raises(DataError, match=words) as caught:
        join(runs / "base", runs / "adapted", runs / "pair")
    advice = f"--data {square_folder} --split-seed 0 --splits 0.55,0.1,0.2,0.15"
    assert str(caught.value).endswith(advice)
    assert not (runs / "pair").exists()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"classes": ["square", "plain"]}, r"classes .* plain / square, .*--positive square"),
        ({"preprocess": {"height": 64, "width": 64}}, "32 x 32 pixels, .* of 64 x 64.*image-size"),
    ],
)
def test_runs_that_answer_otherwise_are_refused(
    runs: Path, fields: dict[str, object], words: str
) -> None:
    edit(runs / "adapted", **fields)
    with pytest.raises(ConfigError, match=words):
        join(runs / "base", runs / "adapted", runs / "pair")


def test_run_that_was_stopped_is_refused(runs: Path) -> None:
    log = runs / "base" / "log.jsonl"
    log.write_text(log.read_text().splitlines()[0] + "\n")
    (runs / "base" / "environment.json").unlink()
    with pytest.raises(ConfigError, match="base is unfinished"):
        join(runs / "base", runs / "adapted", runs / "pair")


def test_pair_of_a_run_with_itself_or_with_a_pair_is_refused(pair: Path) -> None:
    runs = pair.parent
    with pytest.raises(ConfigError, match="given twice"):
        join(runs / "base", runs / "base", runs / "two")
    with pytest.raises(ConfigError, match=r"pair only joins the runs .*base and .*adapted"):
        join(pair, runs / "base", runs / "two")
    with pytest.raises(ConfigError, match="pair already holds a run"):
        join(runs / "base", runs / "adapted", pair)
    assert not (runs / "two").exists()


def test_pair_is_nothing_to_train_from(
    pair: Path, square_folder: Path, fit_squares: Callable[..., object]
) -> None:
    with pytest.raises(CascadeError, match="only joins the runs"):
        fit_squares(pair.parent / "more", init=pair)
    with pytest.raises(CascadeError, match="only joins the runs"):
        fit_squares(pair, resume=True)
    request = ExploraRequest(data=str(square_folder), out=pair.parent / "explored", init=pair)
    with pytest.raises(CascadeError, match="only joins the runs"):
        run_explora(request, ExploraConfig(), say=lambda line: None)


def test_pair_is_listed_and_shown_as_one(pair: Path, command: Command) -> None:
    found = {run.path: run for run in list_runs(pair.parent)}
    assert (found["pair"].status, found["pair"].init) == ("joined", "../base + ../adapted")
    assert show_run(pair).summary.preset == "tiny + tiny"
    status, said, _ = command("list", pair.parent)
    assert status == 0 and "joins ../base + ../adapted" in said
    status, said, _ = command("show", pair)
    assert status == 0 and "joined, not trained itself" in said
    shutil.rmtree(pair.parent / "base")
    found = {run.path: run for run in list_runs(pair.parent)}
    assert found["pair"].problem == "the run ../base that it joins is missing"


def test_command_says_what_was_joined(runs: Path, command: Command) -> None:
    out = runs / "pair"
    status, said, _ = command("join", runs / "base", runs / "adapted", "--out", out)
    assert status == 0
    assert said.splitlines() == [
        "networks: tiny + tiny, exits after blocks 1, 2, 1, 2",
        f"run: {out}",
    ]
    status, _, err = command("join", runs / "base", runs / "adapted", "--out", out)
    assert (status, err) == (1, f"error: {out} already holds a run; choose another --out\n")
