"""`cascade-compile diff`: what two bundles say, and which images they decide, differently.

In: two bundles and, perhaps, images. Out: a `BundleDiff`: every manifest field with another value,
every engine with other bytes, and the files whose decisions differ. Each bundle reads the images
through its own preprocessing, as in service. Labels are not looked at: which of two is better is
what `cascade-calibrate compare` asks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from cascade_calib.compare import parse_side
from cascade_calib.listing import images_below, read_labelled
from cascade_runtime.bundle import Bundle
from cascade_runtime.cascade import Cascade, Result
from cascade_runtime.errors import ConfigError, DataError
from cascade_runtime.preprocess import printable

if TYPE_CHECKING:
    from rich.table import Table

    from cascade_calib.progress import Progress

BATCH = 32
SHOWN_FILES = 10
_CELL = 60
Kind = Literal["alike", "other class", "first defers", "second defers"]
# The gravest first: both act, and one of them is wrong.
KINDS: tuple[Kind, ...] = ("other class", "first defers", "second defers", "alike")


@dataclass(frozen=True)
class Field:
    """A manifest field by its path, and its value on either side; None where it is not there."""

    name: str
    first: Any
    second: Any


@dataclass(frozen=True)
class OtherDecision:
    """An image that the two decide differently; None is deferred."""

    file: str
    kind: Kind
    first: str | None
    second: str | None
    first_reason: str
    second_reason: str


@dataclass(frozen=True)
class Decisions:
    """Over `images` of `source`, by kind. files: those not alike, the gravest kind first."""

    source: str
    targets: tuple[str, str]
    images: int
    counts: dict[str, int]
    files: tuple[OtherDecision, ...]

    @property
    def different(self) -> int:
        return self.images - self.counts["alike"]


@dataclass(frozen=True)
class BundleDiff:
    """Two bundles. same_files: whether every listed file has the same bytes."""

    bundles: tuple[str, str]
    same_files: bool
    fields: tuple[Field, ...]
    decisions: Decisions | None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def diff(
    first: str,
    second: str,
    *,
    data: str | None = None,
    split: str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> BundleDiff:
    """Compare two bundles, `BUNDLE` or `BUNDLE#TARGET` each; the target is for the decisions.

    Args:
        data: a folder of images, or whatever `read_labelled` reads; None compares no decisions.
        split: which split, if `data` is a splits.json.

    Raises:
        BundleError: one of them is not valid.
        TargetError: one of them cannot run here (only with `data`).
        ConfigError, DataError: the images cannot be used.
    """
    sides = (parse_side(first), parse_side(second))
    opened = [Bundle.open(path) for path, _ in sides]
    decisions = None
    if data is not None:
        files = _images(data, split)
        cascades = [Cascade.open(p, t, threads=threads, warm_up=False) for p, t in sides]
        decisions = _decisions(cascades[0], cascades[1], files, data, progress)
    values = [msgspec.to_builtins(bundle.manifest) for bundle in opened]
    return BundleDiff(
        (sides[0][0], sides[1][0]),
        opened[0].hashes == opened[1].hashes,
        tuple(differences(values[0], values[1])),
        decisions,
    )


def differences(first: Any, second: Any, name: str = "") -> Iterator[Field]:
    """Between two manifests as plain values, below the path `name`.

    Leaves with different values, in the order of the format; what only one side has is whole.
    """
    if isinstance(first, dict) and isinstance(second, dict):
        for key in dict.fromkeys((*first, *second)):
            below = f"{name}.{key}" if name else str(key)
            yield from differences(first.get(key), second.get(key), below)
    elif _are_lists_of_objects(first, second):
        for index in range(max(len(first), len(second))):
            a, b = (side[index] if index < len(side) else None for side in (first, second))
            yield from differences(a, b, f"{name}[{index}]")
    elif first != second:
        yield Field(name, first, second)


def _are_lists_of_objects(*sides: Any) -> bool:
    return all(isinstance(s, list | tuple) and s and isinstance(s[0], dict) for s in sides)


def _images(data: str, split: str | None) -> list[Path]:
    """The files, in order of their names."""
    place = Path(data)
    if place.is_dir():
        if split is not None:
            raise ConfigError(f"--split {split!r} is about a splits.json, {data} is a folder")
        files = [place / name for name in images_below(place)]
    else:
        labelled = read_labelled(data, split=split)
        files = [labelled.file(i) for i in range(len(labelled))]
    if not files:
        raise DataError(f"{data}: no images in this folder")
    return sorted(files)


def _decisions(
    first: Cascade, second: Cascade, files: Sequence[Path], source: str, progress: Progress | None
) -> Decisions:
    counts: Counter[str] = Counter()
    found: list[OtherDecision] = []
    for start in range(0, len(files), BATCH):
        batch = files[start : start + BATCH]
        for file, a, b in zip(batch, first.classify(batch), second.classify(batch), strict=True):
            kind = _kind(a, b)
            counts[kind] += 1
            if kind != "alike":
                found.append(
                    OtherDecision(str(file), kind, a.decision, b.decision, a.reason, b.reason)
                )
        if progress is not None:
            progress("deciding", start + len(batch), len(files))
    found.sort(key=lambda one: KINDS.index(one.kind))  # stable: by name within a kind
    counted: dict[str, int] = {kind: counts[kind] for kind in KINDS}
    return Decisions(source, (first.target, second.target), len(files), counted, tuple(found))


def _kind(first: Result, second: Result) -> Kind:
    if first.decision == second.decision:
        return "alike"
    if first.decision is None:
        return "first defers"
    return "second defers" if second.decision is None else "other class"


def tables(result: BundleDiff) -> list[Table]:
    """The fields; then the images."""
    from rich.table import Table

    found = []
    if result.fields:
        fields = Table("field", "A", "B")
        fields.columns[0].overflow = "fold"  # whole, so that it can be looked up
        for field in result.fields:
            fields.add_row(printable(field.name), _cell(field.first), _cell(field.second))
        found.append(fields)
    if result.decisions is not None and result.decisions.files:
        files = Table("file", "A", "B")
        files.columns[0].overflow = "fold"
        for one in result.decisions.files[:SHOWN_FILES]:
            a = one.first or f"deferred: {one.first_reason}"
            b = one.second or f"deferred: {one.second_reason}"
            files.add_row(*map(printable, (one.file, a, b)))
        found.append(files)
    return found


def conclusion(result: BundleDiff) -> str:
    """How much is different, in sentences."""
    lines = []
    if result.same_files:
        lines.append("Every file of the two has the same bytes.")
    else:
        lines.append(f"{len(result.fields)} fields of the manifest differ.")
    decisions = result.decisions
    if decisions is not None:
        counts = decisions.counts
        lines.append(
            f"{decisions.different} of {decisions.images} images are decided differently: "
            f"{counts['other class']} by another class, {counts['first defers']} where only A "
            f"defers, {counts['second defers']} where only B does."
        )
        if len(decisions.files) > SHOWN_FILES:
            lines.append(f"The first {SHOWN_FILES} are shown; --json lists all of them.")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    """A value, short enough to stand beside another."""
    if value is None:
        return "-"
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return printable(text if len(text) <= _CELL else f"{text[: _CELL - 1]}…")
