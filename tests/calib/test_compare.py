"""Two cascades on the same images: paired intervals, and a verdict only where the data give one."""

import json
from dataclasses import replace
from fractions import Fraction

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from populations import from_margins, honest
from tiny_bundle import ONNX

from cascade_calib.bootstrap import difference_intervals, ratio_intervals
from cascade_calib.certify_target import Request, certify_target
from cascade_calib.cli import cli
from cascade_calib.compare import compare_collected, conclusion, parse_side
from cascade_runtime.errors import ConfigError
from cascade_runtime.manifest import Preprocess

REQUEST = Request(Fraction(1, 10), Fraction(1, 10), Fraction(1, 5))


@pytest.fixture(scope="module")
def certified():
    rng = np.random.default_rng(0)
    return certify_target(
        honest(600, rng, 2),
        honest(1500, rng, 2),
        stage_costs=(1.0, 1.0),
        request=REQUEST,
        preprocess=Preprocess(height=8, width=8),
        engines={},
    )


def at(decision, tau):
    rules = tuple(msgspec.structs.replace(r, tau_logit=tau) for r in decision.exits)
    return msgspec.structs.replace(decision, exits=rules)


def look(seen, certified, taus=(1.0, 1.0), **more):
    decision, certificate = certified
    both = seen if isinstance(seen, tuple) else (seen, seen)
    return compare_collected(
        both,
        tuple(at(decision, tau) for tau in taus),
        (certificate, certificate),
        names=(("a.cascade", "t"), ("b.cascade", "t")),
        classes=("clear", "roadwork"),
        **more,
    )


def test_the_same_cascade_twice_is_alike_and_neither_is_better(certified):
    result = look(honest(800, np.random.default_rng(1), 2), certified)
    assert result.alike == result.images == 800
    assert result.better == "neither"
    for d in (*result.figures.values(), *result.exits):
        assert d.difference == 0
        assert d.interval.low < 0 < d.interval.high  # none seen of so many is not none at all
    assert "cannot tell which is better" in conclusion(result)


def test_wider_coverage_against_lower_risk_is_no_victory(certified):
    result = look(honest(4000, np.random.default_rng(2), 2), certified, taus=(0.1, 2.5))
    assert (result.coverage_better, result.risk_better) == ("first", "second")
    assert result.better == "neither"
    assert "A acts on more images, B is wrong less often" in conclusion(result)
    turned = look(honest(4000, np.random.default_rng(2), 2), certified, taus=(2.5, 0.1))
    assert (turned.coverage_better, turned.risk_better) == ("second", "first")


def test_a_cascade_that_is_right_where_the_other_is_wrong_is_better(certified):
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, 1000)
    margins = 6.0 * (2 * labels - 1)
    worse = np.where(rng.random(1000) < 0.05, -margins, margins)
    seen = tuple(from_margins([m, m], labels) for m in (worse, margins))
    result = look(seen, certified)
    assert (result.risk_better, result.coverage_better) == ("second", "neither")
    assert result.better == "second"
    assert conclusion(result).count("B is better: it is wrong less often") == 1


def test_pairing_narrows_the_interval_to_what_differs():
    rng = np.random.default_rng(4)
    hard = rng.random(2000) < 0.3
    a, b = (hard ^ (rng.random(2000) < 0.01) for _ in range(2))
    everything = np.ones((2000, 1))
    [[paired]] = difference_intervals((a[:, None], everything), (b[:, None], everything))
    [alone] = ratio_intervals(a[:, None], everything)
    assert paired.high - paired.low < (alone.high - alone.low) / 2


def test_paired_intervals_hold_the_true_difference_as_often_as_they_say():
    rng = np.random.default_rng(5)
    held = 0
    for trial in range(200):
        u = rng.random(400)
        a, b = (u < 0.30)[:, None], (u < 0.25)[:, None]
        ones = np.ones((400, 1))
        [[interval]] = difference_intervals((a, ones), (b, ones), resamples=400, seed=trial)
        held += interval.low <= 0.05 <= interval.high
    assert held >= 200 * 0.95 - 3 * np.sqrt(200 * 0.95 * 0.05)


def test_equals_are_told_apart_no_more_often_than_one_time_in_twenty(certified):
    """Both sides act on and miss as much in truth, but on different images."""
    rng = np.random.default_rng(8)
    told = 0
    for trial in range(150):
        labels = rng.integers(0, 2, 300)
        sides = []
        for _ in range(2):
            size = np.where(rng.random(300) < 0.7, 6.0, 0.1)
            sign = np.where(rng.random(300) < 0.1, 1, -1) * (1 - 2 * labels)
            sides.append(from_margins([sign * size] * 2, labels))
        result = look(tuple(sides), certified, resamples=400, seed=trial)
        told += (result.coverage_better, result.risk_better) != ("neither", "neither")
        for d in result.figures.values():
            assert d.joint.low <= d.interval.low <= d.interval.high <= d.joint.high
    assert told / 150 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 150)


def test_groups_are_drawn_whole(certified):
    seen = honest(400, np.random.default_rng(6), 2)
    order = np.argsort(np.abs(seen.exits[0].gate))
    seen = replace(seen, exits=[out.take(order) for out in seen.exits], labels=seen.labels[order])
    grouped = replace(seen, groups=tuple(f"v{i // 40}" for i in range(400)))
    alone, together = (
        look(s, certified, taus=(0.5, 2.0)).figures["coverage"].interval for s in (seen, grouped)
    )
    assert together.high - together.low > 1.5 * (alone.high - alone.low)


def test_calibration_images_are_not_to_choose_by(certified):
    seen = honest(300, np.random.default_rng(7), 2)
    decision, certificate = certified
    own = (decision, msgspec.structs.replace(certificate, calibration_sha256=seen.content_sha256))
    assert "voids its promise" in conclusion(look(seen, own))


def test_sides_are_bundles_or_targets_of_them(tmp_path):
    assert parse_side("x.cascade") == ("x.cascade", "auto")
    assert parse_side("x.cascade#openvino/bf16/cpu") == ("x.cascade", "openvino/bf16/cpu")
    odd = tmp_path / "a#b.cascade"
    odd.mkdir()
    assert parse_side(str(odd)) == (str(odd), "auto")
    with pytest.raises(ConfigError, match="BUNDLE#TARGET"):
        parse_side("x.cascade#")


def test_json_of_real_bundles(casts, certified_casts):
    """The uncertified one defers everything: its risk is unknown, its coverage certainly 0."""
    sides = [f"{certified_casts}#{ONNX}", str(casts / "one.cascade")]
    options = ["--data", str(casts / "test"), "--threads", "1", "--json"]
    done = CliRunner().invoke(cli, ["compare", *sides, *options])
    assert done.exit_code == 0, done.output
    result = json.loads(done.output)
    assert result["images"] == 500
    assert result["figures"]["coverage"]["second"] == 0
    assert result["figures"]["risk"]["second"] is None
    assert [side["status"] for side in result["sides"]] == ["CERTIFIED", "INFEASIBLE"]
    assert result["better"] == "first"
