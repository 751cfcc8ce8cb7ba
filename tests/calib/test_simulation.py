"""A small, seeded run of the simulation whose full table is docs/simulations.md."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

STUDY = Path(__file__).parents[2] / "benchmarks" / "studies" / "guarantees_simulation.py"


@pytest.fixture(scope="module")
def study():
    spec = importlib.util.spec_from_file_location("guarantees_simulation", STUDY)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def cells(study):
    return study.simulate(sizes=(500,), alphas=("0.1",), deltas=("0.1",), calibrations=120, seed=5)


def test_every_promise_holds_in_every_population(study, cells):
    promising = [c for c in cells if c.method in (*study.PAC, *study.MEAN)]
    assert len(promising) == 6 * 8 + 2
    assert [c for c in promising if not c.holds] == []


def test_both_controls_fail_the_same_check(study, cells):
    for control in study.CONTROLS:
        assert any(not c.holds for c in cells if c.method == control)


def test_the_promises_are_not_kept_by_refusing_everything(cells):
    kept = {(c.method, c.population): c.kept for c in cells}
    assert kept["certified", "sharp"] > 0.5
    assert kept["certified", "two stages"] > 0.5
    assert kept["SCRC-I rank", "overconfident"] > 0.7
    assert kept["SCRC-T", "ties"] > 0.7


def test_true_risks_are_those_of_a_large_sample(study):
    rng = np.random.default_rng(0)
    for population in study.POPULATIONS:
        truth, data = study.Truth(population), population.draw(400_000, rng)
        tau = float(population.gate_at(np.array([0.4]))[0])
        if population.stages == 2:
            first = data.gate[:, 0] >= tau
            acted = first | (data.gate[:, 1] >= tau)
            wrong = np.where(first, data.wrong[:, 0], data.wrong[:, 1])
            expected = truth.acting([tau, tau])
            assert expected == pytest.approx((acted.mean(), wrong[acted].mean()), abs=4e-3)
            continue
        acted = data.gate[:, 0] >= tau
        expected = truth.acting([tau])
        assert expected == pytest.approx((acted.mean(), data.wrong[acted].mean()), abs=4e-3)
        for q in (0.05, 0.3, 0.6, 0.9):
            risk = (data.nonconformity > q)[acted].mean()
            assert truth.set_risk(tau, q, strict=False)[1] == pytest.approx(risk, abs=5e-3)


def test_the_page_names_every_method_and_the_published_one_is_of_this_script(study, cells):
    text = study.page(cells, 120, "command")
    for method in (*study.PAC, *study.MEAN, *study.CONTROLS):
        assert f"| {method} |" in text
    published = (STUDY.parents[2] / "docs" / "simulations.md").read_text()
    assert study.page([], 1000, "X").split("`X`")[1].split("\n## ")[0] in published
    assert "1,000 independent calibrations" in published
