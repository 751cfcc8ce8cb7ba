"""`cascade-bench`: one JSON object or tables, the documented exit statuses, one line an error."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from PIL import Image

from cascade_bench import cli, record
from cascade_bench.workload import bundle_sha256
from cascade_calib.splits_file import Entry, Splits, content_hash, write_splits
from cascade_runtime import manifest, native_abi

from ..runtime.conftest import ONNX, OPENVINO, Sample, gate_rule, make_certificate, rewrite
from .conftest import LABELLED, Done

Bench = Callable[..., Done]
EASY = ("--max-ms", 9999, "--min-rate", 0, "--min-coverage", 0, "--max-error", 1)


def test_json_is_one_object_with_the_documented_fields(bench: Bench, template: Sample) -> None:
    done = bench(template.path, "--json", *EASY)
    assert done.status == 0
    found, text = done.record, str(record.__doc__)
    assert (found["format"], found["version"]) == ("cascade-edge.bench", 1)
    assert set(found) == {
        *(
            "format",
            "version",
            "made_by",
            "bundle",
            "bundle_sha256",
            "runtime",
            "target",
            "why",
            "machine",
        ),
        *("noisy", "workload", "latency", "throughput", "file_throughput", "comparison"),
        *("energy", "load", "thread_sweep"),
        *("stages", "footprint", "own", "native", "quality", "certificate", "checks", "passed"),
    }
    assert all(f"\n    {name}" in text or f", {name}" in text for name in found)
    assert found["runtime"] == "python" and found["native"] is None
    assert found["bundle_sha256"] == bundle_sha256(template.path)
    assert [part["batch"] for part in found["own"]] == [8, 32]
    assert found["target"] == ONNX and found["machine"]["threads"] == 1
    assert set(found["latency"]) == {"decision", "engine", "warm_up"}
    assert found["latency"]["warm_up"] == 3 and found["latency"]["engine"]["p999_ms"] is None
    assert found["load"] is None and found["thread_sweep"] is None
    assert found["latency"]["engine"]["repeats"] == 20
    assert {"ratio", "ratio_low", "ratio_high", "spread"} < set(found["comparison"])
    assert [check["name"] for check in found["checks"]] == [
        *("latency", "throughput", "coverage", "exit error")
    ]
    assert found["passed"] is True and all(check["passed"] for check in found["checks"])
    assert found["quality"]["evaluation"] is None
    assert found["machine"]["versions"]["onnxruntime"]
    assert done.err == "" or "measuring" in done.err


def test_native_runtime_is_measured_beside_its_neighbours(
    bench: Bench, template: Sample, native: None
) -> None:
    done = bench(template.path, "--runtime", "native", "--json", *EASY)
    assert done.status == 0, done.err
    assert done.record["runtime"] == "native" and done.record["own"] is None
    found = done.record["native"]
    assert found["overhead"]["pairs"] >= 8 and found["speedup"]["pairs"] >= 8
    assert 0 < found["overhead"]["low"] <= found["overhead"]["ratio"] <= found["overhead"]["high"]
    assert found["engine_memory_mib"] > 5 > 0 < found["open_s"] < found["first_decision_s"]
    out = bench(template.path, "--runtime", "native", *EASY).out
    assert "libcascade" in out and "over the bare engine, batch 1" in out


def test_native_runtime_without_its_command_says_what_builds_it(
    bench: Bench, template: Sample, native: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = shutil.copy(native_abi.library_path(), tmp_path)
    monkeypatch.setattr("cascade_bench.native.library_path", lambda: str(alone))
    monkeypatch.setattr("cascade_bench.latency.measure", lambda *_: pytest.fail("was measured"))
    done = bench(template.path, "--runtime", "native", *EASY)
    assert done.status == 4 and "make native" in done.err


def test_tables_end_with_the_targets_and_where_quality_comes_from(
    bench: Bench, template: Sample
) -> None:
    out = bench("run", template.path, *EASY).out
    titles = ["Latency", "Throughput", "run to the end", "Where images stop", "Where the time goes"]
    titles.append("A fresh process")
    places = [out.index(title) for title in [*titles, "Targets"]]
    assert places == sorted(places)
    assert out.count("PASS") == 4 and "FAIL" not in out
    assert out.count("certificate, val_calib") == 2
    assert "CERTIFIED at alpha = 1 %" in out
    assert "all 4 targets met" in out
    assert "6 golden images" in out


def test_the_verb_may_be_left_out(bench: Bench, template: Sample) -> None:
    option_first = bench("--json", template.path, *EASY)
    assert option_first.record["bundle"] == str(template.path)


def test_missed_target_is_status_four_and_is_named(bench: Bench, template: Sample) -> None:
    done = bench(template.path, *EASY, "--max-ms", 0.000001, "--json")
    assert done.status == 6 and done.record["passed"] is False
    assert [c["name"] for c in done.record["checks"] if not c["passed"]] == ["latency"]


def test_quality_is_measured_on_the_data_given(
    bench: Bench, template: Sample, labelled: Path
) -> None:
    out = bench(template.path, "--data", labelled, *EASY).out
    assert "risk (wrong of the acted on)" in out and "measured on labelled" in out
    assert "95 % interval" in out


def test_splits_file_is_read_at_val_test_unless_told_otherwise(
    bench: Bench, template: Sample, labelled: Path
) -> None:
    splits = write_half_and_half(labelled)
    found = bench(template.path, "--data", splits, "--json").record
    assert found["quality"]["source"] == "measured on val_test"
    assert found["quality"]["evaluation"]["images"] == LABELLED // 2
    assert found["workload"]["images"] == found["workload"]["distinct"] == LABELLED // 2
    other = bench(template.path, "--data", splits, "--split", "val_select", "--json").record
    assert other["quality"]["source"] == "measured on val_select"


def test_infeasible_bundle_is_measured_and_fails_coverage(bench: Bench, sample: Sample) -> None:
    closed = msgspec.structs.replace(sample.decision, exits=(gate_rule(None), gate_rule(None)))
    was = sample.manifest
    certificates = {
        name: msgspec.structs.replace(
            make_certificate(was.preprocess, closed, certificate.engines),
            status="INFEASIBLE",
            accepted=0,
            errors=0,
            coverage=0.0,
            coverage_lower=0.0,
            risk_upper=1.0,
            advice="Label more images.",
        )
        for name, certificate in was.certificates.items()
    }
    decisions = dict.fromkeys(was.decision, closed)
    rewrite(sample.path, manifest_with(was, decisions, certificates))
    done = bench(sample.path, "--max-ms", 9999, "--min-rate", 0)
    assert done.status == 6 and done.out.count("FAIL") == 2
    assert "2 of 4 targets missed: coverage, exit error" in done.out
    assert "INFEASIBLE" in done.out and "Label more images." in done.out


def test_plot_is_a_png(bench: Bench, template: Sample, tmp_path: Path) -> None:
    plot = tmp_path / "bench.png"
    assert bench(template.path, *EASY, "--plot", plot).status == 0
    with Image.open(plot) as picture:
        assert picture.format == "PNG" and picture.width > 1000
    assert list(tmp_path.glob(".bench*")) == []


def test_report_is_one_page_that_needs_nothing_else(
    bench: Bench, template: Sample, tmp_path: Path
) -> None:
    report = tmp_path / "run.html"
    done = bench("run", template.path, *EASY, "--load", "--report", report)
    assert done.status == 0, done.err
    page = report.read_text()
    assert page.startswith("<!DOCTYPE html>") and page.count("data:image/png;base64,") == 2
    assert "default-src 'none'" in page and "http" not in page.replace("http-equiv", "")
    for title in ("Latency", "Throughput", "Open loop", "Closed loop", "cold start", "Targets"):
        assert f"{title}" in page and title in done.out
    assert page.count("<h2>") == page.count("<table>") and "PASS" in page
    assert list(tmp_path.glob(".run*")) == []


def test_report_that_cannot_be_written_is_told_before_anything_is_measured(
    bench: Bench, template: Sample, tmp_path: Path
) -> None:
    done = bench(template.path, "--report", tmp_path / "run.pdf")
    assert done.status == 1 and done.err.startswith("error: --report") and done.out == ""


def test_plot_that_cannot_be_written_is_told_before_anything_is_measured(
    bench: Bench, template: Sample, tmp_path: Path
) -> None:
    (tmp_path / "folder.png").mkdir()
    for name in ("bench.jpg", "nowhere/bench.png", "folder.png"):
        plot = tmp_path / name
        done = bench(template.path, "--plot", plot)
        assert done.status == 1 and done.out == ""
        assert done.err.startswith("error: --plot") and done.err.count("\n") == 1


def test_what_was_measured_is_printed_though_a_picture_cannot_be_written(
    bench: Bench, template: Sample, tmp_path: Path, full_disk: None
) -> None:
    for option, name in (("--plot", "bench.png"), ("--report", "bench.html")):
        done = bench(template.path, "--json", option, tmp_path / name, *EASY)
        assert done.status == 1 and "No space left" in done.err
        assert done.record["passed"] is True


def test_damaged_bundle_is_one_line_and_status_three(bench: Bench, sample: Sample) -> None:
    (sample.path / "targets" / ONNX / "stage1.onnx").write_bytes(b"forged")
    done = bench(sample.path)
    assert (done.status, done.out) == (3, "")
    assert done.err.startswith(f"error: targets/{ONNX}/stage1.onnx: ")
    assert done.err.count("\n") == 1


def test_unusable_data_is_one_line_and_status_one(
    bench: Bench, template: Sample, tmp_path: Path, vehicles: Callable[..., Path]
) -> None:
    missing = bench(template.path, "--data", tmp_path / "gone")
    assert missing.status == 1 and "no such file or folder" in missing.err
    foreign = bench(template.path, "--data", vehicles())
    assert foreign.status == 1 and foreign.err.count("\n") == 1
    assert "'car' and 'truck'" in foreign.err


def test_wrong_usage_is_status_two(bench: Bench, template: Sample) -> None:
    assert bench(template.path, "--split", "val_test").status == 2
    assert bench(template.path, "--threads", 0, quick=False).status == 2
    assert bench("run", quick=False).status == 2


@pytest.mark.parametrize("value", ["nan", "inf"])
@pytest.mark.parametrize(
    "words",
    [
        ("run", "--max-ms"),
        ("run", "--min-rate"),
        ("run", "--max-error"),
        ("targets", "--min-coverage"),
        ("compare", "--run", "r", "--data", "d", "--seconds"),
        ("roofline", "--min-share"),
        ("project", "--min-rate"),
        ("history", "--max-slowdown"),
    ],
)
def test_number_that_is_not_finite_is_refused(
    bench: Bench, template: Sample, words: tuple[str, ...], value: str
) -> None:
    verb, *more = words
    bundle = () if verb == "project" else (template.path,)
    done = bench(verb, *bundle, *more, value, quick=False)
    assert done.status == 2 and more[-1] in done.err


def test_unknown_target_names_those_of_the_bundle(bench: Bench, template: Sample) -> None:
    done = bench(template.path, "--target", "tensorrt/fp16/sm87", quick=False)
    assert done.status == 4 and ONNX in done.err and OPENVINO in done.err


@pytest.mark.parametrize("arguments", [("--help",), *((verb, "--help") for verb in cli.VERBS)])
def test_help_imports_nothing_heavy(arguments: tuple[str, ...]) -> None:
    script = """
import sys
from cascade_bench.cli import main
try:
    main()
except SystemExit as stop:
    assert stop.code == 0
print("loaded:", *sys.modules)
"""
    text, loaded = python(script, *arguments).split("loaded:")
    assert "Usage:" in text
    heavy = {"numpy", "PIL", "scipy", "matplotlib", "rich", "msgspec", "onnxruntime", "torch"}
    assert heavy.isdisjoint(loaded.split())


def test_help_documents_the_exit_status_of_a_missed_target(bench: Bench) -> None:
    assert "6 a target missed" in bench("run", "--help", quick=False).out


def test_a_whole_run_needs_no_torch() -> None:
    loaded = python("import sys, cascade_bench.run, cascade_bench.tables; print(*sys.modules)")
    assert "cascade_bench.comparison" in loaded.split()
    assert {"torch", "transformers", "cascade_train"}.isdisjoint(loaded.split())


def python(script: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def manifest_with(
    was: manifest.Manifest,
    decisions: dict[str, manifest.Decision],
    certificates: dict[str, manifest.Certificate],
) -> manifest.Manifest:
    return msgspec.structs.replace(was, decision=decisions, certificates=certificates)


def write_half_and_half(root: Path) -> Path:
    """A splits.json over class folders: every other image is in val_test."""
    files = sorted(root.glob("*/*.png"))
    classes = ("clear", "roadwork")
    entries = tuple(
        Entry(
            path=file.relative_to(root).as_posix(),
            label=classes.index(file.parent.name),
            split=("val_test", "val_select")[index % 2],
            sha256=f"{index:064x}",
        )
        for index, file in enumerate(files)
    )
    hashes = {
        split: content_hash(
            [e.sha256 for e in entries if e.split == split],
            [e.label for e in entries if e.split == split],
        )
        for split in ("val_test", "val_select")
    }
    splits = Splits(
        source="test",
        root=str(root),
        classes=classes,
        seed=0,
        fractions={},
        content_sha256=hashes,
        entries=entries,
        skipped=(),
    )
    write_splits(splits, root.parent / "splits.json")
    return root.parent / "splits.json"
