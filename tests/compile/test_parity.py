"""An engine that is not the network is found out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cascade_compile import targets
from cascade_compile.parity import BATCHES, LIMITS, Parity, against, measure, run_network
from cascade_runtime import engines
from cascade_runtime.decision import ExitOutputs
from cascade_runtime.manifest import Decision, ExitRule
from cascade_runtime.stages import Stages
from cascade_train.exits import CascadeModel
from cascade_train.loop import predict

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


def test_each_stage_is_compared_on_the_networks_own_inputs(
    model: CascadeModel, exported: list[Path], changed: Callable[[float], Path], trained
) -> None:
    """So a stage that is right stays right behind one that is wrong, and the wrong one is named."""
    pixels = trained.select.pixels[:16]
    right = measure(model, stages_of(exported), pixels, "fp32")
    names = [(part.stage, part.output) for part in right.stages]
    firsts = [(0, name) for name in ("logits", "gate", "tokens")]
    assert names == [*firsts, (1, "logits"), (1, "gate")]
    assert all(part.max_difference < 1e-4 and part.cosine > 0.999999 for part in right.stages)

    wrong = measure(model, stages_of([exported[0], changed(1e3)]), pixels, "fp32")
    by_name = {(part.stage, part.output): part for part in wrong.stages}
    assert by_name[1, "logits"].max_difference == pytest.approx(wrong.max_difference, rel=1e-3)
    assert by_name[1, "logits"].cosine < 0.99
    assert all(by_name[name] == part for name, part in zip(firsts, right.stages, strict=False))

    figures = wrong.figures(ALWAYS)
    assert figures["stage1_logits_max_difference"] == pytest.approx(1e3, rel=0.05)
    assert figures["stage0_tokens_cosine"] == pytest.approx(1.0, abs=1e-6)


def test_failure_says_how_far_where_and_which_stage(
    model: CascadeModel, exported: list[Path], changed: Callable[[float], Path], trained
) -> None:
    wrong = measure(
        model, stages_of([exported[0], changed(1e3)]), trained.select.pixels[:16], "fp32"
    )
    text = wrong.explain()
    assert f"{wrong.max_difference:.3g} away from the network" in text
    assert "in exit 2's logits at " in text
    assert "of 16. Each stage on the network's own inputs: stage 0 logits " in text
    assert "\n" not in text


def test_network_is_run_as_it_was_trained_not_as_it_was_cut(model: CascadeModel, trained) -> None:
    pixels = trained.select.pixels[:20]
    found, tokens = run_network(model, pixels)
    logits, gates = predict(model, pixels)
    for exit, out in enumerate(found):
        np.testing.assert_allclose(out.logits, logits[exit], atol=1e-5)
        np.testing.assert_allclose(out.gate, gates[exit], atol=1e-5)
    assert [value.shape for value in tokens] == [(20, 17, 128)] * 2


def test_answers_known_beforehand_need_no_network(
    model: CascadeModel, exported: list[Path], trained
) -> None:
    pixels = trained.select.pixels[:16]
    reference, tokens = run_network(model, pixels)
    known = against(reference, stages_of(exported), pixels, "fp32")
    whole = against(reference, stages_of(exported), pixels, "fp32", tokens)
    assert known.max_difference == whole.max_difference
    assert [(part.stage, part.output) for part in known.stages] == [(0, "logits"), (0, "gate")]
    assert known.stages == whole.stages[:2]


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
    assert LIMITS["fp32"] < LIMITS["bf16"] < LIMITS["int8"]
