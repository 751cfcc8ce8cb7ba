"""`cascade-bench targets`: the gates alone, of a bundle or of an earlier record."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ..runtime.conftest import ONNX, Sample
from .conftest import Done
from .test_schemas import check

Bench = Callable[..., Done]
EASY = ("--max-ms", 9999, "--min-rate", 0, "--min-coverage", 0, "--max-error", 1)
NAMES = ["latency", "throughput", "coverage", "exit error"]


@pytest.fixture
def earlier(bench: Bench, template: Sample, tmp_path: Path) -> Path:
    """What `run --json` printed."""
    path = tmp_path / "record.json"
    path.write_text(bench("run", template.path, *EASY, "--json").out)
    return path


def test_gates_alone_are_measured_and_met(bench: Bench, template: Sample) -> None:
    done = bench("targets", template.path, *EASY)
    assert done.status == 0 and done.out.count("PASS") == 4
    assert "all 4 targets met" in done.out and "Throughput, images/s" not in done.out


def test_json_has_the_fields_of_a_record(bench: Bench, template: Sample) -> None:
    found = bench("targets", template.path, *EASY, "--batch", 8, "--json").record
    check("targets", found)
    assert (found["format"], found["version"]) == ("cascade-edge.targets", 1)
    assert set(found) == {
        *("format", "version", "made_by", "bundle", "runtime", "target", "latency"),
        *("file_throughput", "quality", "checks", "passed"),
    }
    assert [check["name"] for check in found["checks"]] == NAMES
    assert found["target"] == ONNX and found["file_throughput"]["batch"] == 8


@pytest.mark.parametrize(
    ("option", "value", "name"),
    [
        ("--max-ms", 0.000001, "latency"),
        ("--min-rate", 1e12, "throughput"),
        ("--min-coverage", 0.99, "coverage"),
        ("--max-error", 0.0001, "exit error"),
    ],
)
def test_each_missed_target_alone_is_status_six(
    bench: Bench, template: Sample, option: str, value: float, name: str
) -> None:
    done = bench("targets", template.path, *EASY, option, value, "--json")
    assert done.status == 6 and done.record["passed"] is False
    assert [c["name"] for c in done.record["checks"] if not c["passed"]] == [name]


def test_quality_is_that_of_the_data(bench: Bench, template: Sample, labelled: Path) -> None:
    found = bench("targets", template.path, *EASY, "--data", labelled, "--json").record
    assert found["quality"]["source"] == "measured on labelled"


def test_record_is_judged_without_measuring(bench: Bench, earlier: Path) -> None:
    was = json.loads(earlier.read_text())
    done = bench("targets", "--from", earlier, *EASY, "--json", quick=False)
    assert done.status == 0
    values = [check["value"] for check in done.record["checks"]]
    assert values == [check["value"] for check in was["checks"]]
    strict = bench("targets", "--from", earlier, *EASY, "--min-coverage", 0.99, quick=False)
    assert strict.status == 6 and "1 of 4 targets missed: coverage" in strict.out


def test_own_json_can_be_judged_again(bench: Bench, earlier: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.json"
    again.write_text(bench("targets", "--from", earlier, *EASY, "--json", quick=False).out)
    assert bench("targets", "--from", again, *EASY, quick=False).status == 0


def test_undefined_figure_of_a_record_fails(bench: Bench, earlier: Path) -> None:
    was = json.loads(earlier.read_text())
    was["quality"]["error"]["value"] = None
    earlier.write_text(json.dumps(was))
    done = bench("targets", "--from", earlier, *EASY, quick=False)
    assert done.status == 6 and "missed: exit error" in done.out


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "not the JSON"),
        ("[]", "not the JSON"),
        ("{}", "format is None"),
        ('{"format": []}', "format is []"),
        ('{"format": "cascade-edge.bench", "version": 1}', "made_by"),
    ],
)
def test_file_that_is_no_record_is_one_line(
    bench: Bench, tmp_path: Path, text: str, word: str
) -> None:
    path = tmp_path / "odd.json"
    path.write_text(text)
    done = bench("targets", "--from", path, quick=False)
    assert done.status == 1 and word in done.err and done.err.count("\n") == 1


def test_later_version_and_missing_file_are_said(
    bench: Bench, earlier: Path, tmp_path: Path
) -> None:
    was = json.loads(earlier.read_text())
    earlier.write_text(json.dumps(was | {"version": 2}))
    assert "upgrade cascade-edge" in bench("targets", "--from", earlier, quick=False).err
    gone = bench("targets", "--from", tmp_path / "gone.json", quick=False)
    assert gone.status == 1 and "No such file" in gone.err


def test_one_of_bundle_and_record_is_wanted(bench: Bench, template: Sample, earlier: Path) -> None:
    assert bench("targets", quick=False).status == 2
    assert bench("targets", template.path, "--from", earlier, quick=False).status == 2
    assert bench("targets", template.path, "--split", "val_test").status == 2
