"""What the numbers and names of a manifest may be, beyond their types.

In: a decoded `Manifest`. Out: nothing, or a `BundleError` naming the field. A value outside these
limits would be divided by, indexed with, overflow float32, or let one stage run another's engine.
Spec: docs/bundle-format.md, "Limits".
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from cascade_runtime.container import is_name
from cascade_runtime.errors import BundleError

if TYPE_CHECKING:
    from cascade_runtime.manifest import Certificate, Decision, Manifest, StageInfo, Target

MAX_STAGES = 127  # a stage's number is an int8
MAX_SIDE = 1 << 16
_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")


def check(manifest: Manifest) -> None:
    """Raise BundleError for the first field that is outside its limits."""
    size = manifest.preprocess
    _need(max(size.height, size.width) <= MAX_SIDE, "preprocess", f"height, width <= {MAX_SIDE}")
    stages = len(manifest.stages)
    _need(1 <= stages <= MAX_STAGES, "stages", f"1 to {MAX_STAGES} of them")
    _need(len(manifest.model.exits) == stages, "model.exits", "one entry a stage")
    _counts("model", (manifest.model.parameters, *manifest.model.exits))
    for index, info in enumerate(manifest.stages):
        _check_stage(f"stages[{index}]", info)
    for name, target in manifest.targets.items():
        _check_target(f"targets[{name!r}]", target)
    for name, decision in manifest.decision.items():
        _check_decision(f"decision[{name!r}]", decision)
    for name, certificate in manifest.certificates.items():
        _check_certificate(f"certificates[{name!r}]", certificate, stages)


def _check_stage(where: str, info: StageInfo) -> None:
    numbers = (*info.blocks, info.parameters, info.macs, info.tokens, info.width)
    _counts(where, numbers)
    _need(info.blocks[0] <= info.blocks[1], f"{where}.blocks", "first <= one after the last")


def _check_target(where: str, target: Target) -> None:
    for part in (target.backend, target.precision, target.device):
        _need(
            _PART.fullmatch(part) is not None,
            where,
            "backend, precision and device of letters, digits and . _ + -",
        )
    _need(target.images_per_s >= 0, f"{where}.images_per_s", ">= 0")
    for index, stage in enumerate(target.stages):
        here = f"{where}.stages[{index}].files"
        _need(bool(stage.files), here, "at least one engine file")
        _need(len(set(stage.files)) == len(stage.files), here, "each file once")
        for path in stage.files:
            _need(is_name(path), here, f"paths inside the bundle, not {path!r}")
            own = path.rpartition("/")[2].startswith(f"stage{index}.")
            _need(own, here, f"files named stage{index}.*, not {path!r}: that is not its engine")


def _check_decision(where: str, decision: Decision) -> None:
    accept = decision.accept
    numbers: list[float | None] = [decision.set_logit]
    if accept is not None:
        numbers += [accept.tau_logit, accept.set_logit_at]
    for index, rule in enumerate(decision.exits):
        numbers += [rule.platt_a, rule.platt_b, rule.temperature, rule.tau_logit]
        scaled = _fits(rule.temperature) and _float32(rule.temperature) > 0
        _need(scaled, f"{where}.exits[{index}].temperature", "a float32 > 0")
    for number in numbers:
        _need(_fits(number), where, f"numbers of float32, {number} is beyond float32")


def _check_certificate(where: str, c: Certificate, stages: int) -> None:
    counts = (c.n, c.accepted, c.errors, c.path_length, c.path_tested, c.calibration_uses)
    _counts(where, (*counts, *c.exit_counts, *c.class_errors, *c.class_accepted))
    _need(c.errors <= c.accepted <= c.n, where, "errors <= accepted <= n")
    _need(len(c.exit_counts) == stages, f"{where}.exit_counts", "one entry a stage")
    for pair in (c.class_errors, c.class_accepted):
        _need(len(pair) == 2, f"{where}.class_errors, class_accepted", "one entry a class")
    _need(c.claims >= 1, f"{where}.claims", ">= 1")
    _need(c.delta is None or 0 < c.delta < 1, f"{where}.delta", "null or between 0 and 1")
    _shares(where, _shares_of(c))
    if c.sets is not None:
        s = c.sets
        _counts(f"{where}.sets", (s.accepted, s.misses, s.ambiguous, s.empty))
        _shares(f"{where}.sets", (s.risk_upper, s.coverage, s.coverage_lower))


def _shares_of(c: Certificate) -> Iterator[float]:
    yield from (c.alpha, c.coverage_floor, c.risk_upper, c.coverage, c.coverage_lower)
    yield from (share for share in (c.fnr_promised, c.fnr_upper) if share is not None)


def _counts(where: str, numbers: Sequence[int]) -> None:
    for number in numbers:
        _need(number >= 0, where, f"counts >= 0, {number} is none")


def _shares(where: str, numbers: Sequence[float] | Iterator[float]) -> None:
    for number in numbers:
        _need(0 <= number <= 1, where, f"shares between 0 and 1, {number} is none")


def _fits(number: float | None) -> bool:
    """Whether it is finite when rounded to float32; null stands for +inf and does."""
    if number is None:
        return True
    try:
        struct.pack(">f", number)
    except OverflowError:
        return False
    return True


def _float32(number: float) -> float:
    (rounded,) = struct.unpack(">f", struct.pack(">f", number))
    return float(rounded)


def _need(holds: bool, where: str, what: str) -> None:
    if not holds:
        raise BundleError(f"manifest.json: {where} needs {what}")
