"""What a comparison makes of what it measured: rounds, ratios, quality and the front."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from cascade_bench.compare import rounds, speed
from cascade_bench.compare.plot import pareto
from cascade_bench.compare.quality import judge
from cascade_bench.compare.sample import Sample
from cascade_bench.compare.tables import times
from cascade_bench.compare.words import how_batch
from cascade_bench.peers import own
from cascade_bench.peers.contender import Contender


def test_rounds_show_everybody_the_same_files(files: list[Path]) -> None:
    seen: dict[str, list[tuple[Path, ...]]] = {"a": [], "b": []}

    def one(name: str) -> Contender:
        def classify(some: Any, batch: int) -> np.ndarray:
            seen[name].append(tuple(some))
            return np.zeros(len(some), np.int8)

        return Contender(name, "", classify, None)

    times = rounds.measure([one("a"), one("b")], sample_of(files), 2, rounds=3, seconds=0)
    assert seen["a"] == seen["b"] and len(seen["a"]) == rounds.WARM_UP + 3
    assert len(set(seen["a"][rounds.WARM_UP :])) == 3  # others in every round
    assert times.files.shape == (3, 2) and np.isnan(times.engine).all()


def test_ratios_are_of_totals_of_the_same_rounds() -> None:
    files = np.array([[1.0, 2.0, 3.0, 6.0], [2.0, 4.0, 6.0, 14.0], [1.0, 2.0, 3.0, 4.0]])
    engine = files.copy()
    engine[:, 3] = math.nan
    names = (own.CASCADE, own.ALWAYS_FULL, "quick", "server")
    found = speed.summarise(rounds.Times(8, 16, names, files, engine))
    assert [one.name for one in found.speeds] == [own.CASCADE, own.ALWAYS_FULL, "quick", "server"]
    over = found.of("server").over_files  # 24 seconds to 4; the median round's is 6
    assert over.value == 6.0 and over.low < 6.0 < over.high and over.confidence == 0.95
    assert found.of("server").files == 16 * 3 / 24 and found.of("server").files_s == (6, 14, 4)
    assert found.of("quick").files == 16 * 3 / 12 and found.best_peer == "quick"
    assert math.isnan(found.of("server").engine)
    assert math.isnan(found.of("server").over_engine.value)
    assert found.spread == 2.0 and found.noisy


def test_easy_rounds_do_not_hide_the_hard_one() -> None:
    """Of three rounds of one image, two exit early at a third of the time."""
    files = np.array([[1.0, 3.0, 6.0], [1.0, 3.0, 6.0], [4.0, 3.0, 6.0]])
    names = (own.CASCADE, own.ALWAYS_FULL, "peer")
    found = speed.summarise(rounds.Times(1, 1, names, files, files))
    assert found.of("peer").over_files.value == 3.0  # the median round's is 6


def test_one_round_has_a_ratio_and_no_interval() -> None:
    files = np.array([[1.0, 2.0, 3.0]])
    names = (own.CASCADE, own.ALWAYS_FULL, "peer")
    found = speed.summarise(rounds.Times(1, 1, names, files, files))
    over = found.of("peer").over_files
    assert (over.value, over.confidence, times(over)) == (3.0, 0.0, "3.00")
    assert "intervals" not in how_batch(found)


def test_deferred_images_are_neither_right_nor_risk(files: list[Path]) -> None:
    full = np.array([0, 0, 0, 0, 1, 1, 1], np.int8)
    said = np.array([0, 0, -1, 1, 1, -1, 1], np.int8)
    found = judge("x", said, full, sample_of(files))  # whose labels are 0, 1, 0, 1, 0, 1, 0
    assert (found.coverage.part, found.coverage.of) == (5, 7)
    assert (found.risk.part, found.risk.of) == (3, 5)
    assert (found.right.part, found.right.of) == (2, 7)
    assert (found.agreement.part, found.agreement.of) == (4, 5)
    nobody = judge("y", np.full(7, -1, np.int8), full, sample_of(files))
    assert math.isnan(nobody.risk.value) and nobody.coverage.value == 0


def test_pareto_front_leaves_out_who_is_beaten() -> None:
    points = [(10.0, 0.04), (20.0, 0.04), (30.0, 0.01), (40.0, 0.02), (25.0, 0.05)]
    assert pareto(points) == [(30.0, 0.01), (40.0, 0.02)]
    assert pareto([(1.0, 0.5)]) == [(1.0, 0.5)]


def sample_of(files: list[Path]) -> Sample:
    pixels = np.zeros((len(files), 2, 2, 3), np.uint8)
    return Sample(tuple(files), pixels, np.arange(len(files), dtype=np.int8) % 2, None, "")
