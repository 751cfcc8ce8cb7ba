"""Every question to a calibration set is counted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cascade_compile.ledger import LEDGER, count_use
from cascade_runtime.errors import ConfigError


def test_uses_of_the_same_images_count_up(trained, tmp_path: Path) -> None:
    assert [count_use(tmp_path, trained.calib) for _ in range(3)] == [1, 2, 3]


def test_order_of_the_images_does_not_matter_but_the_images_do(trained, tmp_path: Path) -> None:
    n = len(trained.calib)
    assert count_use(tmp_path, trained.calib) == 1
    assert count_use(tmp_path, trained.calib.select(range(n - 1, -1, -1))) == 2
    assert count_use(tmp_path, trained.select) == 1
    assert count_use(tmp_path, trained.calib.select(range(n - 1))) == 1


def test_uses_by_the_runs_that_a_pair_joins_count_as_its_own(trained, tmp_path: Path) -> None:
    parts = [tmp_path / name for name in ("small", "big")]
    for part in (*parts, tmp_path / "pair"):
        part.mkdir()
    for _ in range(2):
        count_use(parts[0], trained.calib)
    count_use(parts[1], trained.calib)
    count_use(parts[1], trained.select)
    assert [count_use(tmp_path / "pair", trained.calib, parts) for _ in range(2)] == [4, 5]
    assert count_use(parts[0], trained.calib) == 3  # nothing of the pair is written there


def test_other_labels_are_another_set(trained, tmp_path: Path) -> None:
    count_use(tmp_path, trained.calib)
    flipped = replace(trained.calib, labels=1 - trained.calib.labels)
    assert count_use(tmp_path, flipped) == 1


@pytest.mark.parametrize("content", ["", "[1]", '{"a": "b"}'])
def test_damaged_ledger_is_refused_and_kept(trained, tmp_path: Path, content: str) -> None:
    (tmp_path / LEDGER).write_text(content)
    with pytest.raises(ConfigError, match=r"calibration_uses\.json is damaged"):
        count_use(tmp_path, trained.calib)
    assert (tmp_path / LEDGER).read_text() == content
