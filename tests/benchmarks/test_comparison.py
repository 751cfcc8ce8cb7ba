"""Always full means: the same engines, every stage for every image, the last exit decides."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import msgspec
import numpy as np
import pytest

from cascade_bench.comparison import always_full, compare, from_pairs, full_network
from cascade_bench.workload import open_workload
from cascade_runtime.cascade import Cascade
from cascade_runtime.decision import decide_exit
from cascade_runtime.stages import Stages

from ..runtime.conftest import make_images


def test_always_full_labels_are_those_of_the_last_exit_alone(cascade: Cascade) -> None:
    pixels = make_images(64, seed=5)
    decision = cascade.decision
    full = cascade.stages.forward(pixels, always_full(decision))
    last = decide_exit(cascade.stages.forward_all(pixels)[-1], decision, 1)
    assert np.array_equal(full.label, last.label)
    assert (full.stage == 1).all() and full.acted.any()


def test_always_full_runs_every_stage_for_every_image(cascade: Cascade) -> None:
    seen: list[tuple[int, int]] = []
    pixels = make_images(16, seed=5)

    def on_stage(stage: int, count: int, _: float) -> None:
        seen.append((stage, count))

    cascade.stages.forward(pixels, always_full(cascade.decision), on_stage)
    assert seen == [(0, 16), (1, 16)]
    seen.clear()
    cascade.stages.forward(pixels, cascade.decision, on_stage)
    assert seen[1][1] < 16


def test_always_full_leaves_the_last_exit_as_it_is(cascade: Cascade) -> None:
    full = always_full(cascade.decision)
    assert full.exits[-1] == cascade.decision.exits[-1]
    assert full.exits[0].tau_logit is None
    assert full.set_logit == cascade.decision.set_logit


def test_full_network_of_two_models_is_the_second_alone(cascade: Cascade) -> None:
    first, second = cascade.stages.engines
    rule = cascade.decision.exits[0]
    exits = (rule, *cascade.decision.exits)
    decision = msgspec.structs.replace(cascade.decision, exits=exits)
    stages = Stages([first, first, second], inputs=("pixels", "pixels", "tokens"))
    pair = cast(Cascade, SimpleNamespace(stages=stages, decision=decision))
    alone, full = full_network(pair)
    assert (alone.engines, alone.inputs) == ((first, second), ("pixels", "tokens"))
    assert full == always_full(cascade.decision)
    alone_too, full_too = full_network(cascade)
    assert (alone_too, full_too) == (cascade.stages, full)


def test_ratio_is_of_totals() -> None:
    """A slow spell that covers a pair slows both of it; only the pairing cancels it."""
    times = np.array([[1.0, 2.0], [10.0, 20.0], [1.0, 2.0]])
    found = from_pairs(32, 64, times)
    assert (found.ratio, found.confidence) == (2.0, 0.95)
    assert found.ratio_low == pytest.approx(2.0) == found.ratio_high
    assert found.spread == 10.0 and found.noisy
    mixed = from_pairs(1, 1, np.array([[1.0, 3.0], [1.0, 3.0], [4.0, 3.0]]))
    assert mixed.ratio == 1.5  # the median pair's is 3


@pytest.mark.parametrize(("slowest", "noisy"), [(1.3, False), (1.31, True)])
def test_noisy_is_a_spread_of_the_full_network_above_the_limit(slowest: float, noisy: bool) -> None:
    times = np.array([[0.1, 1.0], [5.0, slowest]])  # the cascade's own spread says nothing
    assert from_pairs(1, 1, times).noisy is noisy


def test_both_sides_get_the_same_blocks(cascade: Cascade, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[bool, set[bytes]] = {True: set(), False: set()}
    forward = cascade.stages.forward

    def watched(pixels: np.ndarray, decision: object) -> object:
        seen[decision == cascade.decision].add(pixels.tobytes())
        return forward(pixels, decision)

    monkeypatch.setattr(cascade.stages, "forward", watched)
    with open_workload(cascade, None) as work:
        found = compare(cascade, work, batch=16, full_rate=1e9, seconds=0.001)
    assert found.images == len(work) // 16 * 16
    assert seen[True] == seen[False] and seen[True]
    assert len(found.cascade_s) == len(found.always_full_s) >= 8
