"""Threads free and pinned: fresh processes that stay on their cores."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from cascade_bench import fresh, pinning
from cascade_bench.fresh import Order, used
from cascade_bench.workload import open_workload
from cascade_runtime.cascade import Cascade

from ..runtime.conftest import ONNX, Sample

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cannot pin here")


def test_thread_sweep_pairs_free_and_pinned(
    template: Sample, cascade: Cascade, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders: list[Order] = []
    start = fresh.run

    def watched(order: Order) -> fresh.Run:
        orders.append(order)
        return start(order)

    monkeypatch.setattr(fresh, "run", watched)
    monkeypatch.setattr(pinning, "LEAST_SECONDS", 0.0)
    with open_workload(cascade, None) as work:
        order = Order(str(template.path), ONNX, None, used(work.files))
        points = pinning.measure(order, seconds=0, rounds=2)
    cores = tuple(sorted(os.sched_getaffinity(0)))
    assert [point.threads for point in points][-1] == len(cores)
    assert points[0].threads == 1 and points[0].cores == cores[:1] and points[0].processes == 2
    assert points[0].gain.pairs == 2 and points[0].gain.confidence == 0.5
    kinds = [(told.threads, told.cores) for told in orders]
    half = len(kinds) // 2
    assert kinds[half:] == kinds[:half][::-1]  # who goes first changes from round to round
    assert {n for n, pinned in kinds if not pinned} == {n for n, pinned in kinds if pinned}


def test_fresh_process_is_pinned_before_it_imports_anything(
    template: Sample, cascade: Cascade, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A package of another name says on which cores it was imported."""
    package = tmp_path / "cascade_runtime"
    package.mkdir()
    (package / "__init__.py").write_text(
        "import os, sys\nsys.exit('imported on ' + str(sorted(os.sched_getaffinity(0))))\n"
    )
    core = max(os.sched_getaffinity(0))
    order = Order(str(template.path), ONNX, 1, ("x.png",), cores=(core,))
    with pytest.raises(Exception, match=rf"imported on \[{core}\]"):
        fresh.run(order, path=str(tmp_path))


def test_fresh_process_goes_on_deciding_when_asked_to(template: Sample, cascade: Cascade) -> None:
    with open_workload(cascade, None) as work:
        order = Order(str(template.path), ONNX, 1, used(work.files))
        assert fresh.run(order).single_s == ()
        found = fresh.run(replace(order, seconds=0.0))
    assert len(found.single_s) >= 3 and len(found.whole_s) >= 3
    assert found.runtime.endswith("__init__.py")
