import re

import numpy as np
import pytest
from populations import honest

from cascade_calib.metrics import risk_coverage_curve
from cascade_calib.plots import ExitCurve, OperatingPoint, reliability_plot, risk_coverage_plot
from cascade_calib.report_band import POINTS, risk_band
from cascade_calib.scaling import reliability
from cascade_runtime.errors import DataError


def scores(n, seed=0):
    """Confidences uniform in (.5, 1), each wrong with the rest to 1."""
    rng = np.random.default_rng(seed)
    confidence = rng.uniform(0.5, 1, n)
    return confidence, rng.random(n) > confidence


def width(band):
    return float(np.mean(band.high - band.low))


def test_the_band_lies_around_the_curve_up_to_full_coverage():
    score, wrong = scores(800)
    band, curve = risk_band(score, wrong), risk_coverage_curve(score, wrong)
    risk = np.interp(band.coverage, curve.coverage, curve.selective)
    assert np.all((band.low <= risk) & (risk <= band.high))
    assert band.coverage[-1] == 1
    assert band.coverage[0] <= 0.02 + 1 / 800
    assert POINTS - 2 <= len(band.coverage) <= POINTS
    assert width(band) > 0.01


def test_the_band_covers_the_true_risk_of_its_threshold():
    inside = []
    for seed in range(80):
        score, wrong = scores(400, seed)
        band, curve = risk_band(score, wrong, resamples=300), risk_coverage_curve(score, wrong)
        for place in (POINTS // 2, POINTS - 1):
            at = np.searchsorted(curve.coverage, band.coverage[place])
            true = (1 - curve.threshold[at]) / 2
            inside.append(band.low[place] <= true <= band.high[place])
    assert 0.88 <= np.mean(inside) <= 0.99  # 95 % of 160 trials, in pairs of correlated places


def test_more_images_make_the_band_narrower():
    assert width(risk_band(*scores(4000))) < 0.6 * width(risk_band(*scores(500)))


def test_images_of_a_group_are_drawn_together():
    score, wrong = (np.repeat(values, 20) for values in scores(50))
    groups = [f"video {i // 20}" for i in range(len(score))]
    alone, together = risk_band(score, wrong), risk_band(score, wrong, groups)
    assert width(together) > 3 * width(alone)


def test_the_band_does_not_depend_on_the_order_of_the_images_or_of_a_tie():
    score, wrong = scores(500)
    score = score.round(2)
    order = np.random.default_rng(1).permutation(500)
    one, other = risk_band(score, wrong), risk_band(score[order], wrong[order])
    for field in ("coverage", "low", "high"):
        np.testing.assert_array_equal(getattr(one, field), getattr(other, field))


def test_the_band_of_no_images_is_empty_and_of_one_score_a_single_point():
    assert len(risk_band([], []).coverage) == 0
    band = risk_band(np.ones(40), np.arange(40) % 4 == 0)
    assert band.coverage.tolist() == [1.0]
    assert band.low[0] < 0.25 < band.high[0]


def test_groups_of_another_length_are_refused():
    with pytest.raises(DataError, match="2 groups for 3 images"):
        risk_band([0.1, 0.2, 0.3], [0, 0, 1], ["a", "b"])


def plot(limit=0.1, point=None, name="Risk", description="", n=400):
    score, wrong = scores(n)
    curve = ExitCurve(risk_coverage_curve(score, wrong), risk_band(score, wrong))
    return risk_coverage_plot([curve], limit, "promised: 10 %", point, name, description)


def ticks(svg):
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def test_what_a_figure_shows_is_spoken_and_escaped():
    svg = plot(name='Risk of "a<b"', description="exit 0 is wrong on 25 % & more")
    label = re.search(r'role="img" aria-label="([^"]*)"', svg).group(1)
    assert label == "Risk of &quot;a&lt;b&quot;: exit 0 is wrong on 25 % &amp; more"


def test_a_figure_has_a_band_for_each_exit():
    score, wrong = scores(400)
    bare = ExitCurve(risk_coverage_curve(score, wrong), risk_band([], []))
    without = risk_coverage_plot([bare], 0.1, "promised", None, "Risk")
    assert plot().count("FillBetweenPolyCollection") == 1
    assert "opacity: 0.15" in plot()
    assert "opacity: 0.15" not in without


def test_only_a_bounded_point_claims_a_bound():
    bounded = plot(point=OperatingPoint(0.5, 0.1, 0.12))
    free = plot(point=OperatingPoint(0.5, 0.1, None))
    assert "cascade, upper bound" in ticks(bounded)
    assert "cascade" in ticks(free)
    assert "cascade, upper bound" not in ticks(free)


def test_a_promise_far_below_every_curve_leaves_the_curves_in_the_frame():
    """At half coverage this exit is wrong on 12 %; three times the promise would be .3 %."""
    texts = ticks(plot(limit=0.001))
    below, above = (
        texts.index(label) for label in ("coverage, % of images acted on", "exit 0 alone")
    )
    risks = [float(text) for text in texts[below + 1 : above] if text.isdigit()]
    assert max(risks) >= 20


def test_a_figure_of_many_images_is_small_and_still_ends_at_full_coverage():
    svg = plot(n=20_000)
    assert len(svg) < 40_000
    frame = {k: float(v) for k, v in re.findall(r'(x|y|width|height)="([\d.]+)"', svg)}
    line = max(re.findall(r'<path d="(M[^"]*)"', svg), key=len)
    x, y = (float(number) for number in line.split()[-2:])
    everything = scores(20_000)[1].mean()
    assert x == pytest.approx(frame["x"] + frame["width"] * 100 / 101, abs=0.01)
    top = frame["y"] + frame["height"] * (1 - everything / 0.3)
    assert y == pytest.approx(top, abs=0.01)


def test_reliability_draws_both_states_and_the_same_bytes_each_time():
    data = honest(300, np.random.default_rng(0))
    p, right = np.full(300, 0.7), data.labels == 1
    curve = reliability(p, right, bins=10)
    svg = reliability_plot(curve, curve, 0.5, "Reliability")
    assert {"before", "after", "stated probability"} <= set(ticks(svg))
    assert svg == reliability_plot(curve, curve, 0.5, "Reliability")
