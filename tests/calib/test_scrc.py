import json
import math
from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import binom

from cascade_calib.bounds import binomial_p_value
from cascade_calib.scrc import fit_inductive, fit_transductive, set_figures
from cascade_calib.scrc_inductive import rank_for_coverage
from cascade_runtime.errors import ConfigError, DataError


def joint(gates, s, gate, candidate, coverage, alpha):
    """(accepted, in the set) of one test image, recomputed over all n + 1 images together."""
    together = [*gates, gate]
    k = math.ceil(coverage * len(together))
    bar = sorted(together, reverse=True)[k - 1]
    peers = [x for g, x in zip(gates, s, strict=True) if g >= bar]
    p_value = Fraction(1 + sum(x >= candidate for x in peers), len(peers) + 1)
    return gate >= bar, p_value > alpha


def test_three_numbers_decide_as_the_joint_computation_on_10_000_tied_cases():
    rng = np.random.default_rng(0)
    coverages = [Fraction(x) for x in ("0.1", "0.3", "0.5", "0.55", "0.7", "0.9", "1")]
    alphas = [Fraction(x) for x in ("0.05", "0.1", "0.2", "0.3", "0.5", "0.9")]
    kinds = {"out": 0, "at": 0, "above": 0}
    for _ in range(10_000):
        n = int(rng.integers(0, 15))
        gates, s = rng.integers(0, 6, n), rng.integers(0, 6, n)
        gate, candidates = int(rng.integers(-1, 7)), rng.integers(-1, 7, 2)
        coverage, alpha = coverages[rng.integers(7)], alphas[rng.integers(6)]
        fit = fit_transductive(gates, s, coverage, alpha)
        members = fit.prediction_set([gate], candidates[None])[0]
        for candidate, member in zip(candidates, members, strict=True):
            accepted, inside = joint(gates, s, gate, candidate, coverage, alpha)
            assert fit.accepts(gate) == accepted
            assert member == (accepted and inside)
        kinds["out" if not accepted else "at" if gate == fit.tau else "above"] += 1
    assert min(kinds.values()) > 500


def test_counts_do_not_go_through_floats():
    gates = np.arange(99.0)
    fit = fit_transductive(gates, gates / 100, 0.55, 0.05)  # 0.55 * 100 in floats is above 55
    assert fit.tau == gates[-55]
    assert fit_transductive(gates, gates / 100, "0.55", "1/20") == fit


def test_transductive_keeps_the_mean_risk_by_leaving_one_out():
    rng = np.random.default_rng(1)
    gate, s = rng.integers(0, 8, 120) / 8, rng.integers(0, 30, 120) / 30
    others = ~np.eye(120, dtype=bool)
    missed = accepted = 0
    for i in range(120):  # exchangeable by construction: an exact statement, not a statistical one
        fit = fit_transductive(gate[others[i]], s[others[i]], 0.6, 0.1)
        if fit.accepts(gate[i]):
            accepted += 1
            missed += not fit.prediction_set(gate[[i]], s[[i], None])[0, 0]
    assert 0.05 * accepted < missed <= 0.1 * accepted


def test_full_sets_are_admitted_to_promise_nothing():
    fit = fit_transductive([3, 2, 1], [0.1, 0.2, 0.3], 0.7, 0.05)
    assert fit.q_above == np.inf
    assert fit.prediction_set([5], [[0.2, 0.8]]).all()
    assert "Every set is full" in fit.advice
    enough = int(fit.advice.split("Label about ")[1].split(" ")[0])
    s = np.arange(enough)
    assert fit_transductive(s, s, 0.7, 0.05).advice == ""
    assert "Every set is full" in fit_transductive(s[1:], s[1:], 0.7, 0.05).advice


def test_bound_on_the_risk_does_not_profit_from_tied_nonconformities():
    """Ties at the limit leave fewer errors than were allowed; the limit was chosen with those."""
    rng = np.random.default_rng(17)
    gate, s = rng.random(300), rng.integers(0, 10, 300) / 10
    tied = fit_inductive(gate, s, 0.7, 0.2, 0.1)
    spread = fit_inductive(gate, s + 1e-6 * rng.random(300), 0.7, 0.2, 0.1)
    assert tied.errors < spread.errors
    assert tied.risk_upper == spread.risk_upper <= 0.2


def test_rank_allows_the_errors_a_binomial_test_leaves():
    rng = np.random.default_rng(2)
    gate, s = rng.random(1000), rng.random(1000)
    fit = fit_inductive(gate, s, 0.7, 0.1, 0.05)
    k = fit.accepted
    assert k == rank_for_coverage(1000, Fraction("0.7"), Fraction("0.05"))
    assert fit.tau == np.sort(gate)[::-1][k]
    assert fit.accepts(gate).sum() == k
    assert not fit.accepts(fit.tau)
    assert fit.errors == (s[fit.accepts(gate)] > fit.q).sum()
    assert binomial_p_value(fit.errors, k, 0.1) <= 0.05 < binomial_p_value(fit.errors + 1, k, 0.1)
    assert fit.risk_upper <= 0.1
    assert 0.7 <= fit.coverage_lower < fit.coverage


@pytest.mark.parametrize(("n", "coverage", "delta"), [(50, "0.7", "0.1"), (1000, "0.3", "0.05")])
def test_rank_for_coverage_is_the_smallest(n, coverage, delta):
    xi, d = Fraction(coverage), Fraction(delta)
    k = rank_for_coverage(n, xi, d)
    assert binom.sf(k, n, float(xi)) <= d < binom.sf(k - 1, n, float(xi))
    assert rank_for_coverage(n, Fraction(1), d) == n


def test_rank_never_splits_a_tie_and_says_when_one_costs_the_coverage():
    s = np.linspace(0, 1, 600)
    pairs = np.arange(600) // 2
    asked = [fit_inductive(pairs, s, xi / 600, 0.1, 0.1) for xi in range(300, 310)]
    assert {fit.status for fit in asked} == {"CERTIFIED", "INFEASIBLE"}
    deeper = [fit_inductive(pairs, s, xi / 600, 0.1, 0.1, ties=2) for xi in range(300, 310)]
    assert {fit.status for fit in deeper} == {"CERTIFIED"}
    assert {fit.accepted % 2 for fit in deeper} == {0}
    coarse = fit_inductive(np.repeat([1.0, 0.0], 300), s, 0.6, 0.1, 0.1)
    assert coarse.status == "INFEASIBLE"
    assert "300 images share the gate 0" in coarse.advice
    assert "ties=300" in coarse.advice
    assert not coarse.accepts([2.0, np.inf]).any()
    assert not coarse.prediction_set([2.0], [[0.0, 1.0]]).any()


def test_constant_gate_at_full_coverage_accepts_everything():
    fit = fit_inductive(np.ones(200), np.linspace(0, 1, 200), 1, 0.1, 0.1)
    assert (fit.status, fit.tau, fit.accepted, fit.coverage_lower) == ("CERTIFIED", -np.inf, 200, 1)


def test_the_images_that_an_infeasible_rank_asks_for_are_enough():
    fit = fit_inductive(np.arange(50), np.arange(50), 0.5, 0.01, 0.05)
    assert fit.status == "INFEASIBLE"
    more = int(fit.advice.split("label about ")[1].split(" ")[0])
    s = np.arange(50 + more)
    assert fit_inductive(s, s, 0.5, 0.01, 0.05).status == "CERTIFIED"
    assert fit_inductive(s[1:], s[1:], 0.5, 0.01, 0.05).status == "INFEASIBLE"


def test_grid_needs_far_more_images_and_its_own_count_of_them_is_right():
    for n, status in ((5559, "CERTIFIED"), (5550, "INFEASIBLE")):
        gate = np.linspace(0, 1, n)
        gate[gate >= np.sort(gate)[-math.ceil(0.7 * n)]] = 1.0  # exactly 0.7 at the best threshold
        fit = fit_inductive(gate, np.zeros(n), 0.7, 0.05, 0.1, "grid")
        assert fit.status == status
    assert "about 5,559 images" in fit.advice
    assert fit_inductive(gate, np.zeros(n), 0.7, 0.05, 0.1, "rank").status == "CERTIFIED"


def test_grid_holds_its_own_inequality_and_no_smaller_limit_does():
    rng = np.random.default_rng(3)
    n = 20_000
    gate, s = rng.random(n), rng.random(n) ** 3
    fit = fit_inductive(gate, s, 0.7, 0.1, 0.1, "grid")
    room = np.sqrt(np.log(4 * 101 * 101 / 0.1) / (2 * n))
    accepted = gate >= fit.tau
    allowed = 0.1 * (accepted.mean() - np.sqrt(np.log(40) / (2 * n)))
    assert accepted.mean() >= 0.7 > (gate >= fit.tau + 0.01).mean()
    assert (accepted & (s > fit.q)).mean() + room <= allowed
    assert (accepted & (s > fit.q - 0.01)).mean() + room > allowed


def test_set_figures_show_what_the_set_risk_hides():
    members = [[1, 1], [1, 1], [1, 0], [0, 1], [0, 0], [1, 0]]
    figures = set_figures(members, [0, 1, 1, 1, 0, 1], np.array([1, 1, 1, 1, 1, 0], dtype=bool))
    assert figures == (0.4, 0.4, 0.5)
    assert np.isnan(set_figures(members, [0] * 6, np.zeros(6, dtype=bool))).all()


def test_results_are_json_and_nan_is_never_accepted():
    fit = fit_transductive([1, 2], [0.1, 0.2], 1, 0.1)
    back = json.loads(json.dumps(fit.to_dict(), allow_nan=False))
    assert back["thresholds"] == {"tau": "-inf", "q_above": "inf", "q_at": "inf"}
    assert not fit.accepts(np.nan)
    assert not fit.prediction_set([1.0], [[np.nan, 0.1]])[0, 0]


def test_infinite_gates_are_ordinary_values():
    gate, s = np.repeat([np.inf, 1.0, -np.inf], 40), np.tile(np.arange(40.0), 3)
    fit = fit_transductive(gate, s, 0.3, 0.1)
    assert fit.tau == np.inf
    assert fit.accepts([np.inf, 1.0]).tolist() == [True, False]
    fit = fit_inductive(gate, s, 0.2, 0.2, 0.1, ties=40)
    assert (fit.status, fit.tau, fit.accepted) == ("CERTIFIED", 1.0, 40)


@pytest.mark.parametrize("fit", [fit_transductive, lambda *a: fit_inductive(*a, "0.1")])
def test_bad_input_is_one_clear_error(fit):
    with pytest.raises(DataError, match="hold NaN for 1 of 2"):
        fit([1, np.nan], [0, 0], "0.7", "0.1")
    with pytest.raises(DataError, match=r"\(2,\) and \(1,\)"):
        fit([1, 2], [0], "0.7", "0.1")
    for coverage in (0, "0", -0.1, 1.1, float("nan")):
        with pytest.raises(ConfigError, match="coverage"):
            fit([1, 2], [0, 0], coverage, "0.1")
    for alpha in (0, 1, 1.0, "2"):
        with pytest.raises(ConfigError, match="alpha"):
            fit([1, 2], [0, 0], "0.7", alpha)


def test_other_forms_and_grids_out_of_range_are_refused():
    with pytest.raises(ConfigError, match="'rank' or 'grid'"):
        fit_inductive([1], [1], 0.5, 0.1, 0.1, "table")
    with pytest.raises(DataError, match=r"gate must lie in \[0, 1\]"):
        fit_inductive([2], [1], 0.5, 0.1, 0.1, "grid")
    for delta in (0, 1):
        with pytest.raises(ConfigError, match="delta"):
            fit_inductive([1], [1], 0.5, 0.1, delta)


@pytest.mark.parametrize("n", [0, 1])
def test_hardly_any_images_have_a_defined_answer(n):
    empty = fit_transductive(np.ones(n), np.ones(n), 0.7, 0.1)
    assert empty.prediction_set([1.0], [[0.1, 0.9]]).all()
    for form in ("rank", "grid"):
        fit = fit_inductive(np.ones(n), np.ones(n), 0.7, 0.1, 0.1, form)
        assert (fit.status, fit.n, fit.accepted) == ("INFEASIBLE", n, 0)
        assert fit.advice
