"""`cascade-bench roofline`: the arithmetic, ceilings, counts of FLOPs, layers, the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cascade_bench.roofline import gemm, layers, measure, record, tables
from cascade_bench.roofline.gemm import Gemm, MemoryTraffic
from cascade_bench.roofline.layers import LIBRARIES, Layer
from cascade_bench.roofline.roof import Roof
from cascade_bench.timing import in_rounds
from cascade_bench.workload import bundle_sha256
from cascade_runtime import engines
from cascade_runtime.cascade import Cascade
from cascade_runtime.errors import TargetError

from ..runtime.conftest import ONNX, OPENVINO, SIDE, WIDTH, Sample
from .conftest import Done, for_a_gpu
from .test_schemas import check

Bench = Callable[..., Done]
SMALL = Gemm(2, 16, 32, 64, links=4)
positive = st.floats(1e-3, 1e15)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ceilings of products and arrays that take no time."""
    monkeypatch.setattr(gemm, "LARGE", (SMALL,))
    monkeypatch.setattr(gemm, "MIB_A_THREAD", 0.1)
    monkeypatch.setattr(measure, "LEAST_ROUNDS", 2)


@given(positive, positive, positive)
def test_no_intensity_gives_more_than_the_peak_or_the_memory(
    peak: float, bandwidth: float, intensity: float
) -> None:
    rate = Roof(peak, bandwidth).attainable(intensity)
    assert rate <= peak and rate <= intensity * bandwidth
    assert rate in (peak, intensity * bandwidth)


@given(positive, positive)
def test_ridge_is_where_both_limits_meet(peak: float, bandwidth: float) -> None:
    roof = Roof(peak, bandwidth)
    assert roof.attainable(roof.ridge) == pytest.approx(peak)
    assert roof.attainable(roof.ridge / 2) == pytest.approx(peak / 2)


@given(positive, positive, positive, positive)
def test_least_time_is_work_over_attainable_rate(
    peak: float, bandwidth: float, flops: float, traffic: float
) -> None:
    roof = Roof(peak, bandwidth)
    expected = flops / roof.attainable(flops / traffic)
    assert roof.least_seconds(flops, traffic) == pytest.approx(expected)
    assert roof.least_seconds(2 * flops, traffic) >= roof.least_seconds(flops, traffic)


@pytest.mark.parametrize(("peak", "bandwidth"), [(0, 1), (1, 0), (-1, 1), (float("nan"), 1)])
def test_machine_without_speed_is_refused(peak: float, bandwidth: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        Roof(peak, bandwidth)


def test_chain_counts_two_flops_a_multiply_add() -> None:
    assert Gemm(2, 3, 5, 7, links=4).flops == 2 * 2 * 3 * 5 * 7 * 4


@pytest.mark.parametrize("backend", LIBRARIES)
def test_chain_computes_its_products_in_every_precision(backend: str) -> None:
    """The float64 product of the same weights; 8 bits are clipped at 0, as their input is."""
    taken = SMALL.input()
    exact = floored = taken.astype(np.float64)
    for weights in SMALL.weights():
        exact = exact @ weights
        floored = np.clip(floored, 0, 4) @ weights
    for precision in measure.PRECISIONS:
        if engines.backend(backend).unavailable(precision, "cpu"):
            continue
        files = layers.library(backend).gemm_files(SMALL, precision)
        engine = engines.load(
            backend, files, next(iter(files)), precision=precision, device="cpu", threads=1
        )
        (found,) = engine.run(taken).values()
        wanted = (floored if precision == "int8" else exact).mean(axis=1)
        scale = np.abs(wanted).max()
        allowed = {"fp32": 1e-4, "bf16": 0.05, "int8": 0.15}[precision]
        assert np.abs(found - wanted).max() < allowed * scale, precision


def test_shapes_are_those_of_the_stages_and_large_ones(cascade: Cascade) -> None:
    found = gemm.shapes(cascade.manifest.stages)
    assert Gemm(1, SIDE * SIDE, WIDTH, 4 * WIDTH) in found and SMALL in found
    assert len(set(found)) == len(found) == 3


def test_memory_traffic_moves_what_it_counts() -> None:
    traffic = MemoryTraffic(threads=2, mib=0.5)
    assert traffic.bytes == {"copy": 2 * 2**20, "triad": 5 * 2**20}
    traffic.copy()
    traffic.triad()
    assert all((arrays[2] == 7).all() for arrays in traffic._arrays)
    traffic.close()


def test_rounds_time_every_call_once_and_turn_their_order() -> None:
    called: list[str] = []
    calls = [lambda _, name=name: called.append(name) for name in "abc"]
    times = in_rounds(calls, seconds=0, least=2, warm_up=1)
    assert times.shape == (2, 3) and "".join(called) == "abcabccba"


@pytest.mark.parametrize("target", [ONNX, OPENVINO])
@pytest.mark.parametrize("batch", [1, 3, 4])
def test_layers_count_every_product_of_the_graph(template: Sample, target: str, batch: int) -> None:
    """Stage 0 by hand: tokens by a layer, then the mean token by two heads."""
    cascade = Cascade.open(template.path, target, threads=2, warm_up=False)
    backend, precision, _ = target.split("/")
    names = cascade.manifest.targets[target].stages[0].files
    runs = layers.library(backend).profile(
        {name: cascade.bundle.read(name) for name in names},
        names[0],
        measure.stage_input(cascade, 0, batch),
        precision=precision,
        threads=2,
    )
    assert len(runs) == layers.RUNS
    by_hand = 2 * batch * (SIDE * SIDE * 3 * WIDTH + WIDTH * 2 + WIDTH * 1)
    for run in runs:
        assert sum(layer.flops for layer in run) <= by_hand
    # A layer that took less than the clock can tell is not there.
    assert max(sum(x.flops for x in run) for run in runs) >= 2 * batch * SIDE * SIDE * 3 * WIDTH


def test_layers_share_out_the_time_that_the_stage_took() -> None:
    def layer(name: str, seconds: float) -> Layer:
        return Layer(name, "FullyConnected", "fp32", seconds, 10.0, 1.0)

    runs = [
        [layer("a", 1.0), layer("b", 3.0)],
        [layer("a", 10.0), layer("b", 30.0)],  # the machine was ten times as slow
        [layer("a", 9.0), layer("b", 3.0)],  # something else ran in the middle of a
    ]
    found = layers.over(2.0, runs)
    assert [x.seconds for x in found] == pytest.approx([0.5, 1.5])
    assert [x.name for x in found] == ["a", "b"]


def test_backend_without_a_profiler_is_said() -> None:
    with pytest.raises(TargetError, match=r"openvino and onnxruntime, not aot's"):
        layers.library("aot")


@pytest.mark.parametrize("command", [["roofline"], ["project", "--here", "--bundle"]])
def test_target_of_a_gpu_is_refused_beside_ceilings_of_the_processor(
    bench: Bench, sample: Sample, command: list[str]
) -> None:
    done = bench(*command, sample.path, "--target", for_a_gpu(sample.path), quick=False)
    assert done.status == 4 and done.out == "" and done.err.count("\n") == 1
    assert "ceilings run on the processor" in done.err and f"--target {OPENVINO}" in done.err


@pytest.mark.parametrize("target", [ONNX, OPENVINO])
def test_shares_and_losses_add_up(template: Sample, target: str) -> None:
    plan = measure.Plan(template.path, target, 1, batches=(1, 2), seconds=0, memory_mib=0.1)
    found = measure.run(plan)
    assert [(x.stage, x.batch) for x in found.stages] == [(0, 1), (0, 2), (1, 1), (1, 2)]
    assert [x.stage for x in found.best] == [x.stage for x in found.profiles] == [0, 1]
    peak = found.peaks[found.precision]
    for x in found.stages:
        assert x.share == pytest.approx(x.flops_per_s / peak)
        assert x.paired_low <= x.paired <= x.paired_high
        assert x.cpu_share * x.cpu_ms_per_image == pytest.approx(
            1000 * x.flops_per_image / found.cpu_peaks[found.precision]
        )
        assert x.flops_per_s == pytest.approx(1000 * x.flops_per_image / x.ms_per_image)
    for best, profile in zip(found.best, found.profiles, strict=True):
        used = best.cpu_ms_per_image if found.noisy else best.ms_per_image
        assert profile.ms_per_image == pytest.approx(used)
        flops = 1e3 * best.flops_per_image / used
        assert found.rate_of(best) == pytest.approx(flops)
        lost = sum(found.lost(layer) for layer in profile.layers)
        least = sum(x.flops / found.ceiling[x.precision] for x in profile.layers if x.flops)
        assert lost + least == pytest.approx(sum(x.seconds for x in profile.layers))
        kinds = tables.kinds(found, profile.layers)
        assert sum(kind.seconds for kind in kinds) == pytest.approx(lost + least)
    chosen = [ceiling for ceiling in found.ceilings if ceiling.best]
    assert sorted(x.precision for x in chosen) == sorted(found.peaks)


def test_json_is_one_object_with_the_documented_fields(bench: Bench, template: Sample) -> None:
    found = bench("roofline", template.path, "--json", "--batch", "1,2").record
    check("roofline", found)
    assert (found["format"], found["version"]) == ("cascade-edge.roofline", 1)
    assert set(found) == {
        *(
            "format",
            "version",
            "made_by",
            "bundle",
            "bundle_sha256",
            "target",
            "cpu",
            "threads",
            "load_before",
        ),
        *("load_after", "spread", "memory", "ceilings", "cpu_peaks", "stages", "profiles"),
        *("goals",),
    }
    assert found["bundle_sha256"] == bundle_sha256(template.path)
    text = str(record.__doc__)
    names = {key for part in ("ceilings", "stages") for key in found[part][0]} | set(found)
    assert all(name in text for name in names - {"format", "version"})
    assert set(found["profiles"][0]["layers"][0]) == {
        *("name", "kind", "precision", "ms_per_image", "flops_per_s", "share", "lost_ms")
    }


def test_tables_and_picture(bench: Bench, template: Sample, tmp_path: Path) -> None:
    plot, page = tmp_path / "roofline.png", tmp_path / "roofline.html"
    written = ("--plot", plot, "--report", page)
    done = bench("roofline", template.path, "--batch", "1", *written)
    assert done.status == 0, done.err
    titles = ["at its best", "Stages", "where the time goes", "farthest from their ceiling"]
    places = [done.out.index(title) for title in titles]
    assert places == sorted(places) and "of the fp32 ceiling" in done.out
    with Image.open(plot) as picture:
        assert picture.format == "PNG" and picture.width > 1000
    html = page.read_text()
    assert "data:image/png;base64," in html and "farthest from their ceiling" in html


def test_share_below_the_wanted_one_is_status_six(bench: Bench, template: Sample) -> None:
    assert bench("roofline", template.path, "--batch", "1", "--min-share", 0).status == 0
    done = bench("roofline", template.path, "--batch", "1", "--min-share", 1, "--json")
    found = json.loads(done.out)
    share = "cpu_share" if found["spread"] > 1.3 else "share"
    least = min(x[share] for x in found["stages"] if x["best"])
    assert done.status == (6 if least < 1 else 0)


@pytest.mark.parametrize("sizes", ["0", "1,x", "", "9999"])
def test_batch_sizes_that_are_none_are_status_two(
    bench: Bench, template: Sample, sizes: str
) -> None:
    assert bench("roofline", template.path, "--batch", sizes).status == 2
