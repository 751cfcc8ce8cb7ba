"""An alarm where images have changed, and no more often than asked for where they have not."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from populations import from_margins
from scipy import stats

from cascade_calib.cli import cli
from cascade_calib.drift import Observed, as_text, judge
from cascade_calib.exchangeability import (
    batch_test,
    conformal_p_values,
    ks_distances,
    log_capital,
    stream_test,
)
from cascade_runtime.bundle import Bundle
from cascade_runtime.errors import ConfigError, DataError

TRIALS = 300
RATE = 0.1
LIMIT = RATE + 3 * np.sqrt(RATE * (1 - RATE) / TRIALS)


def tied(rng, n):
    """Two related columns with many ties, as a coarse engine gives them."""
    first = rng.integers(0, 6, n)
    return np.stack([first, first + rng.integers(0, 3, n)], axis=1).astype(float)


def test_batch_alarms_falsely_no_more_often_than_asked():
    alarms = 0
    for trial in range(TRIALS):
        rng = np.random.default_rng(trial)
        p = batch_test(tied(rng, 50), tied(rng, 30), RATE, seed=trial).p_value
        alarms += p <= RATE
    assert 0 < alarms / TRIALS <= LIMIT


def test_stream_alarms_falsely_no_more_often_than_asked():
    alarms = 0
    for trial in range(TRIALS):
        rng = np.random.default_rng(trial)
        found = stream_test(tied(rng, 40), tied(rng, 150), RATE, seed=trial)
        alarms += found.alarm_at is not None
    assert alarms / TRIALS <= LIMIT


def test_ranks_against_a_fixed_reference_would_fail_the_same_check():
    """The control: what a careless martingale does, which the one here must not."""
    alarms = 0
    for trial in range(TRIALS):
        rng = np.random.default_rng(trial)
        reference, new = np.sort(rng.normal(size=40)), rng.normal(size=400)
        p = (np.searchsorted(reference, new) + rng.random(400)) / 41
        alarms += log_capital(p).max() >= np.log(1 / RATE)
    assert alarms / TRIALS > 2 * LIMIT


@pytest.mark.parametrize("ties", [True, False])
def test_conformal_p_values_are_independent_and_uniform(ties):
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(400):
        values = rng.integers(0, 3, 15).astype(float) if ties else rng.normal(size=15)
        rows.append(conformal_p_values(values[:5], values[5:], rng))
    p = np.array(rows)
    assert stats.kstest(p.ravel(), "uniform").pvalue > 0.001
    assert abs(np.corrcoef(p[:, :-1].ravel(), p[:, 1:].ravel())[0, 1]) < 0.06


def test_martingale_is_fair_bet_by_bet():
    """The mean capital over equally likely p-values is what it was, at every step."""
    grid = (np.arange(1000) + 0.5) / 1000
    for before in ([], [0.1, 0.2, 0.1], [0.9] * 5):
        start = np.exp(log_capital(np.array(before))[-1]) if before else 1.0
        after = [np.exp(log_capital(np.array([*before, p]))[-1]) for p in grid]
        assert np.mean(after) == pytest.approx(start, rel=1e-9)


def test_distance_is_that_of_kolmogorov_and_smirnov():
    rng = np.random.default_rng(1)
    for _ in range(30):
        a, b = tied(rng, int(rng.integers(1, 40))), tied(rng, int(rng.integers(1, 40)))
        expected = [stats.ks_2samp(a[:, c], b[:, c], method="asymp").statistic for c in (0, 1)]
        assert ks_distances(a, b) == pytest.approx(expected, abs=1e-12)


def test_permutation_p_value_agrees_with_the_exact_one():
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(30, 1)), rng.normal(0.6, 1, size=(25, 1))
    exact = stats.ks_2samp(a[:, 0], b[:, 0], method="exact").pvalue
    found = batch_test(a, b, 0.002).p_value
    assert found == pytest.approx(exact, abs=4 * np.sqrt(exact / 10_000))


def test_a_change_of_spread_alone_is_seen():
    """The middle stays where it was, which a rank sum does not notice."""
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(500, 1)), rng.normal(0, 2, size=(500, 1))
    assert stats.mannwhitneyu(a[:, 0], b[:, 0]).pvalue > 0.05
    assert batch_test(a, b, 0.01).p_value <= 0.01


def test_stream_alarms_soon_after_the_change_and_not_before():
    rng = np.random.default_rng(4)
    day, night = rng.normal(2, 1, (600, 1)), rng.normal(1, 1, (200, 1))
    found = stream_test(day[:400], np.concatenate([day[400:], night]), 0.01)
    assert found.alarm_at is not None
    assert 200 <= found.alarm_at < 300
    assert stream_test(day[:400], day[400:], 0.01).alarm_at is None


@pytest.fixture(scope="module")
def decision():
    from cascade_runtime.manifest import Decision, ExitRule

    rule = ExitRule(score="gate", platt_a=1.0, platt_b=0.0, temperature=1.0, tau_logit=1.0)
    return Decision(policy="certified", exits=(rule, rule), set_logit=0.0)


def observed(n, seed, size=3.0, groups=None):
    rng = np.random.default_rng(seed)
    margins = [rng.choice([-1, 1], n) * rng.normal(size, 1, n) for _ in range(2)]
    seen = from_margins(margins, np.zeros(n))
    return Observed(seen.exits, seen.names, groups)


def test_day_to_night_is_an_alarm_and_says_what_it_means(decision):
    result = judge(observed(400, 0), observed(200, 1, size=2.0), decision, target="t")
    assert result.alarm
    assert result.acts_on_new < result.acts_on_reference
    assert "the certificate says nothing about these images" in as_text(result)
    quiet = judge(observed(400, 0), observed(200, 2), decision, target="t")
    assert not quiet.alarm
    assert "does not prove" in as_text(quiet)


def test_a_change_of_classes_alone_is_an_alarm(decision):
    """As sure as ever, but twice as many of one class: the promise was an average over both."""
    new = observed(300, 3)
    for out in new.exits:
        turned = np.random.default_rng(4).random(300) < 0.6
        flip = turned & (out.logits[:, 1] < out.logits[:, 0])
        out.logits[flip] = out.logits[flip][:, ::-1]
    result = judge(observed(400, 0), new, decision, target="t")
    assert result.alarm
    assert "margin" in result.columns[int(np.argmax(result.distance))]


def test_outputs_that_are_not_finite_count_as_trusted_least(decision):
    new = observed(200, 5)
    for out in new.exits:
        out.gate[:60] = np.nan
    assert judge(observed(400, 0), new, decision, target="t").alarm


def test_frames_of_a_video_count_once(decision):
    """Ten videos of twenty like frames each are ten images, not two hundred."""
    rng = np.random.default_rng(6)
    alarms = {True: 0, False: 0}
    for trial in range(20):
        one = observed(10, 100 + trial)
        rows = np.repeat(np.arange(10), 20)
        new = one.take(rows)
        groups = tuple(f"video {i}" for i in rows)
        for grouped in alarms:
            side = Observed(new.exits, new.names, groups if grouped else None)
            result = judge(
                observed(200, int(rng.integers(1 << 30))),
                side,
                decision,
                target="t",
                false_alarm=0.1,
            )
            alarms[grouped] += result.alarm
            assert result.new == (10 if grouped else 200)
    assert alarms[True] <= 6 < alarms[False]


@pytest.mark.parametrize(
    ("reference", "new", "rate", "error", "words"),
    [
        (np.zeros((5, 1)), np.zeros((1, 1)), 0.01, DataError, "can never raise an alarm"),
        (np.zeros((0, 1)), np.zeros((9, 1)), 0.1, DataError, "some of both"),
        (np.zeros((9, 2)), np.zeros((9, 1)), 0.1, DataError, "expected"),
        (np.full((9, 1), np.nan), np.zeros((9, 1)), 0.1, DataError, "NaN"),
        (np.zeros((9, 1)), np.zeros((9, 1)), 0.0, ConfigError, "--false-alarm is 0"),
        (np.zeros((9, 1)), np.zeros((9, 1)), 1.0, ConfigError, "--false-alarm is 1"),
    ],
)
def test_what_cannot_be_tested_is_one_clear_error(reference, new, rate, error, words):
    with pytest.raises(error, match=words):
        batch_test(reference, new, rate)


def test_constant_scores_never_alarm():
    same = np.ones((50, 1))
    assert batch_test(same, same, 0.1).p_value == 1
    assert stream_test(same, same, 0.1).log_capital.max() < np.log(1 / 0.1)


def call(*arguments, status):
    done = CliRunner().invoke(cli, ["drift", *map(str, arguments), "--threads", "1"])
    assert done.exit_code == status, (done.output, done.exception)
    return done.output


def test_command_on_real_images_alarms_at_dusk_alone(casts, certified_casts, tmp_path):
    reference = ("--reference", casts / "test")
    said = call(certified_casts, *reference, "--new", casts / "today", status=0)
    assert "no alarm" in said
    (tmp_path / "dusk").mkdir()
    for i, file in enumerate(sorted((casts / "dusk").iterdir())):
        (tmp_path / "dusk" / f"{i}.png").write_bytes(file.read_bytes())
    (tmp_path / "dusk" / "broken.png").write_bytes(b"")
    listed = tmp_path / "list.csv"
    listed.write_text("path\n" + "".join(f"dusk/{i}.png\n" for i in range(300)))
    said = call(certified_casts, *reference, "--new", tmp_path / "dusk", status=7)
    assert "1 images could not be read" in said
    said = call(certified_casts, *reference, "--new", listed, "--stream", "--json", status=7)
    result = json.loads(said)
    assert result["alarm_at"].startswith("dusk/")
    assert result["alarm_after"] < 300


def test_tables_of_scores_give_the_same_as_images(casts, certified_casts, tmp_path):
    for part in ("test", "calib"):
        arguments = ["scores", "export", certified_casts, "--data", casts / part]
        out = tmp_path / f"{part}.parquet"
        CliRunner().invoke(cli, [str(a) for a in [*arguments, "--out", out, "--threads", 1]])
    tables = ("--reference-scores", tmp_path / "calib.parquet")
    tables += ("--new-scores", tmp_path / "test.parquet")
    images = ("--reference", casts / "calib", "--new", casts / "test")
    outcomes = [call(certified_casts, *side, "--json", status=0) for side in (tables, images)]
    assert outcomes[0] == outcomes[1]
    assert json.loads(outcomes[0])["reference"] == 700


def test_mistakes_on_the_command_line_are_said(casts, certified_casts, tmp_path):
    said = call(certified_casts, "--new", casts / "today", status=2)
    assert "give either --reference or --reference-scores" in said
    other = tmp_path / "other.csv"
    other.write_text("score,prediction\n0.5,1\n")
    assert len(Bundle.open(certified_casts).manifest.stages) == 2
    sides = ["--reference-scores", str(other), "--new-scores", str(other)]
    done = CliRunner().invoke(cli, ["drift", str(certified_casts), *sides])
    assert "does not hold logits and gate of the bundle's 2 exits" in str(done.exception)
