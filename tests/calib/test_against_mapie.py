"""MAPIE, written by others, computes some of the same numbers."""

import warnings
from fractions import Fraction

import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin

from cascade_calib.bounds import binomial_p_values
from cascade_calib.certify import certify
from cascade_calib.crc import conformal_risk_control
from cascade_calib.path import passed_first
from cascade_calib.scrc import fit_transductive

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from mapie.classification import SplitConformalClassifier
    from mapie.risk_control import control_fwer
    from mapie.risk_control.methods import find_best_predict_param, get_r_hat_plus


class Fixed(ClassifierMixin, BaseEstimator):
    """A classifier whose probability of class 1 is its one feature."""

    classes_ = np.array([0, 1])
    n_features_in_ = 1
    is_fitted_ = True

    def fit(self, x, y):
        return self

    def predict_proba(self, x):
        return np.column_stack([1 - x[:, 0], x[:, 0]])

    def predict(self, x):
        return (x[:, 0] > 0.5).astype(int)


@pytest.mark.parametrize("alpha", ["0.02", "0.1", "0.25"])
@pytest.mark.parametrize("n", [100, 237])
def test_transductive_sets_at_full_coverage_are_its_split_conformal_sets(alpha, n):
    rng = np.random.default_rng(n)
    p, fresh = rng.random((n, 1)), rng.random((400, 1))
    labels = (rng.random(n) < p[:, 0]).astype(int)
    other = SplitConformalClassifier(Fixed(), confidence_level=1 - float(alpha), prefit=True)
    other.conformalize(p, labels)
    theirs = other.predict_set(fresh)[1][:, :, 0]
    probability = Fixed().predict_proba(p)
    fit = fit_transductive(rng.random(n), 1 - probability[np.arange(n), labels], 1, alpha)
    ours = fit.prediction_set(rng.random(400), 1 - Fixed().predict_proba(fresh))
    assert 0 < ours.sum() < 800
    assert (ours == theirs).all()


@pytest.mark.parametrize("alpha", [0.05, 0.2])
def test_crc_takes_the_same_lambda(alpha):
    rng = np.random.default_rng(3)
    lambdas = np.linspace(0, 1, 51)
    losses = np.maximum(rng.random((211, 1)) - lambdas, 0)
    bound = get_r_hat_plus(losses, lambdas, "crc", None, None, None)[1]
    allowed = lambdas[bound <= alpha]
    ours = conformal_risk_control(losses, lambdas, alpha)
    assert ours.thresholds["lambda"] == allowed.min()
    # its own chooser returns the largest threshold of a loss that rises with it
    turned = find_best_predict_param(lambdas, bound[::-1], np.array([alpha]))
    assert 1 - turned[0] == pytest.approx(ours.thresholds["lambda"])


def test_fixed_sequence_stops_where_its_procedure_does():
    rng = np.random.default_rng(4)
    for _ in range(200):
        p = rng.random(12) ** 4
        rejected = control_fwer(p, delta=0.1, fwer_method="fixed_sequence")
        assert list(rejected) == list(range(passed_first(p, Fraction(1, 10))))


def test_a_certified_threshold_is_the_last_it_rejects():
    rng = np.random.default_rng(5)
    c = rng.uniform(0.5, 1, 1500)
    wrong = rng.random(1500) > c
    path = np.linspace(0.95, 0.5, 60)
    k, e = (np.array([(x & (c >= t)).sum() for t in path]) for x in (True, wrong))
    rejected = control_fwer(binomial_p_values(e, k, 0.1), 0.1, "fixed_sequence")
    assert certify(c, wrong, path, 0.1, 0.1).thresholds["tau"] == path[rejected[-1]]
