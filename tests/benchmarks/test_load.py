"""Closed loops count what was answered; open loops count from when an image was due."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from cascade_bench import load
from cascade_bench.load import closed_loop, knee, open_loop
from cascade_bench.workload import open_workload
from cascade_runtime.cascade import Cascade


def test_every_client_sends_in_turn_and_all_their_images_count() -> None:
    seen: list[int] = []
    found = closed_loop(seen.append, clients=3, seconds=0)
    assert found.clients == 3 and found.latency.repeats == 21 >= load.LEAST_REQUESTS
    assert len(seen) == 21 + 3 * load.WARM_UP
    assert found.images_per_s > 0


def test_clients_of_a_closed_loop_are_busy_at_the_same_time() -> None:
    together = threading.Barrier(4, timeout=30)
    closed_loop(lambda _: together.wait(), clients=4, seconds=0)


def test_latency_of_an_open_loop_counts_the_wait_behind_a_slow_answer() -> None:
    """One stall of 0.3 s at 100 a second: a closed loop would show it once, here thirty wait."""
    stalled = 5

    def answer(index: int) -> None:
        if index == stalled and threading.current_thread() is not warming.pop():
            time.sleep(0.3)

    warming = [threading.main_thread()] * 1000
    found = open_loop(answer, clients=1, rate=100, seconds=0.5)
    assert found.latency.repeats == 50
    assert found.latency.max_ms >= 300
    assert found.latency.p50_ms > 20  # more than half of the 50 were due in or soon after the stall
    assert found.waited_p50_ms > 20


def test_arrivals_do_not_wait_for_answers_while_somebody_is_free() -> None:
    found = open_loop(lambda _: time.sleep(0.02), clients=4, rate=100, seconds=0.3)
    assert found.offered == 100 and found.latency.repeats == 30
    assert found.latency.p50_ms >= 20


def test_a_rate_above_what_can_be_answered_is_not_kept_up_with() -> None:
    found = open_loop(lambda _: time.sleep(0.01), clients=1, rate=1000, seconds=0.05)
    assert not found.kept_up and found.achieved <= 101
    assert found.latency.p50_ms > 50


def test_every_image_is_sent_once_whoever_sends_it() -> None:
    seen: list[int] = []
    open_loop(seen.append, clients=4, rate=1e6, seconds=0.0005)
    counts = np.bincount(seen)
    assert len(counts) == 500 and counts[8:].max() == counts[8:].min() == 1


def test_an_answer_that_fails_ends_the_measurement() -> None:
    def answer(index: int) -> None:
        if index == 7:
            raise RuntimeError("engine gone")

    for loop in (
        lambda: closed_loop(answer, 2, 0),
        lambda: open_loop(answer, 2, 1000, 0),
    ):
        with pytest.raises(RuntimeError, match="engine gone"):
            loop()


def test_knee_is_the_highest_rate_kept_up_with() -> None:
    point = open_loop(lambda _: None, 1, 1e6, 0)
    points = [replace(point, offered=r, kept_up=k) for r, k in ((1, True), (2, True), (3, False))]
    assert knee(points) == 2
    assert np.isnan(knee(points[2:]))


def test_load_of_a_cascade_covers_clients_and_rates(cascade: Cascade) -> None:
    with open_workload(cascade, None) as work:
        found = load.measure(cascade, work, seconds=0)
    assert [loop.clients for loop in found.closed] == list(load.CLIENTS)
    best = max(loop.images_per_s for loop in found.closed)
    shares = [point.offered / best for point in found.open]
    assert shares == pytest.approx(load.FRACTIONS)
