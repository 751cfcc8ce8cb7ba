"""`cascade-calibrate compare`: two bundles, or two targets of one, on the same labelled images.

In: two open cascades and labelled images. Out: both sides' figures and their differences, each
with a bootstrap interval over *pairs*: an image, or a group, is drawn for both sides at once, so
what it is that makes it hard cancels. Coverage and risk decide which is better, if either is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from cascade_calib.bootstrap import LEVEL, RESAMPLES, Interval, difference_intervals
from cascade_calib.bounds import clopper_pearson_upper
from cascade_calib.collect import Collected, collect
from cascade_calib.evaluate import (
    figure_names,
    in_the_classes_of,
    json_safe,
    share,
    shares,
    span,
)
from cascade_calib.path import SET_POLICIES
from cascade_calib.progress import Progress
from cascade_calib.words import percent
from cascade_runtime.decision import Bool, Verdict, decide
from cascade_runtime.errors import ConfigError
from cascade_runtime.manifest import Certificate, Decision

if TYPE_CHECKING:
    from rich.table import Table

    from cascade_calib.labelled import LabelledImages, Loaded
    from cascade_runtime.cascade import Cascade

Better = Literal["first", "second", "neither"]
DECIDING = ("coverage", "risk")
JOINT_LEVEL = 1 - (1 - LEVEL) / len(DECIDING)  # each, so that both hold at once at LEVEL


@dataclass(frozen=True)
class Side:
    """One of the two: where it comes from, and what it promises."""

    name: str
    target: str
    status: str
    alpha: float
    policy: str


@dataclass(frozen=True)
class Difference:
    """One figure on both sides, and first minus second with its 95 % interval.

    `joint` is the interval by which coverage and risk are judged, wider so that the two are right
    together with 95 % confidence.
    """

    first: float
    second: float
    difference: float
    interval: Interval
    joint: Interval


@dataclass(frozen=True)
class Comparison:
    """What `cascade-calibrate compare` prints.

    alike: images that both sides decide alike. coverage_better and risk_better: the side that the
    data show to cover more, to be wrong less often; better: the side ahead in one of these and
    not shown to be behind in the other.
    """

    sides: tuple[Side, Side]
    classes: tuple[str, str]
    images: int
    skipped: int
    alike: int
    figures: dict[str, Difference]
    exits: tuple[Difference, ...]
    coverage_better: Better
    risk_better: Better
    better: Better
    is_calibration_set: bool
    content_sha256: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe: NaN becomes None."""
        return {key: json_safe(value) for key, value in asdict(self).items()}


def parse_side(text: str) -> tuple[str, str]:
    """`BUNDLE` or `BUNDLE#TARGET` as (bundle, target), "auto" where none is named.

    Raises:
        ConfigError: nothing before or after the `#`.
    """
    if Path(text).exists() or "#" not in text:
        return text, "auto"
    bundle, _, target = text.rpartition("#")
    if not bundle or not target:
        raise ConfigError(f"{text!r} is neither BUNDLE nor BUNDLE#TARGET, as x.cascade#auto")
    return bundle, target


def compare(
    first: Cascade,
    second: Cascade,
    images: LabelledImages,
    *,
    batch_size: int = 32,
    resamples: int = RESAMPLES,
    seed: int = 0,
    progress: Progress | None = None,
) -> Comparison:
    """Run both over the images that both can read, and compare.

    Raises:
        ConfigError: the two answer with different classes.
        DataError: no image can be read, or the images have other classes than the bundles.
    """
    classes = first.manifest.model.classes
    if second.manifest.model.classes != classes:
        raise ConfigError(
            f"the first bundle answers {' or '.join(map(repr, classes))}, the second "
            f"{' or '.join(map(repr, second.manifest.model.classes))}; only like can be compared"
        )
    images = in_the_classes_of(images, classes)
    loaded = _load_for_both(first, second, images, progress)
    seen = [
        collect(cascade.stages, pixels, progress, batch_size)
        for cascade, pixels in zip((first, second), loaded, strict=True)
    ]
    return compare_collected(
        (seen[0], seen[1]),
        (first.decision, second.decision),
        (first.certificate, second.certificate),
        names=((str(first.bundle.path), first.target), (str(second.bundle.path), second.target)),
        classes=classes,
        skipped=len(images) - len(loaded[0]),
        resamples=resamples,
        seed=seed,
    )


def compare_collected(
    seen: tuple[Collected, Collected],
    decisions: tuple[Decision, Decision],
    certificates: tuple[Certificate, Certificate],
    *,
    names: tuple[tuple[str, str], tuple[str, str]],
    classes: tuple[str, str],
    skipped: int = 0,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """The same, from outputs already collected on the same images in the same order."""
    if seen[0].names != seen[1].names:
        raise ValueError("the two sides were collected on different images")
    verdicts = [decide(s.exits, d) for s, d in zip(seen, decisions, strict=True)]
    figures = [shares(s, v) for s, v in zip(seen, verdicts, strict=True)]
    depth = max(len(s.exits) for s in seen)
    exits = [_per_exit(verdict, depth) for verdict in verdicts]
    columns = [[*f.values(), *x] for f, x in zip(figures, exits, strict=True)]
    found = _differences(columns[0], columns[1], seen[0].groups, resamples, seed)
    named = dict(zip(figures[0], found, strict=False))
    coverage = _ahead(named["coverage"], more_is_better=True)
    risk = _ahead(named["risk"], more_is_better=False)
    return Comparison(
        sides=(
            _side(names[0], certificates[0], decisions[0]),
            _side(names[1], certificates[1], decisions[1]),
        ),
        classes=classes,
        images=len(seen[0]),
        skipped=skipped,
        alike=int((verdicts[0].label == verdicts[1].label).sum()),
        figures=named,
        exits=tuple(found[len(named) :]),
        coverage_better=coverage,
        risk_better=risk,
        better=_overall(coverage, risk),
        is_calibration_set=any(
            s.content_sha256 == c.calibration_sha256
            for s, c in zip(seen, certificates, strict=True)
        ),
        content_sha256=seen[0].content_sha256,
    )


def tables(result: Comparison) -> list[Table]:
    """Both sides beside each other as a rich table."""
    from rich.table import Table

    a, b = ("A", "B")
    table = Table("figure", a, b, f"{a} - {b}", "95 % interval")
    rows = [(name, result.figures[field]) for field, name in figure_names(result.classes).items()]
    rows += [(f"acted on at exit {i}", exit_) for i, exit_ in enumerate(result.exits)]
    for name, d in rows:
        table.add_row(name, share(d.first), share(d.second), share(d.difference), span(d.interval))
    return [table]


def conclusion(result: Comparison) -> str:
    """Which is better, or that these images cannot tell."""
    lines = [
        f"{letter}: {side.name}, {side.target}, policy {side.policy}, {side.status} at alpha "
        f"{percent(side.alpha, 6)}{' of sets' if side.policy in SET_POLICIES else ''}."
        for letter, side in zip("AB", result.sides, strict=True)
    ]
    lines.append(f"{_verdict(result)} They decide {result.alike} of {result.images} images alike.")
    if result.is_calibration_set:
        lines.append(
            "These are calibration images of one of them: choosing by them voids its promise."
        )
    elif result.better != "neither":
        lines.append(
            "A choice made by these images is to be evaluated on others: the better of two looks "
            "better than it is."
        )
    if result.skipped:
        lines.append(f"{result.skipped} images could not be read and are not counted.")
    return "\n".join(lines)


def _verdict(result: Comparison) -> str:
    letter = {"first": "A", "second": "B", "neither": ""}
    wide, right = letter[result.coverage_better], letter[result.risk_better]
    sure = "(both judgements together at 95 % confidence)."
    if wide and wide == right:
        return f"{wide} is better: it acts on more images and is wrong less often {sure}"
    if wide and right:
        return f"Neither is better: {wide} acts on more images, {right} is wrong less often {sure}"
    if wide:
        return (
            f"{wide} is better: it acts on more images, and no difference in risk can be told "
            f"{sure}"
        )
    if right:
        return (
            f"{right} is better: it is wrong less often, and no difference in coverage can be "
            f"told {sure}"
        )
    return (
        "The data cannot tell which is better: the differences in coverage and in risk are within "
        "chance."
    )


def _differences(
    first: Sequence[tuple[Bool, Bool]],
    second: Sequence[tuple[Bool, Bool]],
    groups: Sequence[str] | None,
    resamples: int,
    seed: int,
) -> list[Difference]:
    pairs = [
        tuple(np.stack(column, axis=1) for column in zip(*x, strict=True)) for x in (first, second)
    ]
    usual, joint = difference_intervals(
        (pairs[0][0], pairs[0][1]),
        (pairs[1][0], pairs[1][1]),
        groups,
        resamples=resamples,
        seed=seed,
        levels=(LEVEL, JOINT_LEVEL),
    )
    found = []
    for i, (one, other) in enumerate(zip(first, second, strict=True)):
        values = [
            float(top.sum() / n) if (n := bottom.sum()) else float("nan")
            for top, bottom in (one, other)
        ]
        of = min(_units(one[1], groups), _units(other[1], groups))
        found.append(
            Difference(
                values[0],
                values[1],
                values[0] - values[1],
                _never_seen(usual[i], of, LEVEL),
                _never_seen(joint[i], of, JOINT_LEVEL),
            )
        )
    return found


def _never_seen(interval: Interval, of: int, level: float) -> Interval:
    """Where all resamples agree: as far as a difference seen on none of so many may reach."""
    if not of or interval.low != interval.high:
        return interval
    reach = clopper_pearson_upper(0, of, Fraction(1 - level).limit_denominator(1000) / 2)
    return Interval(interval.low - reach, interval.high + reach)


def _units(of: Bool, groups: Sequence[str] | None) -> int:
    if groups is None:
        return int(of.sum())
    return len({group for group, counts in zip(groups, of, strict=True) if counts})


def _per_exit(verdict: Verdict, depth: int) -> list[tuple[Bool, Bool]]:
    everything = np.ones(len(verdict.label), dtype=np.bool_)
    return [(verdict.acted & (verdict.stage == stage), everything) for stage in range(depth)]


def _ahead(difference: Difference, *, more_is_better: bool) -> Better:
    low, high = difference.joint
    if low > 0:
        return "first" if more_is_better else "second"
    if high < 0:
        return "second" if more_is_better else "first"
    return "neither"


def _overall(coverage: Better, risk: Better) -> Better:
    shown = {coverage, risk} - {"neither"}
    return shown.pop() if len(shown) == 1 else "neither"


def _side(name: tuple[str, str], certificate: Certificate, decision: Decision) -> Side:
    return Side(name[0], name[1], certificate.status, certificate.alpha, decision.policy)


def _load_for_both(
    first: Cascade, second: Cascade, images: LabelledImages, progress: Progress | None
) -> tuple[Loaded, Loaded]:
    """The pixels each side sees, of the images that both can read."""
    from cascade_calib.labelled import load_pixels

    one = load_pixels(images, first.preprocess, progress=progress)
    if second.preprocess == first.preprocess:
        return one, one
    two = load_pixels(images, second.preprocess, progress=progress)
    both = set(one.names) & set(two.names)
    return _named(one, both), _named(two, both)


def _named(loaded: Loaded, names: set[str]) -> Loaded:
    return loaded.select([i for i, name in enumerate(loaded.names) if name in names])
