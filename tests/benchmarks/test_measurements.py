"""What is timed is what the product runs, on the images that were given."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cascade_bench import footprint, fresh_process, own_share, stage_shares, throughput
from cascade_bench.fresh import Order, used
from cascade_bench.ratios import ratio_of
from cascade_bench.throughput import BATCHES, Rate, best
from cascade_bench.workload import open_workload
from cascade_calib.labelled import read_labelled
from cascade_runtime.cascade import Cascade
from cascade_runtime.errors import TargetError
from cascade_runtime.preprocess import load_image

from ..runtime.conftest import ONNX, Sample

EVEN = ratio_of([1.0], [1.0], 1)


def test_workload_files_and_pixels_are_the_same_images(cascade: Cascade, labelled: Path) -> None:
    with open_workload(cascade, read_labelled(labelled)) as work:
        assert work.distinct == len(work) == 40
        for file, pixels in zip(work.files, work.pixels, strict=True):
            assert np.array_equal(load_image(file, cascade.preprocess), pixels)


def test_workload_mixes_the_classes_and_is_the_same_every_time(
    cascade: Cascade, labelled: Path
) -> None:
    images = read_labelled(labelled)
    with open_workload(cascade, images) as work, open_workload(cascade, images) as again:
        assert work.files == again.files
        assert work.files != tuple(images.file(i) for i in range(len(images)))


def test_workload_takes_no_more_images_than_it_needs(
    cascade: Cascade, labelled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cascade_bench.workload.MOST_IMAGES", 7)
    with open_workload(cascade, read_labelled(labelled)) as work:
        assert len(work) == 7
        assert work.description.startswith("7 of the 40 images")


def test_workload_leaves_out_images_that_cannot_be_read(cascade: Cascade, labelled: Path) -> None:
    (labelled / "clear" / "bad.png").write_bytes(b"no picture")
    with open_workload(cascade, read_labelled(labelled)) as work:
        assert len(work) == len(work.pixels) == 40
        assert not any(file.name == "bad.png" for file in work.files)


def test_without_data_golden_images_become_files_that_are_gone_afterwards(
    cascade: Cascade,
) -> None:
    with open_workload(cascade, None) as work:
        assert work.distinct == 6 and len(work) >= 64
        assert np.array_equal(load_image(work.files[7], cascade.preprocess), work.pixels[7])
        assert cascade.classify([work.files[0]])[0].stage >= 0
    assert not any(file.exists() for file in work.files)


def test_batches_go_round(cascade: Cascade, labelled: Path) -> None:
    with open_workload(cascade, read_labelled(labelled)) as work:
        assert np.array_equal(work.batch(1, 32)[:8], work.pixels[32:])
        assert np.array_equal(work.batch(1, 32)[8:], work.pixels[:24])
        assert np.array_equal(work.batch(0, 100)[80:], work.pixels[:20])


def test_sweep_measures_every_batch_size(cascade: Cascade) -> None:
    with open_workload(cascade, None) as work:
        rates = throughput.sweep(cascade, work, seconds=0)
    assert [rate.batch for rate in rates] == list(BATCHES)
    assert all(rate.cascade > 0 and rate.always_full > 0 for rate in rates)


def test_sweep_stops_before_a_batch_that_takes_longer_than_its_share(
    cascade: Cascade, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 1 image a second on either side, a pair at batch 4 takes 8 s; its share is 5 s."""

    def slow(*arguments: object) -> Rate:
        return Rate(int(arguments[2]), 3, 1.0, 1.0, EVEN)

    monkeypatch.setattr(throughput, "at_batch", slow)
    with open_workload(cascade, None) as work:
        rates = throughput.sweep(cascade, work, seconds=40)
    assert [rate.batch for rate in rates] == [1, 2]


def test_best_batch_is_where_the_cascade_is_quickest() -> None:
    rates = [Rate(1, 3, 10, 9, EVEN), Rate(8, 3, 30, 5, EVEN), Rate(32, 3, 20, 20, EVEN)]
    assert best(rates).batch == 8


def test_file_rate_counts_images_and_not_batches(cascade: Cascade) -> None:
    with open_workload(cascade, None) as work:
        found = throughput.from_files(cascade, work, 32, rate=1000.0, seconds=0.001)
    assert (found.batch, found.images) == (32, 32) and found.images_per_s > 0


def test_passes_walk_through_all_images(
    cascade: Cascade, labelled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Path, ...]] = []
    monkeypatch.setattr(cascade, "classify", lambda files, _: seen.append(tuple(files)))
    with open_workload(cascade, read_labelled(labelled)) as work:
        throughput.from_files(cascade, work, 16, rate=0, seconds=0)
        assert set().union(*seen) == set(work.files) and seen[1] != seen[2]


def test_stage_shares_count_what_forward_does(cascade: Cascade, labelled: Path) -> None:
    with open_workload(cascade, read_labelled(labelled)) as work:
        shares = stage_shares.measure(cascade, work, batch=16, seconds=0)
        verdict = cascade.stages.forward(work.pixels, cascade.decision)
    assert [s.final for s in shares] == [int((verdict.stage == k).sum()) for k in (0, 1)]
    assert sum(s.acted for s in shares) == int(verdict.acted.sum())
    assert shares[0].images == 40 and shares[1].images == 40 - shares[0].final
    assert 0 < shares[1].image_share < 1
    assert sum(s.time_share for s in shares) == pytest.approx(1)


@pytest.mark.parametrize("threads", [1, 2])
def test_own_share_is_what_engines_and_decoding_leave_of_a_call(
    template: Sample, threads: int
) -> None:
    cascade = Cascade.open(template.path, ONNX, threads=threads)
    with open_workload(cascade, None) as work:
        found = own_share.measure(cascade, work, seconds=0)
    assert [x.batch for x in found] == [8, 32]
    for x in found:
        assert x.calls == own_share.LEAST_CALLS and x.engine_ms > 0 < x.decode_ms
        assert x.engine_ms + x.decode_ms < x.ms_per_image
        assert 0 < x.low <= x.own <= x.high < 1


def test_own_share_is_the_median_over_calls() -> None:
    parts = np.array([[0.5, 0.4, 0.0, 1.0], [0.5, 0.3, 0.25, 1.25], [1.0, 0.4, 0.0, 2.0]])
    found = own_share.summarise(8, 10, parts)
    assert found.own == pytest.approx(0.2) and found.low == pytest.approx(0.1)
    assert (found.ms_per_image, found.engine_ms, found.decode_ms) == (100, 50, 40)
    assert found.idle == 0


def test_fresh_process_gives_every_figure(template: Sample, cascade: Cascade) -> None:
    with open_workload(cascade, None) as work:
        found = footprint.measure(Order(str(template.path), ONNX, 1, used(work.files)), processes=1)
    assert found.images == 32
    assert 10 < found.peak_memory_mib < 2000
    assert 0 < found.import_s < found.first_decision_s
    assert found.open_s < found.first_decision_s


def test_fresh_process_that_fails_says_why(template: Sample, tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"status 1 .*no such bundle"):
        footprint.measure(Order(str(tmp_path / "gone.cascade"), ONNX, 1, ("x.png",)), 1)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_peak_memory_is_that_of_the_process_and_not_of_its_parent() -> None:
    held = np.ones(40_000_000)  # 305 MiB in the parent
    script = "from cascade_bench.fresh_process import peak_memory_mib; print(peak_memory_mib())"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 100
    assert fresh_process.peak_memory_mib() > held.nbytes / 2**20


def test_fresh_process_imports_nothing_but_the_runtime(template: Sample, cascade: Cascade) -> None:
    script = """
import sys
from cascade_bench import fresh_process
fresh_process.main()
print(*sys.modules)
"""
    with open_workload(cascade, None) as work:
        order = {"bundle": str(template.path), "target": ONNX, "threads": 1}
        order |= {"files": [str(work.files[0])]}
        done = subprocess.run(
            [sys.executable, "-c", script],
            input=json.dumps(order),
            capture_output=True,
            text=True,
            check=True,
            env=os.environ,
        )
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "cascade_runtime.cascade" in loaded
    assert loaded.isdisjoint({"torch", "scipy", "matplotlib", "rich", "cascade_calib", "openvino"})
