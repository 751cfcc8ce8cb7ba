"""PASS and FAIL: the four targets, their sides, and what counts when nothing could be counted."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import pytest

from cascade_bench.limits import Limits, judge
from cascade_bench.quality import Quality, Share, certified, measured
from cascade_calib.labelled import read_labelled
from cascade_runtime.cascade import Cascade

from ..runtime.conftest import Sample


def quality(coverage: float, error: float) -> Quality:
    return Quality(
        source="val_test",
        bounds="95 % interval",
        coverage=Share(coverage, 0, 0, 0.0, 1.0),
        error=Share(error, 0, 0, 0.0, 1.0),
        evaluation=None,
    )


def passed(
    p95_ms: float = 50.0, rate: float = 100.0, coverage: float = 0.7, error: float = 0.01
) -> list[bool]:
    checks = judge(Limits(), p95_ms=p95_ms, rate=rate, batch=32, quality=quality(coverage, error))
    return [check.passed for check in checks]


def test_a_figure_at_its_limit_passes() -> None:
    assert passed() == [True] * 4


@pytest.mark.parametrize(
    ("worse", "index"),
    [({"p95_ms": 50.1}, 0), ({"rate": 99.9}, 1), ({"coverage": 0.699}, 2), ({"error": 0.011}, 3)],
)
def test_a_figure_beyond_its_limit_fails_alone(worse: dict[str, float], index: int) -> None:
    assert passed(**worse) == [position != index for position in range(4)]


def test_a_figure_that_is_undefined_fails() -> None:
    nan = math.nan
    assert passed(p95_ms=nan, rate=nan, coverage=nan, error=nan) == [False] * 4


def test_limits_can_be_moved() -> None:
    limits = Limits(max_ms=1, min_rate=1000, min_coverage=0.9, max_error=0.001)
    checks = judge(limits, p95_ms=2, rate=900, batch=32, quality=quality(0.8, 0.005))
    assert not any(check.passed for check in checks)
    assert [check.limit for check in checks] == [1, 1000, 0.9, 0.001]


def test_without_data_quality_is_the_certificates_and_says_so(template: Sample) -> None:
    certificate = next(iter(template.manifest.certificates.values()))
    found = certified(certificate)
    assert found.source == "certificate, val_calib"
    assert found.coverage.value == certificate.coverage
    assert found.coverage.low == certificate.coverage_lower
    assert found.error.value == certificate.errors / certificate.accepted
    assert found.error.high == certificate.risk_upper
    assert found.bounds == "95 % bound"


def test_bounds_name_the_share_of_delta_that_each_of_several_claims_has(template: Sample) -> None:
    certificate = next(iter(template.manifest.certificates.values()))
    two = msgspec.structs.replace(certificate, claims=2)
    assert certified(two).bounds == "97.5 % bound"


def test_infeasible_certificate_fails_coverage_and_exit_error(template: Sample) -> None:
    certificate = msgspec.structs.replace(
        next(iter(template.manifest.certificates.values())),
        status="INFEASIBLE",
        accepted=0,
        errors=0,
        coverage=0.0,
        coverage_lower=0.0,
        risk_upper=1.0,
    )
    found = certified(certificate)
    checks = judge(Limits(), p95_ms=1, rate=1000, batch=32, quality=found)
    assert [check.passed for check in checks] == [True, True, False, False]


def test_measured_quality_counts_the_runtimes_own_decisions(
    cascade: Cascade, labelled: Path
) -> None:
    images = read_labelled(labelled)
    found = measured(cascade, images, "measured on labelled")
    results = cascade.classify([images.file(i) for i in range(len(images))])
    acted = [(r, y) for r, y in zip(results, images.labels, strict=True) if r.label >= 0]
    wrong = sum(result.label != label for result, label in acted)
    assert (found.coverage.part, found.coverage.of) == (len(acted), len(images))
    assert (found.error.part, found.error.of) == (wrong, len(acted))
    assert found.coverage.low <= found.coverage.value <= found.coverage.high
    assert 0 < found.coverage.part < len(images)
