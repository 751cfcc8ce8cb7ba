"""`cascade-compile exits`: a run with some of the exits, chosen without a look at val_calib."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np
import pytest

from cascade_calib.splits_file import SPLITS_NAME, read_splits, write_splits
from cascade_compile.ledger import count_use
from cascade_compile.stage_times import measure_times
from cascade_runtime.bundle import Bundle
from cascade_runtime.cascade import Cascade
from cascade_runtime.command import INFEASIBLE_STATUS
from cascade_runtime.manifest import Decision, ExitRule
from cascade_train.checkpoint import read_config
from cascade_train.join import join
from cascade_train.keep_exits import keep_exits

from .conftest import ONNX, Made, Trained

Command = Callable[..., tuple[int, str, str]]
QUICKLY = ("--target", ONNX, "--batch", 4, "--threads", 1, "--coverage", 0.5)


@pytest.fixture
def run(trained: Trained, tmp_path: Path) -> Path:
    """The trained run with its own copy of the images."""
    shutil.copytree(trained.run, tmp_path / "run")
    splits = read_splits(trained.run / SPLITS_NAME)
    shutil.copytree(splits.root, tmp_path / "images")
    root = str(tmp_path / "images")
    write_splits(msgspec.structs.replace(splits, root=root), tmp_path / "run" / SPLITS_NAME)
    return tmp_path / "run"


@contextmanager
def moved_away(run: Path, *names: str) -> Iterator[None]:
    """The images of these splits are gone while the block runs."""
    splits = read_splits(run / SPLITS_NAME)
    files = [Path(splits.root) / entry.path for name in names for entry in splits.of(name)]
    for file in files:
        file.rename(file.with_suffix(".away"))
    yield
    for file in files:
        file.with_suffix(".away").rename(file)


def test_chosen_exits_become_a_run_that_is_certified_as_any_other(
    run: Path, trained: Trained, command: Command, tmp_path: Path
) -> None:
    count_use(run, trained.calib)
    out, plot = tmp_path / "chosen", tmp_path / "exits.png"
    ledger = run / "calibration_uses.json"  # of the tests before
    uses = max(json.loads(ledger.read_text()).values(), default=0) if ledger.exists() else 0
    asked = ("exits", run, "--out", out, "--alpha", 0.2, *QUICKLY, "--plot", plot)
    with moved_away(run, "train", "val_calib", "val_test"):
        status, said, err = command(*asked)
    assert status == 0, err
    assert f"run: {out}" in said and "val_calib, which was not read" in said
    assert plot.read_bytes().startswith(b"\x89PNG")
    record, config = json.loads((out / "exits.json").read_text()), read_config(out)
    assert list(config.exits) == record["chosen"]["exits"]
    assert record["considered"] == 3 and record["images"] == len(trained.select)
    good = [p for p in record["placements"] if p["chance"] >= 0.95]
    assert record["chosen"] == min(good, key=lambda p: p["ms"])
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []

    bundle = tmp_path / "x.cascade"
    promise = ("--alpha", 0.2, "--coverage", 0.5, "--target", ONNX, "--threads", 1)
    status, said, err = command("bundle", out, "--out", bundle, *promise)
    assert status == 0, err
    manifest = Bundle.open(bundle).manifest
    assert manifest.model.exits == config.exits
    certificate = manifest.certificates[ONNX]
    assert (certificate.status, certificate.calibration_uses) == ("CERTIFIED", uses + 1)
    assert len(Cascade.open(bundle).stages.engines) == len(config.exits)


def test_promise_that_no_choice_keeps_is_said_and_writes_nothing(
    run: Path, command: Command, tmp_path: Path
) -> None:
    before = sorted(tmp_path.rglob("*"))
    asked = ("exits", run, "--out", tmp_path / "x", "--alpha", 0.001, *QUICKLY)
    status, said, _ = command(*asked, "--json")
    assert status == INFEASIBLE_STATUS
    record = json.loads(said)
    assert record["chosen"] is None and all(p["chance"] < 0.95 for p in record["placements"])
    assert sorted(tmp_path.rglob("*")) == before


def test_run_of_one_exit_leaves_no_choice(
    trained: Trained, command: Command, tmp_path: Path
) -> None:
    keep_exits(trained.run, [2], tmp_path / "one")
    status, _, err = command("exits", tmp_path / "one", "--out", tmp_path / "x")
    assert status == 1
    assert "has one exit, after block 2, so there is nothing to choose" in err
    assert "cascade-train fit --exits 1,2\n" in err


def test_what_cannot_be_done_is_refused_before_any_work(
    trained: Trained, command: Command, tmp_path: Path
) -> None:
    shutil.copytree(trained.run, tmp_path / "run")
    keep_exits(tmp_path / "run", [1], tmp_path / "small")
    join(tmp_path / "small", tmp_path / "run", tmp_path / "pair")
    for arguments, words in (
        ((tmp_path / "pair", "--out", tmp_path / "x"), "only joins the runs"),
        ((tmp_path / "run", "--out", tmp_path / "small"), "exists; choose another --out"),
        ((tmp_path / "run", "--out", tmp_path / "x", "--plot", "x.pdf"), "a .png"),
        ((tmp_path, "--out", tmp_path / "x"), "is no run folder"),
    ):
        status, _, err = command("exits", *arguments)
        assert status == 1 and words in err


def test_stages_are_timed_at_the_sizes_that_exits_leave(made: Made, trained: Trained) -> None:
    cascade = Cascade.open(made.path, target=ONNX, threads=1)
    rule = ExitRule(score="softmax", platt_a=1.0, platt_b=0.0, temperature=1.0, tau_logit=None)
    never = Decision(policy="certified", exits=(rule, rule), set_logit=0.0)
    both = (cascade.stages, never)
    times = measure_times(both, both, trained.select.pixels[:3], 9)  # fewer images than a batch
    assert times.stages.shape == (2, 10) and times.saved.shape == (10,)
    assert not times.stages[:, 0].any() and (times.stages[:, 1:] > 0).all()
    np.testing.assert_allclose(times.stages[:, 9], times.stages[:, 8] + times.stages[:, 1])
