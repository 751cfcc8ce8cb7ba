"""`cascade-calibrate drift`: may a certificate still be believed about new images?

In: a bundle, reference images drawn as the calibration images were, and new ones without labels.
Out: whether their scores and margins at every exit are exchangeable with the reference, at a stated
rate of false alarms. A promise is about images drawn as the calibration images were: on an alarm it
says nothing about the new ones. No alarm is no proof of the opposite.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cascade_calib.arrays import Float64
from cascade_calib.evaluate import json_safe
from cascade_calib.exchangeability import batch_test, ks_distances, stream_test
from cascade_calib.progress import Progress
from cascade_calib.score_table import ScoreTable, read_scores
from cascade_calib.unlabelled import read_unlabelled
from cascade_calib.words import percent
from cascade_runtime.bundle import Bundle
from cascade_runtime.cascade import choose_target
from cascade_runtime.decision import Bool, ExitOutputs, decide, margin, score_logit
from cascade_runtime.errors import DataError
from cascade_runtime.manifest import Decision, Manifest
from cascade_runtime.stages import load_stages

if TYPE_CHECKING:
    from cascade_calib.labelled import Loaded


@dataclass(frozen=True)
class Source:
    """Images to run, or a table of scores of images that were run already."""

    place: str
    is_table: bool = False
    split: str | None = None


@dataclass(frozen=True)
class Observed:
    """What the exits said of N images, in order; groups as given."""

    exits: list[ExitOutputs]
    names: tuple[str, ...]
    groups: tuple[str, ...] | None
    unreadable: int = 0

    def take(self, rows: np.ndarray) -> Observed:
        """The images at `rows`, in that order, without their groups."""
        exits = [out.take(rows) for out in self.exits]
        return Observed(exits, tuple(self.names[i] for i in rows), None, self.unreadable)


@dataclass(frozen=True)
class Drift:
    """What `cascade-calibrate drift` prints.

    reference, new: how many images each side tested; *_grouped: whether that is one a group.
    columns: what was looked at; distance: KS of each, in [0, 1].
    p_value: of a batch. alarm_at: the new image at which the alarm of a stream came; evidence: the
    largest capital of its martingales, in units of the bar.
    acts_on_*: the share of each side that the certified cascade acts on.
    unreadable: images of both that could not be read, which the test does not see.
    """

    target: str
    stream: bool
    false_alarm: float
    alarm: bool
    reference: int
    new: int
    reference_grouped: bool
    new_grouped: bool
    columns: tuple[str, ...]
    distance: tuple[float, ...]
    p_value: float | None
    alarm_at: str | None
    alarm_after: int | None
    evidence: float | None
    acts_on_reference: float
    acts_on_new: float
    unreadable: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe."""
        return {key: json_safe(value) for key, value in asdict(self).items()}


def drift(
    bundle: str | Path,
    reference: Source,
    new: Source,
    *,
    target: str = "auto",
    stream: bool = False,
    false_alarm: float = 0.01,
    seed: int = 0,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Drift:
    """Observe both sides on one target and test.

    Args:
        stream: test the new images one after another, in the order of their names or rows, rather
            than all at once in no order.

    Raises:
        DataError: nothing to read, a table of other scores than the bundle's, or a stream that is
            a split, whose order is not one of arrival.
    """
    if stream and new.split is not None:
        raise DataError(
            f"{new.place}: a split lists its images by name, class after class; a stream needs "
            "the order of arrival: a folder whose names tell it, or a table whose rows do"
        )
    opened = Bundle.open(bundle)
    if reference.is_table and new.is_table and target == "auto":
        target = next(iter(opened.manifest.targets))  # no engine runs: ranks are much the same
    else:
        target, _ = choose_target(opened.manifest, target)
    sides = _observe(opened, target, (reference, new), threads, progress)
    decision = opened.manifest.decision[target]
    return judge(
        sides[0],
        sides[1],
        decision,
        target=target,
        stream=stream,
        false_alarm=false_alarm,
        seed=seed,
    )


def judge(
    reference: Observed,
    new: Observed,
    decision: Decision,
    *,
    target: str,
    stream: bool = False,
    false_alarm: float = 0.01,
    seed: int = 0,
) -> Drift:
    """The same, from outputs already observed.

    Of a group, whose images are not independent, one is drawn by `seed` and the others left out.
    """
    rng = np.random.default_rng(seed)
    grouped = [side.groups is not None for side in (reference, new)]
    a, b = _one_a_group(reference, rng), _one_a_group(new, rng)
    names, before = _columns(a, decision)
    _, after = _columns(b, decision)
    p_value = alarm_at = alarm_after = evidence = None
    if stream:
        found = stream_test(before, after, false_alarm, seed=seed)
        evidence = float(np.exp(min(found.log_capital.max() - found.log_bar, 700.0)))
        alarm = found.alarm_at is not None
        if found.alarm_at is not None:
            alarm_at, alarm_after = b.names[found.alarm_at], found.alarm_at + 1
    else:
        p_value = batch_test(before, after, false_alarm, seed=seed).p_value
        alarm = p_value <= false_alarm
    return Drift(
        target=target,
        stream=stream,
        false_alarm=false_alarm,
        alarm=alarm,
        reference=len(a.names),
        new=len(b.names),
        reference_grouped=grouped[0],
        new_grouped=grouped[1],
        columns=names,
        distance=tuple(float(d) for d in ks_distances(before, after)),
        p_value=p_value,
        alarm_at=alarm_at,
        alarm_after=alarm_after,
        evidence=evidence,
        acts_on_reference=_acts_on(a, decision),
        acts_on_new=_acts_on(b, decision),
        unreadable=a.unreadable + b.unreadable,
    )


def as_text(result: Drift) -> str:
    """What was found, and what it means for the certificate."""
    widest = int(np.argmax(result.distance))
    seen = (
        f"{result.new:,} new against {result.reference:,} reference images"
        f"{_grouped(result)} on {result.target}; the largest difference is in the "
        f"{result.columns[widest]} (Kolmogorov-Smirnov distance {result.distance[widest]:.3f}). "
        f"The cascade acts on {percent(result.acts_on_reference)} of the reference images and "
        f"{percent(result.acts_on_new)} of the new ones."
    )
    if result.unreadable:
        seen += f" {result.unreadable} images could not be read and are not tested."
    rate = f"{percent(result.false_alarm)} of such tests alarm where nothing has changed"
    if result.stream and result.alarm:
        why = f"ALARM at new image {result.alarm_after} ({result.alarm_at})"
    elif result.stream:
        why = f"no alarm: the evidence reached {percent(result.evidence or 0.0)} of what it takes"
    else:
        why = f"{'ALARM' if result.alarm else 'no alarm'}: p = {result.p_value:.3g}"
    return f"{seen}\n{why}; at most {rate}.\n{_meaning(result)}"


def _meaning(result: Drift) -> str:
    if not result.alarm:
        return (
            "That does not prove that nothing has changed: a change too small for so many images, "
            "or one that leaves the scores as they were, is not seen."
        )
    order = ", or did not come in a random order" if result.stream else ""
    return (
        f"These images are not drawn as the reference images were{order}: the certificate says "
        "nothing about these images. Certify again on images of the new kind."
    )


def _grouped(result: Drift) -> str:
    sides = (result.new_grouped, result.reference_grouped)
    if sides == (True, True):
        return ", one of each group,"
    if any(sides):
        return f", of the {'new' if sides[0] else 'reference'} ones one of each group,"
    return ""


def _observe(
    opened: Bundle,
    target: str,
    sources: Sequence[Source],
    threads: int | None,
    progress: Progress | None,
) -> list[Observed]:
    from cascade_calib.collect import collect
    from cascade_calib.labelled import load_pixels

    manifest = opened.manifest
    stages = None
    found = []
    for source in sources:
        if source.is_table:
            found.append(_from_table(read_scores(source.place, labelled=False), manifest))
            continue
        if stages is None:
            stages = load_stages(manifest, target, opened.read, threads)
        images = read_unlabelled(source.place, split=source.split)
        loaded: Loaded = load_pixels(images, manifest.preprocess, progress=progress)
        seen = collect(stages, loaded, progress)
        found.append(Observed(seen.exits, seen.names, seen.groups, len(loaded.skipped)))
    return found


def _from_table(table: ScoreTable, manifest: Manifest) -> Observed:
    wanted = len(manifest.stages)
    gates = [x.gate for x in table.exits if x.gate is not None]
    if table.kind != "logits" or len(table.exits) != wanted or len(gates) != wanted:
        raise DataError(
            f"{table.path}: does not hold logits and gate of the bundle's {wanted} exits; make it "
            "with `cascade-calibrate scores export`"
        )
    exits = [
        ExitOutputs(
            np.stack([x.logit0, x.logit1], axis=1).astype(np.float32), gate.astype(np.float32)
        )
        for x, gate in zip(table.exits, gates, strict=True)
    ]
    names = table.names or tuple(f"row {i}" for i in range(1, len(table) + 1))
    return Observed(exits, names, table.groups)


def _columns(side: Observed, decision: Decision) -> tuple[tuple[str, ...], Float64]:
    """Score and margin of every exit, [N, 2S]; what is not finite ranks below everything."""
    names, columns = [], []
    with np.errstate(invalid="ignore", over="ignore"):
        for i, (out, rule) in enumerate(zip(side.exits, decision.exits, strict=True)):
            for what, values in (("score", score_logit(out, rule)), ("margin", margin(out, rule))):
                names.append(f"{what} of exit {i}")
                columns.append(np.where(np.isfinite(values), values, -np.inf))
    return tuple(names), np.stack(columns, axis=1).astype(np.float64)


def _one_a_group(side: Observed, rng: np.random.Generator) -> Observed:
    if side.groups is None:
        return side
    order = rng.permutation(len(side.names))
    _, first = np.unique(np.asarray(side.groups)[order], return_index=True)
    return side.take(np.sort(order[first]))


def _acts_on(side: Observed, decision: Decision) -> float:
    with np.errstate(invalid="ignore", over="ignore"):
        acted: Bool = decide(side.exits, decision).acted
    return float(acted.mean())
