"""Scores leave a bundle as a table and come back as a certificate, also those of other models."""

import json
import math
import shutil
from fractions import Fraction

import numpy as np
import pyarrow
import pytest
from click.testing import CliRunner
from populations import honest
from pyarrow import csv, parquet

from cascade_calib.certify_target import Request
from cascade_calib.cli import cli
from cascade_calib.score_table import read_scores
from cascade_calib.scores import _smallest, as_text, certify_scores, split_table
from cascade_runtime.cascade import Cascade
from cascade_runtime.errors import DataError

REQUEST = Request(Fraction(1, 10), Fraction(1, 10), Fraction(1, 5))


def call(*arguments, status=0):
    done = CliRunner().invoke(cli, [str(a) for a in arguments])
    assert done.exit_code == status, (done.output, done.exception)
    return done.output


def model_scores(n, seed):
    """Columns of a model that is honest about its confidence, as `score, prediction`."""
    seen = honest(n, np.random.default_rng(seed))
    margin = seen.exits[0].logits[:, 1] - seen.exits[0].logits[:, 0]
    confidence = 1 / (1 + np.exp(-np.abs(margin.astype(np.float64))))
    said = (margin > 0).astype(int)
    return {"label": seen.labels, "score": confidence, "prediction": said}


def write(path, columns):
    table = pyarrow.table({k: np.asarray(v) for k, v in columns.items()})
    csv.write_csv(table, path) if path.suffix == ".csv" else parquet.write_table(table, path)
    return path


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_export_holds_what_every_exit_said_to_the_bit(casts, certified_casts, tmp_path, name):
    out = tmp_path / name
    options = ("--data", casts / "test", "--out", out, "--threads", 1)
    said = call("scores", "export", certified_casts, *options)
    assert "500 images read, none skipped" in said
    cascade = Cascade.open(certified_casts, threads=1, warm_up=False)
    from cascade_calib.labelled import load_pixels, read_labelled

    loaded = load_pixels(read_labelled(casts / "test"), cascade.preprocess)
    exits = cascade.stages.forward_all(loaded.pixels)
    table = read_scores(out)
    assert table.names == loaded.names
    assert np.array_equal(table.labels, loaded.labels)
    for x, out_ in zip(table.exits, exits, strict=True):
        assert np.array_equal(x.logit0.astype(np.float32), out_.logits[:, 0])
        assert np.array_equal(x.logit1.astype(np.float32), out_.logits[:, 1])
        assert np.array_equal(x.gate.astype(np.float32), out_.gate)
    verdict = cascade.stages.forward(loaded.pixels, cascade.decision)
    raw = (csv.read_csv if name.endswith("csv") else parquet.read_table)(out).to_pydict()
    assert raw["decision"] == verdict.label.tolist()
    assert raw["stage"] == verdict.stage.tolist()
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]


def test_exported_cascade_is_certified_from_its_tables_as_from_its_engines(
    casts, certified_casts, tmp_path
):
    for part in ("select", "calib"):
        options = ("--data", casts / part, "--out", tmp_path / f"{part}.parquet", "--threads", 1)
        call("scores", "export", certified_casts, *options)
    found = json.loads(
        call(
            *("scores", "certify", tmp_path / "calib.parquet"),
            *("--select", tmp_path / "select.parquet", "--alpha", ".05", "--delta", ".1"),
            *("--coverage", ".5", "--cost", 200, "--cost", 200, "--json"),
        )
    )["certificate"]
    own = Cascade.open(certified_casts, threads=1, warm_up=False).certificate
    for field in ("status", "accepted", "errors", "n", "risk_upper", "path_tested"):
        assert found[field] == getattr(own, field)


def test_printed_threshold_is_the_rule_that_was_proven(tmp_path):
    path = write(tmp_path / "m.csv", model_scores(3000, 0))
    table = read_scores(path)
    select, calib = split_table(table, 0.3, seed=0)
    result = certify_scores(select, calib, REQUEST)
    [threshold] = result.thresholds
    assert threshold.column == "score"
    columns = {k: np.array(v) for k, v in csv.read_csv(path).to_pydict().items()}
    order = np.random.default_rng(0).permutation(3000)
    rest = np.isin(np.arange(3000), order[900:])
    acted = rest & (columns["score"] >= threshold.at)
    wrong = acted & (columns["prediction"] != columns["label"])
    assert (acted.sum(), wrong.sum()) == (result.certificate.accepted, result.certificate.errors)
    assert 0 < result.certificate.accepted < 2100
    below = columns["score"] >= math.nextafter(threshold.at, -math.inf)
    assert (rest & below).sum() >= acted.sum()
    assert f"act where score >= {threshold.at!r}" in as_text(result)


@pytest.mark.parametrize("x", [0.75, -0.75, 0.0, 5e-324, -5e-324, 1e300, -1e300, 1 / 3])
def test_threshold_is_found_to_the_last_bit(x):
    assert _smallest(lambda value: value >= x, -math.inf) == x


def test_true_risk_of_the_printed_rule_keeps_the_promise_as_often_as_promised():
    """Confidence c is right with probability c, so the true risk of c >= t is (1 - t) / 2."""
    from pathlib import Path

    from cascade_calib.score_table import ExitColumns, ScoreTable

    broken = certified = 0
    for trial in range(150):
        both = []
        for part in (0, 1):
            c = model_scores(600, 1000 * part + trial)
            margin = np.where(c["prediction"] == 1, 0.5, -0.5)
            exit_ = ExitColumns(-margin, margin, c["score"])
            both.append(ScoreTable(Path(str(part)), "score", (exit_,), c["label"], None, None))
        result = certify_scores(*both, REQUEST)
        if result.certificate.status == "CERTIFIED":
            certified += 1
            broken += (1 - max(result.thresholds[0].at, 0.5)) / 2 > 0.1
    assert certified > 75
    assert broken / 150 <= 0.1 + 3 * np.sqrt(0.1 * 0.9 / 150)


@pytest.mark.parametrize("gate", [True, False])
def test_logits_are_enough_and_a_gate_is_used_where_it_is_better(tmp_path, gate):
    rng = np.random.default_rng(1)
    n = 2000
    label = rng.integers(0, 2, n)
    trust = rng.uniform(0, 1, n)
    right = rng.random(n) < 0.5 + trust / 2
    said = np.where(right, label, 1 - label)
    size = rng.uniform(1, 2, n)  # tells nothing
    columns = {"label": label, "logit0": 0 * size, "logit1": (2 * said - 1) * size}
    columns |= {"gate": trust} if gate else {}
    path = write(tmp_path / "m.parquet", columns)
    done = call(
        *("scores", "certify", path, "--alpha", ".2", "--coverage", ".3", "--json"),
        status=0 if gate else 5,
    )
    [threshold] = json.loads(done)["thresholds"]
    assert threshold["column"] == ("gate" if gate else "|logit1 - logit0|")


def test_infeasible_is_status_3_with_advice(tmp_path):
    path = write(tmp_path / "m.csv", model_scores(300, 2))
    said = call("scores", "certify", path, "--alpha", "0.001", status=5)
    assert said.startswith("INFEASIBLE at alpha 0.1 %.")
    assert any(character.isdigit() for character in said)


def test_a_score_that_tells_nothing_is_acted_on_everywhere_or_nowhere(tmp_path):
    columns = model_scores(2000, 3) | {"score": np.ones(2000)}
    path = write(tmp_path / "m.csv", columns)
    said = call("scores", "certify", path, "--alpha", "0.3", "--json")
    assert json.loads(said)["thresholds"] == [{"column": "score", "at": "-inf"}]
    said = call("scores", "certify", path, "--alpha", "0.1", "--json", status=5)
    assert json.loads(said)["thresholds"] == [{"column": "score", "at": "inf"}]


def test_groups_stay_together_and_names_apart(tmp_path):
    columns = model_scores(600, 4)
    columns["group"] = [f"video {i // 20}" for i in range(600)]
    table = read_scores(write(tmp_path / "m.csv", columns))
    select, calib = split_table(table, 0.3, seed=1)
    assert (len(select), len(calib)) == (180, 420)
    assert not set(select.groups) & set(calib.groups)
    named = model_scores(600, 4) | {"name": [f"{i}.png" for i in range(600)]}
    same = read_scores(write(tmp_path / "n.csv", named))
    with pytest.raises(DataError, match="600 images"):
        certify_scores(same, same, REQUEST)


GOOD = {"label": [0, 1], "logit0": [1.0, -1.0], "logit1": [-1.0, 1.0]}


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"label": [0, 1]}, "no column logit0 or score"),
        ({k: v for k, v in GOOD.items() if k != "label"}, "no column label"),
        ({k: v for k, v in GOOD.items() if k != "logit1"}, "no column logit1"),
        ({"label": [0, 1], "score": [0.5, 0.6]}, "no column prediction"),
        (GOOD | {"logit0": [1.0, float("nan")]}, "row 2 below the header has logit0 nan"),
        (GOOD | {"logit1": [float("inf"), 0.0]}, "row 1 below the header has logit1 inf"),
        (GOOD | {"logit1": [1e300, 0.0]}, "row 1 below the header has logit1 1e"),
        (GOOD | {"logit1": ["high", "low"]}, "row 1 below the header has logit1 high"),
        (GOOD | {"label": [0, 2]}, "row 2 below the header has label 2, expected 0 or 1"),
        (GOOD | {"label": ["clear", "roadwork"]}, "row 1 below the header has label clear"),
        ({k: np.array(v[:0]) for k, v in GOOD.items()}, "has no row"),
        (GOOD | {"Label": [0, 1]}, "the column label is there twice"),
        (GOOD | {"group": ["a", ""]}, "row 2 below the header has no group"),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_table_that_does_not_fit_is_one_clear_error(tmp_path, columns, words, suffix):
    with pytest.raises(DataError, match=words):
        read_scores(write(tmp_path / f"m{suffix}", columns))


@pytest.mark.parametrize("content", [b"", b"\x00\x01\x02"])
@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".txt"])
def test_file_that_is_no_table_is_one_clear_error(tmp_path, content, suffix):
    path = tmp_path / f"m{suffix}"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"m{suffix}"):
        read_scores(path)
    with pytest.raises(DataError, match=r"not a readable table|expected a \.csv"):
        read_scores(tmp_path / f"nowhere{suffix}")


def test_out_is_refused_before_any_image_is_run(certified_casts, tmp_path):
    for out, words in (("x.txt", ".parquet or .csv"), ("nowhere/x.csv", "does not exist")):
        options = ["--data", str(tmp_path / "none"), "--out", str(tmp_path / out)]
        done = CliRunner().invoke(cli, ["scores", "export", str(certified_casts), *options])
        assert words in str(done.exception)


def test_a_failed_export_leaves_the_old_table(casts, certified_casts, tmp_path, monkeypatch):
    out = tmp_path / "t.csv"
    out.write_text("old")

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(csv, "write_csv", full)
    data = shutil.copytree(casts / "test", tmp_path / "data")
    arguments = ["scores", "export", str(certified_casts), "--data", str(data), "--out", str(out)]
    assert CliRunner().invoke(cli, arguments).exit_code == 1
    assert out.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "t.csv"]
