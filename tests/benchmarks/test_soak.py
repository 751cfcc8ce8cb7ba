"""A soak checks every answer, injects faults, survives kill -9, and judges drift by its rows."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cascade_bench.soak_record import Limits, Minute, drifts, read_file
from cascade_bench.soak_traffic import FAULTS, KINDS, Traffic, refused
from cascade_calib.labelled import read_labelled
from cascade_runtime.cascade import Cascade

from ..runtime.conftest import ONNX, Sample
from .conftest import Done
from .test_schemas import check

Bench = Callable[..., Done]
SHORT = ("--hours", 0.0002, "--row-seconds", 0.2, "--threads", 1, "--target", ONNX)


@pytest.fixture
def traffic(cascade: Cascade, labelled: Path) -> Traffic:
    (labelled / "clear" / "broken.png").write_bytes(b"no picture")
    return Traffic(cascade, read_labelled(labelled))


def test_reference_has_every_readable_image_in_every_kind(traffic: Traffic) -> None:
    assert len(traffic) == 40 and traffic.left_out == 1
    assert set(traffic.reference) == set(KINDS)
    assert traffic.reference["file"] == traffic.reference["bytes"] == traffic.reference["array"]


@pytest.mark.parametrize("fault", list(FAULTS))
def test_every_fault_is_refused_and_takes_nothing_with_it(
    cascade: Cascade, labelled: Path, fault: str
) -> None:
    good = sorted(labelled.glob("*/*.png"))[0]
    results = cascade.classify([good, FAULTS[fault](good.read_bytes()), good])
    assert refused(results[1]) and not refused(results[0])
    assert results[0] == results[2]


def test_requests_mix_sizes_kinds_and_faults_and_are_the_same_again(traffic: Traffic) -> None:
    def some() -> list[tuple[str, ...]]:
        rng = np.random.default_rng(0)
        return [traffic.request(rng, 0.1).names for _ in range(100)]

    names = some()
    assert names == some() and {len(x) for x in names} >= {1, 8, 32}
    flat = [name for each in names for name in each]
    assert all(any(name.endswith(f"as {kind}") for name in flat) for kind in KINDS)
    assert all(any(name.endswith(fault) for name in flat) for fault in FAULTS)


def test_another_answer_is_wrong_and_so_is_an_answer_to_a_damaged_image(
    cascade: Cascade, traffic: Traffic
) -> None:
    request = traffic.request(np.random.default_rng(3), corrupt=0.5)
    results = cascade.classify(list(request.images))
    assert request.wrong(results) == []
    shifted = [replace(result, stage=1 - max(result.stage, 0)) for result in results]
    assert len(request.wrong(shifted)) == len(results)
    assert request.wrong(results[1:]) != []


def test_soak_writes_a_row_at_a_time_and_goes_on(
    bench: Bench, template: Sample, labelled: Path, tmp_path: Path
) -> None:
    state, plot, page = (tmp_path / name for name in ("s.jsonl", "s.png", "s.html"))
    words = ["soak", template.path, "--data", labelled, "--state", state, *SHORT]
    done = bench(*words, "--json", quick=False)
    assert done.status == 0, done.err
    found = done.record
    check("soak", found)
    assert found["wrong"] == found["failed"] == 0 <= found["damaged"] < found["images"]
    assert found["segments"] == 1 and found["rows"] >= 1 and found["passed"]
    lines = [json.loads(line) for line in state.read_text().splitlines()]
    check("soak-start", lines[0])
    for line in lines[1:]:
        check("soak-minute", line)
    again = bench(*words, "--json", quick=False).record
    assert again["rows"] == found["rows"] and again["segments"] == 1  # nothing was left to do
    words[words.index("--hours") + 1] = 0.0004
    longer = bench(*words, "--plot", plot, "--report", page, quick=False)
    assert longer.status == 0 and "in 2 processes" in longer.out
    assert "too short to judge" in longer.out
    with Image.open(plot) as picture:
        assert picture.format == "PNG"
    assert "Drift" in page.read_text()


def test_killed_soak_goes_on_where_it_was(
    bench: Bench, template: Sample, labelled: Path, tmp_path: Path
) -> None:
    state = tmp_path / "s.jsonl"
    words = ["soak", template.path, "--data", labelled, "--state", state, *SHORT]
    words[words.index("--hours") + 1] = 1
    command = [sys.executable, "-m", "cascade_bench.cli", *map(str, words)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while not state.exists() or state.read_bytes().count(b"\n") < 4:
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    _, before = read_file(state)
    with state.open("ab") as file:
        file.write(b'{"format":"cascade-edge.bench-soak","ver')  # what a power cut leaves
    words[words.index("--hours") + 1] = before[-1].hours + 0.0001
    done = bench(*words, "--json", quick=False)
    assert done.status == 0, done.err
    _, after = read_file(state)
    assert after[: len(before)] == before and done.record["rows"] == len(after) > len(before)
    assert {row.segment for row in after} == {1, 2}
    hours = [row.hours for row in after]
    assert hours == sorted(hours) and hours[-1] >= before[-1].hours + 0.0001


def test_native_runtime_is_soaked_too(
    bench: Bench, template: Sample, labelled: Path, tmp_path: Path, native: None
) -> None:
    words = ["soak", template.path, "--data", labelled, "--state", tmp_path / "s.jsonl", *SHORT]
    done = bench(*words, "--runtime", "native", "--json", quick=False)
    assert done.status == 0, done.err
    assert done.record["start"]["runtime"] == "native" and done.record["wrong"] == 0


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[..., Any]], None]]:
    """Replace `classify` once the reference is made."""
    asked = Traffic.__init__
    real = Cascade.classify

    def break_it(with_: Callable[..., Any]) -> None:
        def then_break(*arguments: Any, **named: Any) -> None:
            asked(*arguments, **named)
            monkeypatch.setattr(
                Cascade, "classify", lambda self, *a, **k: with_(real(self, *a, **k))
            )

        monkeypatch.setattr(Traffic, "__init__", then_break)

    yield break_it


def test_wrong_answer_is_status_six_and_is_named(
    bench: Bench, template: Sample, labelled: Path, tmp_path: Path, faulty: Callable[..., None]
) -> None:
    faulty(lambda results: [replace(result, label=1 - result.label) for result in results])
    words = ["soak", template.path, "--data", labelled, "--state", tmp_path / "s.jsonl", *SHORT]
    done = bench(*words, quick=False)
    assert done.status == 6 and "FAIL" in done.out and "wrong answers" in done.out
    assert " as " in done.out


def test_call_that_raises_is_a_finding_and_the_soak_goes_on(
    bench: Bench, template: Sample, labelled: Path, tmp_path: Path, faulty: Callable[..., None]
) -> None:
    def fail(results: object) -> None:
        raise RuntimeError("engine lost its device")

    faulty(fail)
    words = ["soak", template.path, "--data", labelled, "--state", tmp_path / "s.jsonl", *SHORT]
    done = bench(*words, quick=False)
    assert done.status == 6 and "calls failed" in done.out
    assert "RuntimeError: engine lost its device" in done.out


def test_state_of_another_soak_is_refused(
    bench: Bench, template: Sample, labelled: Path, tmp_path: Path
) -> None:
    state = tmp_path / "s.jsonl"
    words = ["soak", template.path, "--data", labelled, "--state", state, *SHORT]
    assert bench(*words, quick=False).status == 0
    kept = state.read_bytes()
    other = bench(*words, "--clients", 3, quick=False)
    assert other.status == 1 and "clients 2, now 3" in other.err and state.read_bytes() == kept
    first, _, rest = kept.decode().partition("\n")
    start = json.loads(first) | {"reference_sha256": "0" * 64}
    state.write_text(json.dumps(start) + "\n" + rest)
    changed = bench(*words, quick=False)
    assert changed.status == 4 and "other answers" in changed.err
    state.write_text('{"format": "something"}\n')
    foreign = bench(*words, quick=False)
    assert foreign.status == 1 and "line 1" in foreign.err and foreign.err.count("\n") == 1


def test_soak_without_a_usable_image_or_hours_is_told(
    bench: Bench, template: Sample, tmp_path: Path
) -> None:
    for name in ("clear", "roadwork"):
        (tmp_path / "bad" / name).mkdir(parents=True)
        (tmp_path / "bad" / name / "x.png").write_bytes(b"no picture")
    words = ["soak", template.path, "--data", tmp_path / "bad", "--state", tmp_path / "s.jsonl"]
    done = bench(*words, *SHORT, quick=False)
    assert done.status == 1 and done.err.startswith("error: ")
    assert bench(*words, "--hours", 0, quick=False).status == 2


def make_row(hours: float, memory: float, p50: float) -> Minute:
    return Minute(
        segment=1,
        hours=hours,
        seconds=60.0,
        requests=10,
        images=50,
        damaged=1,
        wrong=0,
        failed=0,
        examples=(),
        singles=4,
        p50_ms=p50,
        p95_ms=p50,
        p99_ms=p50,
        max_ms=p50,
        memory_mib=memory,
        open_files=7,
        threads=4,
        load=None,
    )


def test_memory_and_latency_that_grow_are_alarms_and_steady_ones_are_not() -> None:
    hours = [k / 60 for k in range(120)]
    steady = [make_row(h, 200 + k % 3, 5 + k % 2 / 10) for k, h in enumerate(hours)]
    assert [x.alarm for x in drifts(steady, Limits())] == [False, False]
    leaking = [make_row(h, 200 + 30 * h, 5) for h in hours]
    assert [x.alarm for x in drifts(leaking, Limits())] == [True, False]
    assert [x.alarm for x in drifts(leaking, Limits(memory_mib_per_hour=40))] == [False, False]
    slowing = [make_row(h, 200, 5 * 1.2**h) for h in hours]
    memory, latency = drifts(slowing, Limits())
    assert latency.alarm and not memory.alarm
    assert latency.per_hour == pytest.approx(100 * np.log(1.2))
