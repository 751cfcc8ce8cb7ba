"""An engine that is not the network is found out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cascade_compile import targets
from cascade_compile.parity import BATCHES, LIMITS, Parity, measure
from cascade_runtime import engines
from cascade_runtime.decision import ExitOutputs
from cascade_runtime.manifest import Decision, ExitRule
from cascade_runtime.stages import Stages
from cascade_train.exits import CascadeModel

ALWAYS = Decision(
    policy="certified",
    exits=tuple(
        ExitRule(score="softmax", platt_a=1.0, platt_b=0.0, temperature=1.0, tau_logit=tau)
        for tau in (1.0, 0.0)
    ),
    set_logit=0.0,
)


def stages_of(files: list[Path]) -> Stages:
    return Stages(
        [
            engines.load(
                "onnxruntime",
                {file.name: file.read_bytes()},
                file.name,
                precision="fp32",
                device="cpu",
                threads=1,
            )
            for file in files
        ]
    )


def test_right_engine_is_within_rounding_and_flips_nothing(
    model: CascadeModel, exported: list[Path], trained
) -> None:
    parity = measure(model, stages_of(exported), trained.select.pixels, "fp32")
    assert parity.ok
    assert 0 < parity.max_difference < 1e-4
    assert parity.images == len(trained.select)
    assert set(parity.engine) == set(BATCHES) == {1, 3, 8}
    assert parity.flips(ALWAYS) == 0
    figures = parity.figures(ALWAYS)
    assert figures["decision_flips"] == 0.0
    assert all(isinstance(value, float) for value in figures.values())


def test_wrong_engine_is_found_and_its_flips_are_counted(
    model: CascadeModel, exported: list[Path], changed: Callable[[float], Path], trained
) -> None:
    wrong = stages_of([exported[0], changed(1e3)])  # the last exit always says class 0
    parity = measure(model, wrong, trained.select.pixels, "fp32")
    assert not parity.ok
    assert parity.max_difference == pytest.approx(1e3, rel=0.05)
    closed = replace_first_tau(None)  # so that only the last exit answers
    positives = (trained.select.labels == 1).sum()
    assert parity.flips(closed) == pytest.approx(positives, abs=2)


def replace_first_tau(tau: float | None) -> Decision:
    first, last = ALWAYS.exits
    rule = ExitRule(score="softmax", platt_a=1.0, platt_b=0.0, temperature=1.0, tau_logit=tau)
    assert first.tau_logit is not None
    return Decision(policy="certified", exits=(rule, last), set_logit=0.0)


def test_engine_of_no_numbers_is_never_right(
    model: CascadeModel, exported: list[Path], changed: Callable[[float], Path], trained
) -> None:
    for value in (float("nan"), float("inf")):
        wrong = stages_of([exported[0], changed(value)])
        parity = measure(model, wrong, trained.select.pixels[:4], "fp32")
        assert not parity.finite
        assert not parity.ok


def outputs(logits: list[list[float]]) -> list[ExitOutputs]:
    rows = np.array(logits, dtype=np.float32)
    return [ExitOutputs(rows, np.zeros(len(rows), dtype=np.float32))]


ONE_EXIT = Decision(policy="certified", exits=ALWAYS.exits[1:], set_logit=0.0)
SAME = [[2.0, 0.0], [0.0, 2.0], [0.0, 1.0]]
OTHER = [[2.0, 0.0], [2.0, 0.0], [0.0, 1.0]]
AGAIN = [[0.0, 2.0], [2.0, 0.0], [0.0, 1.0]]


@pytest.mark.parametrize(
    ("by_batch", "flips"),
    [
        ({1: SAME, 3: SAME, 8: SAME}, 0),
        ({1: SAME, 3: OTHER, 8: SAME}, 1),  # right at one batch size is not enough
        ({1: OTHER, 3: OTHER, 8: OTHER}, 1),  # an image counts once
        ({1: SAME, 3: OTHER, 8: AGAIN}, 2),
    ],
)
def test_flip_at_any_batch_size_counts_once_an_image(
    by_batch: dict[int, list[list[float]]], flips: int
) -> None:
    parity = Parity(
        images=3,
        max_difference=0.0,
        mean_difference=0.0,
        scale=1.0,
        limit=0.1,
        engine={batch: outputs(rows) for batch, rows in by_batch.items()},
        reference=outputs(SAME),
    )
    assert parity.flips(ONE_EXIT) == flips


def test_limit_is_a_share_of_the_largest_output(
    model: CascadeModel, exported: list[Path], trained
) -> None:
    parity = measure(model, stages_of(exported), trained.select.pixels[:4], "bf16")
    assert parity.scale >= 1.0
    at_limit = parity.limit * parity.scale
    assert replace(parity, max_difference=at_limit).ok
    assert not replace(parity, max_difference=1.001 * at_limit).ok


def test_every_precision_that_can_be_built_has_a_limit() -> None:
    assert {name.precision for name in targets.every_target()} <= set(LIMITS)
    assert LIMITS["fp32"] < LIMITS["bf16"]
