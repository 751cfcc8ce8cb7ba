"""`cascade-bench project`: the table of devices, the model of time, the fit, and the command."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cascade_bench.project import record, work
from cascade_bench.project.devices import Device, device, published
from cascade_bench.project.fit import Compared, Fit, efficiency_of, fit
from cascade_bench.project.fit import Sample as Timed
from cascade_bench.project.predict import (
    ASSUMED,
    Efficiency,
    batch_seconds,
    needed_exit_rate,
    stage_seconds,
)
from cascade_bench.project.report import _around
from cascade_bench.project.work import Work, of_preset, of_stages
from cascade_bench.roofline import gemm, measure
from cascade_compile.stages import describe
from cascade_runtime.errors import ConfigError
from cascade_train.backbone import build_backbone
from cascade_train.exits import CascadeModel
from cascade_train.presets import PRESETS, preset

from ..runtime.conftest import OPENVINO, Sample
from .conftest import Done
from .test_schemas import check

Bench = Callable[..., Done]
VITS = of_preset(preset("vits16"), 224, (4,))
MIDDLE = ASSUMED["middle"]
MACHINE = Device("here", "", {"fp32": 1e11, "int8": 4e11}, 2e10, (), "", measured=True)


@pytest.mark.parametrize("found", published().values(), ids=lambda found: found.name)
def test_every_device_has_plausible_figures_and_their_source(found: Device) -> None:
    assert found.sources and all(source.startswith("https://") for source in found.sources)
    assert "fp32" in found.peaks and "fp16" in found.peaks and not found.measured
    order = [found.peaks[x] for x in ("fp32", "fp16", "int8") if x in found.peaks]
    assert order == sorted(order) and order[0] >= 1e12 and 5e10 < found.bandwidth < 1e13


def test_devices_of_the_issue_are_there() -> None:
    wanted = {"orin-nano", "orin-nx", "agx-orin", "thor", "t4", "l4", "a100", "h100"}
    assert wanted < set(published())


def test_unknown_device_and_precision_name_what_there_is() -> None:
    with pytest.raises(ConfigError, match="orin-nano"):
        device("orin-micro")
    with pytest.raises(ConfigError, match=r"thor has figures for fp32, fp16, fp8"):
        device("thor").peak("int8")


def test_attention_of_eight_bits_is_in_sixteen() -> None:
    assert device("l4").attention("int8") == device("l4").peak("fp16")
    assert MACHINE.attention("int8") == MACHINE.peak("fp32") == MACHINE.attention("fp32")


def test_work_of_a_preset_is_that_of_the_network_it_builds() -> None:
    p = preset("tiny")
    model = CascadeModel(build_backbone(p), p.exits)
    infos = describe(model, p.image_size)
    for ours, info in zip(of_preset(p, p.image_size, p.exits), infos, strict=True):
        assert ours.flops == 2 * info.macs
        assert ours.weights == pytest.approx(info.parameters, rel=0.12)  # heads, norms, biases
    for ours, theirs in zip(of_preset(p, 64, p.exits), of_stages(infos), strict=True):
        assert ours.linear == theirs.linear and ours.values == pytest.approx(theirs.values)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_can_be_projected(name: str) -> None:
    p = preset(name)
    stages = of_preset(p, p.image_size, p.exits)
    assert len(stages) == len(p.exits) and all(x.flops > 0 and x.values > 0 for x in stages)


@pytest.mark.parametrize(("exits", "word"), [((13,), "12 blocks"), ((6, 4), "smallest first")])
def test_exits_that_the_network_lacks_are_named(exits: Sequence[int], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        of_preset(preset("vits16"), 224, exits)
    with pytest.raises(ConfigError, match="patch, 16"):
        of_preset(preset("vits16"), 230, (4,))


rates = st.floats(0, 1)


@given(rates, rates, st.sampled_from([1, 4, 32]), st.sampled_from(sorted(published())))
def test_leaving_earlier_never_takes_longer(a: float, b: float, batch: int, name: str) -> None:
    few, many = sorted((a, b))
    seconds = [
        batch_seconds(VITS, device(name), "fp16", MIDDLE, batch, [rate]) for rate in (few, many)
    ]
    assert seconds[0] >= seconds[1] * (1 - 1e-12)
    assert seconds[0] <= batch_seconds(VITS, device(name), "fp16", MIDDLE, batch) * (1 + 1e-12)


@given(st.sampled_from(sorted(published())), st.integers(1, 64))
def test_no_prediction_beats_the_roofline(name: str, batch: int) -> None:
    found = device(name)
    for efficiency in ASSUMED.values():
        seconds = batch_seconds(VITS, found, "fp16", efficiency, batch)
        flops = batch * sum(x.flops for x in VITS)
        assert seconds >= flops / found.peak("fp16")
        assert seconds >= 2 * sum(x.weights for x in VITS) / found.bandwidth


def test_better_efficiency_is_faster() -> None:
    seconds = [
        batch_seconds(VITS, device("orin-nano"), "fp16", ASSUMED[name], 8)
        for name in ("low", "middle", "high")
    ]
    assert seconds == sorted(seconds, reverse=True)


def test_all_that_leave_cost_the_first_stage_alone() -> None:
    alone = stage_seconds(VITS[0], MACHINE, "fp32", MIDDLE, 8, 1.0)
    assert batch_seconds(VITS, MACHINE, "fp32", MIDDLE, 8, [1.0]) == pytest.approx(alone)


@given(st.floats(1, 1e4), st.sampled_from(sorted(published())), st.sampled_from([1, 8]))
def test_needed_exit_rate_just_reaches_the_wanted_one(rate: float, name: str, batch: int) -> None:
    found = device(name)
    needed = needed_exit_rate(VITS, found, "fp16", MIDDLE, batch, rate)

    def reached(share: float) -> float:
        return batch / batch_seconds(VITS, found, "fp16", MIDDLE, batch, [share])

    if needed is None:
        assert reached(1.0) < rate
    else:
        assert reached(needed) >= rate
        assert needed == 0 or reached(needed - 1e-6) < rate


def timed(bundle: str, true: Efficiency, batches: Sequence[int] = (1, 8)) -> list[Timed]:
    """A machine that does exactly what the model says."""
    return [
        Timed(bundle, k, n, "int8", x, stage_seconds(x, MACHINE, "int8", true, n, 1.0))
        for k, x in enumerate(VITS)
        for n in batches
    ]


@given(st.floats(0.1, 0.9))
def test_fit_finds_the_efficiency_of_a_machine_that_has_one(products: float) -> None:
    true = Efficiency(products, 0.9, 5e-6)
    found = efficiency_of(MACHINE, timed("a", true))
    assert found.products == pytest.approx(products, rel=0.05)


def test_error_is_that_of_what_the_fit_had_not_seen() -> None:
    """Two machines that differ by a factor of two: each is predicted by the other, and is off."""
    slow, quick = Efficiency(0.3, 0.9, 0.0), Efficiency(0.6, 0.9, 0.0)
    found = fit(MACHINE, [*timed("slow", slow), *timed("quick", quick)])
    assert found.held_out == "its bundle" and len(found.compared) == 8
    errors = {x.sample.bundle: x.error for x in found.compared}
    assert errors["slow"] == pytest.approx(-0.5, abs=0.05)
    assert errors["quick"] == pytest.approx(1.0, abs=0.1)
    assert found.largest_error == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("off", [0.5, 1.6])  # predicted at half its time, or at 1.6 times it
def test_range_holds_what_was_measured_of_every_held_out_stage(off: float) -> None:
    samples = timed("a", MIDDLE)
    wrong = [off, *[1.0] * (len(samples) - 1)]
    compared = [Compared(x, by * x.seconds) for x, by in zip(samples, wrong, strict=True)]
    slow, likely, fast = _around(Fit(MACHINE, MIDDLE, tuple(compared), "its stage"))
    sample = samples[0]

    def seconds(efficiency: Efficiency) -> float:
        return stage_seconds(sample.work, MACHINE, "int8", efficiency, sample.batch, 1.0)

    low, high = (seconds(x) / seconds(likely) * off * sample.seconds for x in (fast, slow))
    assert low <= sample.seconds * (1 + 1e-9) and sample.seconds <= high * (1 + 1e-9)


def test_stages_are_held_out_of_one_bundle_and_nothing_of_one_stage() -> None:
    assert fit(MACHINE, timed("a", MIDDLE)).held_out == "its stage"
    with pytest.raises(ConfigError, match="give another --bundle"):
        fit(MACHINE, timed("a", MIDDLE)[:2])


def test_command_of_the_issue(bench: Bench, tmp_path: Path) -> None:
    plot = tmp_path / "project.png"
    options = ["--device", "orin-nano", "--preset", "vits16", "--image-size", 224]
    options += ["--batch", "1,8", "--exits", "4", "--exit-rate", ".7", "--plot", plot]
    done = bench("project", *options, quick=False)
    assert done.status == 0, done.err
    assert "vits16 at 224 px, exits after blocks 4; leaving there: 70 %" in done.out
    assert "assumed" in done.out and "https://developer.nvidia.com" in done.out
    with Image.open(plot) as picture:
        assert picture.format == "PNG" and picture.width > 1000
    found = bench("project", *options, "--json", quick=False).record
    check("project", found)
    assert (found["format"], found["version"]) == ("cascade-edge.project", 1)
    assert set(found) == {
        *("format", "version", "made_by", "min_rate", "exit_rates", "devices", "rows", "fit")
    }
    assert all(name in str(record.__doc__) for row in found["rows"] for name in row)
    for row in found["rows"]:
        assert row["always_full_ms"]["slow"] > row["always_full_ms"]["likely"]
        assert row["cascade_rate"]["likely"] > row["always_full_rate"]["likely"]


def test_every_device_is_predicted_where_none_is_named(bench: Bench) -> None:
    found = bench("project", "--json", quick=False).record
    assert {row["device"] for row in found["rows"]} == set(published())
    eight = bench("project", "--precision", "int8", "--json", quick=False).record
    assert "thor" not in {row["device"] for row in eight["rows"]}


def test_machine_at_hand_is_measured_and_its_error_stated(
    bench: Bench, template: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gemm, "LARGE", (gemm.Gemm(1, 16, 32, 64, links=2),))
    monkeypatch.setattr(measure.Plan, "memory_mib", 0.1)
    options = ["--here", "--bundle", template.path, "--batch", "1,2", "--seconds", 0]
    options += ["--preset", "tiny", "--threads", 1, "--target", OPENVINO]
    done = bench("project", *options, quick=False)
    assert done.status == 0, done.err
    assert "Predicted from what is fitted without its stage" in done.out
    assert "error: mean size" in done.out and "fitted" in done.out
    found = bench("project", *options, "--json", quick=False).record
    check("project", found)
    assert len(found["fit"]["compared"]) == 4 and found["fit"]["held_out"] == "its stage"
    assert [x["measured"] for x in found["devices"]] == [True]


@pytest.mark.parametrize(
    "options",
    [
        ["--here"],
        ["--bundle", "x.cascade"],
        ["--exit-rate", "1.5"],
        ["--exit-rate", "x"],
        ["--exits", "four"],
        ["--batch", "0"],
    ],
)
def test_wrong_usage_is_status_two(bench: Bench, options: list[str]) -> None:
    assert bench("project", *options, quick=False).status == 2


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--device", "abacus"], "orin-nano"),
        (["--preset", "vitx"], "vits16"),
        (["--exits", "12,13"], "12 blocks"),
        (["--exits", "4,8", "--exit-rate", ".1,.2,.3"], "wants 1 or 2"),
        (["--device", "thor", "--precision", "int8"], "fp8"),
        (["--plot", "x.jpg"], ".png"),
    ],
)
def test_wrong_setting_is_one_line_and_status_one(
    bench: Bench, options: list[str], word: str
) -> None:
    done = bench("project", *options, quick=False)
    assert done.status == 1 and word in done.err and done.err.count("\n") == 1


def test_values_between_layers_grow_with_tokens_and_width() -> None:
    small, large = (of_preset(preset("vits16"), size, ())[0] for size in (224, 448))
    assert large.values > 3.5 * small.values and large.weights == pytest.approx(small.weights)
    assert isinstance(small, Work) and small.layers == 12 * work.LAYERS_A_BLOCK
