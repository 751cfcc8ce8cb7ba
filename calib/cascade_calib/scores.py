"""`cascade-calibrate scores`: a bundle's scores as a table, and certificates for any such table.

In: a bundle and labelled images, or a table of scores of some model. Out: a table; or thresholds
in the table's own numbers, with the certificate of what acting by them is promised. The proof is
that of a bundle (`certify_target`), but tied to no engine: keeping the model that made the scores
is then up to its owner.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from cascade_calib import words
from cascade_calib.arrays import Float64
from cascade_calib.certify_target import Request, certify_target
from cascade_calib.collect import Collected, collect
from cascade_calib.evaluate import in_the_classes_of
from cascade_calib.progress import Progress
from cascade_calib.score_table import ScoreTable, write_scores
from cascade_calib.words import percent
from cascade_runtime.decision import ExitOutputs, decide
from cascade_runtime.errors import ConfigError, DataError
from cascade_runtime.manifest import Certificate, ExitRule, Preprocess

if TYPE_CHECKING:
    from cascade_calib.labelled import LabelledImages, Loaded
    from cascade_runtime.cascade import Cascade


@dataclass(frozen=True)
class Threshold:
    """One exit's rule in the numbers of the table: act where `column` >= `at` (+inf: never).

    `column` is "gate", "score" or "|logit1 - logit0|", computed in float64; the answer is the
    prediction, or 1 where logit1 > logit0 and 0 where it is less; where they are equal, none.
    """

    column: str
    at: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON: an infinite threshold as the word "inf" or "-inf"."""
        return {"column": self.column, "at": self.at if np.isfinite(self.at) else str(self.at)}

    def __str__(self) -> str:
        if np.isfinite(self.at):
            return f"act where {self.column} >= {self.at!r}"
        return "never act" if self.at > 0 else "always act"


@dataclass(frozen=True)
class TableCertificate:
    """What `scores certify` prints; the certificate's `engines` and `binding` are empty."""

    thresholds: tuple[Threshold, ...]
    certificate: Certificate
    select_images: int

    def to_dict(self) -> dict[str, Any]:
        built: dict[str, Any] = msgspec.to_builtins(
            {
                "thresholds": [t.to_dict() for t in self.thresholds],
                "select_images": self.select_images,
                "certificate": self.certificate,
            }
        )
        return built


def export(
    cascade: Cascade,
    images: LabelledImages,
    out: Path,
    *,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> Loaded:
    """Run every exit over labelled images and write the table; returns the images.

    Raises:
        DataError: no image can be read, or the images have other classes than the bundle.
        ConfigError: `out` is neither .csv nor .parquet.
    """
    from cascade_calib.labelled import load_pixels

    images = in_the_classes_of(images, cascade.manifest.model.classes)
    loaded = load_pixels(images, cascade.preprocess, progress=progress)
    seen = collect(cascade.stages, loaded, progress, batch_size)
    write_scores(out, seen, decide(seen.exits, cascade.decision))
    return loaded


def split_table(table: ScoreTable, share: float, seed: int) -> tuple[ScoreTable, ScoreTable]:
    """A table as (select, calib): `share` of the images, or of the groups, at random by `seed`.

    Raises:
        DataError: one of the two would be empty.
    """
    units, member = _units(table)
    take = round(share * units)
    if not 0 < take < units:
        raise DataError(
            f"{table.path}: {units} {'images' if table.groups is None else 'groups'} cannot be "
            f"parted with --select-share {share:g}; both parts need some"
        )
    chosen = np.zeros(units, dtype=np.bool_)
    chosen[np.random.default_rng(seed).permutation(units)[:take]] = True
    return table.select(np.flatnonzero(chosen[member])), table.select(
        np.flatnonzero(~chosen[member])
    )


def certify_scores(
    select: ScoreTable, calib: ScoreTable, request: Request, costs: Sequence[float] | None = None
) -> TableCertificate:
    """Propose thresholds on one table and prove them on another.

    Args:
        costs: of running each exit on one image, in any one unit; default all the same.

    Raises:
        DataError: the tables differ in their columns, or share images by name.
        ConfigError: another number of costs than of exits.
    """
    _check_pair(select, calib)
    if costs is not None and len(costs) != len(calib.exits):
        raise ConfigError(f"--cost is given {len(costs)} times for {len(calib.exits)} exits")
    proposing, testing = _collected(select), _collected(calib)
    decision, certificate = certify_target(
        proposing,
        testing,
        stage_costs=costs or [1.0] * len(calib.exits),
        request=request,
        preprocess=Preprocess(height=1, width=1),  # enters the binding alone, which means nothing
        engines={},
    )
    certificate = msgspec.structs.replace(certificate, binding="")
    if certificate.status == "CERTIFIED":
        promise = words.promise(request, "that are acted on")
        certificate = msgspec.structs.replace(certificate, promise=promise)
    thresholds = tuple(_threshold(calib, rule, stage) for stage, rule in enumerate(decision.exits))
    _check_counts(calib, thresholds, certificate)
    return TableCertificate(thresholds, certificate, len(select))


def as_text(result: TableCertificate) -> str:
    """Rule, promise and counts in words."""
    c = result.certificate
    if c.status != "CERTIFIED":
        return f"INFEASIBLE at alpha {percent(c.alpha, 6)}. {c.advice}"
    several = len(result.thresholds) > 1
    lines = [
        f"exit {i}: {threshold}" if several else str(threshold)
        for i, threshold in enumerate(result.thresholds)
    ]
    return "\n".join(
        [
            *lines,
            f"CERTIFIED: {c.promise}",
            f"{c.errors} wrong of {c.accepted} acted on, of {c.n} calibration images: risk at most "
            f"{percent(c.risk_upper)}, coverage {percent(c.coverage)} (at least "
            f"{percent(c.coverage_lower)}). Thresholds were proposed on {result.select_images} "
            "others.",
            "It holds for the model that made these scores, unchanged, on images drawn as these "
            "were.",
        ]
    )


def _check_pair(select: ScoreTable, calib: ScoreTable) -> None:
    shapes = [(t.kind, len(t.exits), [x.gate is None for x in t.exits]) for t in (select, calib)]
    if shapes[0] != shapes[1]:
        raise DataError(f"{select.path} and {calib.path} do not have the same columns of scores")
    if select.names is None or calib.names is None:
        return
    # A name alone may be relative to another folder; with the same scores it is the same image.
    rows = [set(zip(t.names or (), t.lines(), strict=True)) for t in (select, calib)]
    both = rows[0] & rows[1]
    if both:
        raise DataError(
            f"{len(both)} images, such as {min(both)[0]!r}, are in {calib.path} and in "
            f"{select.path}; a test on images that proposed the thresholds proves nothing"
        )


def _collected(table: ScoreTable) -> Collected:
    """The table as if an engine had said it, margins and gates in float32."""
    assert table.labels is not None, "read_scores(..., labelled=True)"
    exits = []
    for x in table.exits:
        half = (x.logit1 - x.logit0) / 2
        logits = np.stack([-half, half], axis=1).astype(np.float32)
        gate = np.abs(2 * half) if x.gate is None else x.gate
        exits.append(ExitOutputs(logits, gate.astype(np.float32)))
    names = table.names or tuple(str(i) for i in range(len(table)))
    return Collected(exits, table.labels, names, table.content_sha256(), table.groups)


def _threshold(table: ScoreTable, rule: ExitRule, stage: int) -> Threshold:
    """The smallest float64 of the table's column that reaches the rule's threshold in float32."""
    by_gate = rule.score == "gate" and table.exits[stage].gate is not None
    column = "gate" if by_gate else "|logit1 - logit0|"
    if table.kind == "score":
        column = "score"
    if rule.tau_logit is None:
        return Threshold(column, float("inf"))
    if table.kind == "score" and not by_gate:  # the score tells nothing: act on all, or on none
        return Threshold(column, float("-inf"))
    tau = np.float32(rule.tau_logit)

    def reaches(value: float) -> bool:
        with np.errstate(over="ignore"):
            if rule.score == "gate":
                scaled = np.float32(rule.platt_a) * np.float32(value)
                return bool(np.float32(scaled + np.float32(rule.platt_b)) >= tau)
            return bool(2 * np.float32(value / 2) / np.float32(rule.temperature) >= tau)

    return Threshold(column, _smallest(reaches, -np.inf if by_gate else 0.0))


def _smallest(reaches: Callable[[float], bool], low: float) -> float:
    """The smallest float64 from `low` for which an increasing condition holds, by bisection."""
    first, last = _rank(low), _rank(np.inf)
    while first < last:
        middle = (first + last) // 2
        if reaches(_float(middle)):
            last = middle
        else:
            first = middle + 1
    return _float(first)


def _rank(value: float) -> int:
    """float64 numbers counted in their order, 0.0 at 0."""
    bits = int(np.float64(value).view(np.int64))
    return bits if bits >= 0 else -(bits & 0x7FFF_FFFF_FFFF_FFFF)


def _float(rank: int) -> float:
    return float(np.int64(abs(rank)).view(np.float64)) * (1 if rank >= 0 else -1)


def _check_counts(
    table: ScoreTable, thresholds: Sequence[Threshold], certificate: Certificate
) -> None:
    """That the rule as printed acts and errs as often as was tested."""
    label = np.full(len(table), -1)
    pending = np.ones(len(table), dtype=np.bool_)
    for x, t in zip(table.exits, thresholds, strict=True):
        margin = x.logit1 - x.logit0
        value: Float64 = np.abs(margin)
        if not t.column.startswith("|"):
            assert x.gate is not None
            value = x.gate
        answered = pending & (value >= t.at)
        said = np.where(margin > 0, 1, np.where(margin < 0, 0, -1))
        label[answered] = said[answered]
        pending &= ~answered
    acted = label >= 0
    counts = int(acted.sum()), int((acted & (label != table.labels)).sum())
    if counts != (certificate.accepted, certificate.errors):
        tested = certificate.accepted, certificate.errors
        raise RuntimeError(f"the rule as printed counts {counts}, tested was {tested}")


def _units(table: ScoreTable) -> tuple[int, np.ndarray]:
    """How many images or groups there are, and which one each row belongs to."""
    if table.groups is None:
        return len(table), np.arange(len(table))
    names, member = np.unique(np.asarray(table.groups), return_inverse=True)
    return len(names), member
