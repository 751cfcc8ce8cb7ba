"""A soak checks every answer, injects faults, survives kill -9, and judges drift by its rows."""

from __future__ import annotations

import io
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
from cascade_runtime.cascade import Cascade, Result

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
    assert (len(traffic), traffic.unreadable, traffic.unsteady) == (40, 1, 0)
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


def test_half_a_file_that_is_a_whole_picture_is_no_fault(cascade: Cascade, labelled: Path) -> None:
    for file in labelled.glob("*/*.png"):
        photo = io.BytesIO()
        Image.open(file).save(photo, "JPEG")
        film = bytes(2 * photo.tell())
        file.with_suffix(".jpg").write_bytes(photo.getvalue() + film)
        file.unlink()
    traffic = Traffic(cascade, read_labelled(labelled))
    rng = np.random.default_rng(0)
    damaged = 0
    for request in (traffic.request(rng, corrupt=0.5) for _ in range(40)):
        assert request.wrong(cascade.classify(list(request.images))) == []
        assert not any(name.endswith("cut in half") for name in request.names)
        damaged += request.expected.count(None)
    assert damaged


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
    assert [line["event"] for line in (lines[1], lines[-1])] == ["began", "done"]
    for line in lines[1:]:
        check("soak-process" if "event" in line else "soak-minute", line)
    again = bench(*words, "--json", quick=False).record
    assert again["rows"] == found["rows"] and again["segments"] == 1  # nothing was left to do
    words[words.index("--hours") + 1] = 0.0004
    longer = bench(*words, "--plot", plot, "--report", page, quick=False)
    assert longer.status == 0 and "in 2 processes" in longer.out
    assert "processes ended without a word" not in longer.out.splitlines()[-1]
    assert "too short to judge" in longer.out
    with Image.open(plot) as picture:
        assert picture.format == "PNG"
    assert "Drift" in page.read_text()


@pytest.mark.parametrize(
    ("kill", "ends"), [(signal.SIGKILL, ["lost", "done"]), (signal.SIGTERM, ["stopped", "done"])]
)
def test_killed_soak_goes_on_where_it_was_and_is_counted(
    bench: Bench,
    template: Sample,
    labelled: Path,
    tmp_path: Path,
    kill: signal.Signals,
    ends: list[str],
) -> None:
    state = tmp_path / "s.jsonl"
    words = ["soak", template.path, "--data", labelled, "--state", state, *SHORT]
    words[words.index("--hours") + 1] = 1
    command = [sys.executable, "-m", "cascade_bench.cli", *map(str, words)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while not state.exists() or state.read_bytes().count(b"\n") < 5:
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    os.kill(process.pid, kill)
    process.wait()
    before = read_file(state).rows
    with state.open("ab") as file:
        file.write(b'{"format":"cascade-edge.bench-soak","ver')  # what a power cut leaves
    words[words.index("--hours") + 1] = before[-1].hours + 0.0001
    done = bench(*words, "--json", quick=False)
    assert done.status == 0, done.err
    assert done.record["ends"] == ends and done.record["lost"] == ends.count("lost")
    after = read_file(state).rows
    assert after[: len(before)] == before and done.record["rows"] == len(after) > len(before)
    assert {row.segment for row in after} == {1, 2}
    hours = [row.hours for row in after]
    assert hours == sorted(hours) and hours[-1] >= before[-1].hours + 0.0001


def test_process_that_died_before_its_first_row_is_told(
    bench: Bench, template: Sample, labelled: Path, tmp_path: Path
) -> None:
    state = tmp_path / "s.jsonl"
    words = ["soak", template.path, "--data", labelled, "--state", state, *SHORT]
    assert bench(*words, quick=False).status == 0
    state.write_bytes(b"".join(state.read_bytes().splitlines(keepends=True)[:2]))
    done = bench(*words, quick=False)
    assert done.status == 0  # whose fault it was is the user's to say; that it was is said
    assert "1 of 2 processes ended without a word" in " ".join(done.out.split())


HANGING = """
import sys, threading
from concurrent.futures import ThreadPoolExecutor
from cascade_bench import cli, soak_traffic
from cascade_runtime.cascade import Cascade

made = soak_traffic.Traffic.__init__
def then_hang(*arguments, **named):
    made(*arguments, **named)
    pool = ThreadPoolExecutor()  # Python waits for its threads at an orderly exit
    Cascade.classify = lambda *a, **k: pool.submit(threading.Event().wait).result()
soak_traffic.Traffic.__init__ = then_hang
cli.main()
"""


def test_call_that_hangs_is_named_and_ends_with_status_six(
    bench: Bench, template: Sample, labelled: Path, tmp_path: Path
) -> None:
    state = tmp_path / "s.jsonl"
    words = ["soak", template.path, "--data", labelled, "--state", state, *SHORT]
    command = [sys.executable, "-c", HANGING, *map(str, words), "--max-wait", "0.2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 6, done.stderr
    assert "FAIL: 2 calls failed" in done.stdout
    assert "no answer within 0.2 s: " in done.stdout and ".png" in done.stdout
    again = bench(*words, "--json", quick=False)  # no other process undoes it
    assert again.status == 6 and again.record["ends"] == ["hung", "done"]


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
    assert "delete" not in changed.err  # it is the evidence
    next(labelled.glob("*/*.png")).unlink()
    less = bench(*words, quick=False)
    assert less.status == 1 and "data_sha256" in less.err
    state.write_text('{"format": "something"}\n')
    foreign = bench(*words, quick=False)
    assert foreign.status == 1 and "line 1" in foreign.err and foreign.err.count("\n") == 1


def test_image_answered_in_several_ways_is_told_and_in_a_later_process_status_four(
    bench: Bench,
    template: Sample,
    labelled: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = Cascade.classify

    def unsteady(self: Cascade, images: list[Any], batch_size: int = 32) -> list[Result]:
        found = real(self, images, batch_size)
        if len(images) == 40 and batch_size == 8:
            found[0] = replace(found[0], label=1 - found[0].label)
        return found

    state = tmp_path / "s.jsonl"
    words = ["soak", template.path, "--data", labelled, *SHORT, "--state"]
    assert bench(*words, state, quick=False).status == 0
    kept = state.read_bytes()
    monkeypatch.setattr(Cascade, "classify", unsteady)
    later = bench(*words, state, quick=False)
    assert later.status == 4 and "images 40, now 39" in later.err and state.read_bytes() == kept
    assert "delete" not in later.err
    alone = bench(*words, tmp_path / "other.jsonl", quick=False)
    assert "1 of 40 images left out: answered in several ways" in " ".join(alone.out.split())


def test_name_that_is_not_utf8_is_soaked_too(
    bench: Bench, template: Sample, labelled: Path, tmp_path: Path
) -> None:
    try:
        Path(os.fsdecode(os.fsencode(labelled / "clear") + b"/\xff.png")).write_bytes(
            next(labelled.glob("*/*.png")).read_bytes()
        )
    except OSError:
        pytest.skip("this file system allows only UTF-8 names")
    words = ["soak", template.path, "--data", labelled, "--state", tmp_path / "s.jsonl", *SHORT]
    done = bench(*words, "--json", quick=False)
    assert done.status == 0, done.err
    assert done.record["start"]["images"] + done.record["start"]["unreadable"] == 41


@pytest.mark.parametrize("option", ["--hours", "--row-seconds", "--max-wait", "--max-memory"])
@pytest.mark.parametrize("value", ["inf", "nan"])
def test_number_that_is_not_finite_is_refused(
    bench: Bench, template: Sample, labelled: Path, tmp_path: Path, option: str, value: str
) -> None:
    words = ["soak", template.path, "--data", labelled, "--state", tmp_path / "s.jsonl", *SHORT]
    done = bench(*words, option, value, quick=False)
    assert done.status == 2 and option in done.err


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
