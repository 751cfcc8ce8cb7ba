import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from cascade_calib import scaling
from cascade_calib.metrics import ece


def logits_of(margin):
    return np.stack([-margin / 2, margin / 2], axis=1)


def test_temperature_recovers_an_overconfident_network():
    rng = np.random.default_rng(0)
    margin = rng.normal(0, 3, 20_000)
    labels = rng.random(len(margin)) < scaling.sigmoid(margin)
    t = scaling.fit_temperature(logits_of(2.5 * margin), labels)
    assert t == pytest.approx(2.5, rel=0.05)


def test_platt_recovers_slope_and_intercept():
    rng = np.random.default_rng(1)
    gate = rng.normal(100, 7, 50_000)
    correct = rng.random(len(gate)) < scaling.sigmoid(0.3 * gate - 28)
    a, b = scaling.fit_platt(gate, correct)
    assert a == pytest.approx(0.3, rel=0.05)
    assert b == pytest.approx(-28, rel=0.05)
    assert ece(scaling.sigmoid(a * gate + b), correct) < 0.01 < ece(scaling.sigmoid(gate), correct)


@pytest.mark.parametrize("correct", [0, 1])
def test_one_sided_truth_gives_a_finite_increasing_map(correct):
    gate = np.linspace(-2, 3, 500)
    a, b = scaling.fit_platt(gate, np.full(500, correct))
    assert a > 0
    assert np.isfinite(b)
    p = scaling.sigmoid(a * gate + b).mean()
    assert (p > 0.98) == bool(correct)


def test_a_gate_that_points_the_wrong_way_is_flattened_not_turned_round():
    gate = np.linspace(-1, 1, 400)
    a, _ = scaling.fit_platt(gate, gate < 0)
    assert 0 < a < 0.2


def test_scaling_keeps_the_ranking_in_float32():
    rng = np.random.default_rng(2)
    gate = rng.normal(0, 1, 2000).astype(np.float32)
    a, b = scaling.fit_platt(gate, np.ones(2000))
    scaled = np.float32(a) * gate + np.float32(b)
    assert spearmanr(gate, scaled).statistic > 0.999999
    assert len(np.unique(scaled)) > 0.98 * len(np.unique(gate))


@pytest.mark.parametrize("n", [0, 1])
def test_hardly_any_images_are_defined(n):
    a, b = scaling.fit_platt(np.zeros(n), np.ones(n))
    assert a == 1.0
    assert np.isfinite(b)
    assert scaling.fit_temperature(np.zeros((n, 2)), np.ones(n)) == 1.0


def test_perfect_and_hopeless_logits_stay_in_range():
    margin = np.repeat([-1.0, 1.0], 200)
    low, high = scaling.TEMPERATURES
    perfect = scaling.fit_temperature(logits_of(margin), margin > 0)
    hopeless = scaling.fit_temperature(logits_of(margin), margin < 0)
    assert low <= perfect < 1 < hopeless <= high * 1.001


def test_rows_that_are_not_finite_do_not_count():
    gate = np.array([-1.0, 1.0, 2.0, np.nan, np.inf])
    correct = np.array([0, 1, 1, 0, 0])
    assert scaling.fit_platt(gate, correct) == scaling.fit_platt(gate[:3], correct[:3])


def test_reliability_counts_every_image_once_and_leaves_out_empty_bins():
    curve = scaling.reliability([0.05, 0.95, 0.97, 1.0], [0, 1, 0, 1], bins=10)
    assert curve.count.tolist() == [1, 3]
    assert curve.said == pytest.approx([0.05, (0.95 + 0.97 + 1) / 3])
    assert curve.found == pytest.approx([0, 2 / 3])


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_shortest_float32_reads_back_to_the_same_bits(x):
    short = scaling.shortest_float32(x)
    assert struct.pack(">f", short) == struct.pack(">f", x)
    assert len(repr(short).replace("-", "")) <= len(repr(x).replace("-", "")) or short == x


def test_shortest_float32_is_short_and_refuses_infinity():
    assert repr(scaling.shortest_float32(float(np.float32(0.1)))) == "0.1"
    with pytest.raises(ValueError, match="finite"):
        scaling.shortest_float32(float("inf"))
