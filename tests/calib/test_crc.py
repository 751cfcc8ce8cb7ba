from fractions import Fraction

import numpy as np
import pytest

from cascade_calib.crc import conformal_risk_control
from cascade_calib.scrc import fit_transductive
from cascade_runtime.errors import ConfigError, DataError

LAMBDAS = np.linspace(0, 1, 21)


def test_the_smallest_lambda_that_holds_is_taken():
    s = np.random.default_rng(0).random((99, 1)) ** 2
    fit = conformal_risk_control(s > LAMBDAS, LAMBDAS, "0.1")
    holds = [(s > lam).sum() + 1 <= 10 for lam in LAMBDAS]
    assert fit.thresholds == {"lambda": LAMBDAS[holds.index(True)]}
    assert fit.risk_upper <= 0.1
    assert "at most 10 %" in fit.promise


def test_with_a_0_1_loss_it_is_the_conformal_quantile():
    s = np.random.default_rng(1).permutation(199) / 199
    fit = conformal_risk_control(s[:, None] > np.sort(s), np.sort(s), "0.05")
    whole = fit_transductive(np.ones(199), s, 1, "0.05")
    assert fit.thresholds["lambda"] == whole.q_above


def test_a_sum_on_the_very_edge_is_decided_exactly():
    losses = np.full((9, 1), 0.25)  # (9/4 + 1) / 10 = 0.325
    assert conformal_risk_control(losses, [1], "0.325").status == "CERTIFIED"
    assert conformal_risk_control(losses, [1], "0.32499999999999999999").status == "INFEASIBLE"
    assert conformal_risk_control(losses, [1], Fraction(13, 40)).risk_upper == 0.325


def test_another_bound_scales_what_is_asked():
    losses = np.zeros((19, 1))
    assert conformal_risk_control(losses, [1], "0.1", bound=2).status == "CERTIFIED"
    assert conformal_risk_control(losses[1:], [1], "0.1", bound=2).status == "INFEASIBLE"


def test_infeasible_says_whether_images_would_help():
    few = conformal_risk_control(np.zeros((5, 2)), [0, 1], "0.1")
    assert "label at least 9" in few.advice
    assert conformal_risk_control(np.zeros((9, 2)), [0, 1], "0.1").status == "CERTIFIED"
    assert "no number of images" in conformal_risk_control(np.ones((5, 1)), [0], "0.1").advice
    assert "no lambda" in conformal_risk_control(np.ones((5, 0)), [], "0.1").advice
    assert conformal_risk_control(np.ones((0, 1)), [0], "0.1").thresholds == {}


@pytest.mark.parametrize(
    ("losses", "lambdas", "word"),
    [
        ([[0.0]], [0, 1], "shape"),
        ([[0.0, 1.0]], [0, 1], "grows"),
        ([[np.nan, 0.0]], [0, 1], "between 0 and 1"),
        ([[2.0, 0.0]], [0, 1], "between 0 and 1"),
        ([[0.0, 0.0]], [1, 0], "ascend"),
    ],
)
def test_losses_that_it_cannot_hold_are_refused(losses, lambdas, word):
    with pytest.raises(DataError, match=word):
        conformal_risk_control(losses, lambdas, "0.1")


def test_alpha_and_bound_out_of_range_name_the_field():
    for alpha in (0, 1):
        with pytest.raises(ConfigError, match="alpha"):
            conformal_risk_control([[0.0]], [0], alpha)
    with pytest.raises(ConfigError, match="bound"):
        conformal_risk_control([[0.0]], [0], "0.1", bound=0)
