"""Scores as a table, CSV or Parquet: what leaves a bundle, and what comes from models not ours.

In and out: a file with one row an image. Of the exits either `logit0, logit1[, gate]` (one exit),
`exit0_logit0, exit0_logit1, exit0_gate, exit1_…` (several), or `score, prediction` (one exit, any
score, higher is more trusted). Beside them `label` (0 or 1), and perhaps `name` and `group`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from cascade_calib.arrays import Float64
from cascade_calib.tables import some
from cascade_runtime.decision import Int8
from cascade_runtime.errors import ConfigError, DataError
from cascade_runtime.preprocess import printable

if TYPE_CHECKING:
    from cascade_calib.collect import Collected
    from cascade_runtime.decision import Verdict

Kind = Literal["logits", "score"]
EXPECTED = "label, logit0, logit1[, gate], or label, score, prediction"


@dataclass(frozen=True)
class ExitColumns:
    """One exit of N images: float64 [N] each, finite; `gate` is None where there is none."""

    logit0: Float64
    logit1: Float64
    gate: Float64 | None


@dataclass(frozen=True)
class ScoreTable:
    """N images: their exits, and what the file says beside them.

    Of a table of kind "score" the one exit has the score as its gate and a margin (logit1 - logit0)
    of 1 or -1, the prediction. labels is None where they were not asked for.
    """

    path: Path
    kind: Kind
    exits: tuple[ExitColumns, ...]
    labels: Int8 | None
    names: tuple[str, ...] | None
    groups: tuple[str, ...] | None

    def __len__(self) -> int:
        return len(self.exits[0].logit0)

    def select(self, index: npt.NDArray[np.intp]) -> ScoreTable:
        """The rows at `index`, in that order."""
        rows = [int(i) for i in index]
        return ScoreTable(
            self.path,
            self.kind,
            tuple(
                ExitColumns(
                    x.logit0[rows], x.logit1[rows], None if x.gate is None else x.gate[rows]
                )
                for x in self.exits
            ),
            None if self.labels is None else self.labels[rows],
            None if self.names is None else tuple(self.names[i] for i in rows),
            None if self.groups is None else tuple(self.groups[i] for i in rows),
        )

    def lines(self) -> list[str]:
        """Each row as one line of text: its numbers to the bit, and its label."""
        columns = [c for x in self.exits for c in (x.logit0, x.logit1, x.gate) if c is not None]
        labels = np.full(len(self), -1) if self.labels is None else self.labels
        return [
            " ".join([*(value.hex() for value in row), str(label)])
            for *row, label in zip(*(c.tolist() for c in columns), labels.tolist(), strict=True)
        ]

    def content_sha256(self) -> str:
        """The hash of the rows in any order: SHA-256 over their sorted lines."""
        return hashlib.sha256("\n".join(sorted(self.lines())).encode()).hexdigest()


def write_scores(path: Path, seen: Collected, verdict: Verdict) -> None:
    """Write one row an image, under a temporary name that is renamed; numbers stay float32.

    Columns: name, label, group where there is one, per exit its logits and gate, and the decision
    (0, 1, or -1 deferred) with the stage that was final and the reason (docs/bundle-format.md).

    Raises:
        ConfigError: the name ends neither in .csv nor in .parquet.
    """
    import pyarrow

    writer = _writer(path)
    columns: dict[str, Any] = {"name": list(seen.names), "label": seen.labels}
    if seen.groups is not None:
        columns["group"] = list(seen.groups)
    for i, out in enumerate(seen.exits):
        columns[f"exit{i}_logit0"] = np.ascontiguousarray(out.logits[:, 0])
        columns[f"exit{i}_logit1"] = np.ascontiguousarray(out.logits[:, 1])
        columns[f"exit{i}_gate"] = np.ascontiguousarray(out.gate)
    columns |= {"decision": verdict.label, "stage": verdict.stage, "reason": verdict.reason}
    part = path.with_name(f".{path.name}.part")
    try:
        writer(pyarrow.table(columns), part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """That `write_scores` will have where to write, before the work is done.

    Raises:
        ConfigError: another ending, or no such folder.
    """
    _writer(path)
    if not path.parent.is_dir():
        raise ConfigError(f"--out: the folder {path.parent} does not exist; make it first")


def read_scores(path: str | Path, *, labelled: bool = True) -> ScoreTable:
    """Read and check a table of scores.

    Raises:
        DataError: not a readable table, a missing column, no row, a value that is no finite
            number, or a label or a prediction that is neither 0 nor 1; names the row.
    """
    path = Path(path)
    where = printable(str(path))
    columns = _columns(path, where)
    exits, kind = _exits(columns, where)
    labels = _binary(columns, "label", where) if labelled else None
    if not len(exits[0].logit0):
        raise DataError(f"{where}: has no row below its header")
    return ScoreTable(
        path, kind, exits, labels, _texts(columns, "name"), _texts(columns, "group", where)
    )


def _columns(path: Path, where: str) -> dict[str, npt.NDArray[Any]]:
    """The file's columns by name in lower case; numbers as such, text as objects."""
    import pyarrow
    from pyarrow import csv, parquet

    suffix = path.suffix.lower()
    if suffix not in (".csv", ".parquet", ".pq"):
        raise DataError(f"{where}: expected a .csv or .parquet file, not {suffix!r}")
    try:
        if not path.stat().st_size:
            raise DataError(f"{where}: is empty, expected a table with the columns {EXPECTED}")
        if suffix == ".csv":  # names and groups stay text, also where they look like numbers
            text = csv.ConvertOptions(column_types={"name": "string", "group": "string"})
            table = csv.read_csv(path, convert_options=text)
        else:
            table = parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{where}: not a readable table ({printable(str(error))})") from error
    names = [name.strip().lower() for name in table.column_names]
    if twice := {name for name in names if names.count(name) > 1}:
        raise DataError(f"{where}: the column {min(twice)} is there twice")
    return {name: table.column(i).to_numpy(zero_copy_only=False) for i, name in enumerate(names)}


def _exits(
    columns: Mapping[str, npt.NDArray[Any]], where: str
) -> tuple[tuple[ExitColumns, ...], Kind]:
    if "score" in columns and not {"logit0", "exit0_logit0"} & columns.keys():
        said = _binary(columns, "prediction", where)
        margin = np.where(said == 1, 0.5, -0.5)
        return (ExitColumns(-margin, margin, _numbers(columns, "score", where)),), "score"
    prefix = "" if "logit0" in columns else "exit0_"
    if f"{prefix}logit0" not in columns:
        raise DataError(
            f"{where}: no column logit0 or score; the header is {some(list(columns))}, expected "
            f"{EXPECTED}"
        )
    prefixes = [prefix]
    while prefix and f"exit{len(prefixes)}_logit0" in columns:
        prefixes.append(f"exit{len(prefixes)}_")
    exits = tuple(
        ExitColumns(
            _numbers(columns, f"{p}logit0", where),
            _numbers(columns, f"{p}logit1", where),
            _numbers(columns, f"{p}gate", where) if f"{p}gate" in columns else None,
        )
        for p in prefixes
    )
    return exits, "logits"


def _numbers(columns: Mapping[str, npt.NDArray[Any]], name: str, where: str) -> Float64:
    if name not in columns:
        raise DataError(
            f"{where}: no column {name}; the header is {some(list(columns))}, expected {EXPECTED}"
        )
    try:
        values = np.asarray(columns[name], dtype=np.float64)
    except (TypeError, ValueError):
        values = np.array([_number(cell) for cell in columns[name]])
    with np.errstate(over="ignore"):
        bad = np.flatnonzero(~np.isfinite(values.astype(np.float32)))
    if len(bad):
        row = int(bad[0])
        raise DataError(
            f"{where}: row {row + 1} below the header has {name} {columns[name][row]!s:.40}, "
            f"expected a finite float32 number ({len(bad)} such rows); an image without a score "
            "is one to defer: leave it out"
        )
    return values


def _number(cell: object) -> float:
    try:
        return float(str(cell))
    except ValueError:
        return float("nan")


def _binary(columns: Mapping[str, npt.NDArray[Any]], name: str, where: str) -> Int8:
    values = _numbers(columns, name, where)
    bad = np.flatnonzero((values != 0) & (values != 1))
    if len(bad):
        row = int(bad[0])
        raise DataError(
            f"{where}: row {row + 1} below the header has {name} {values[row]:g}, expected 0 or 1"
        )
    return values.astype(np.int8)


def _texts(
    columns: Mapping[str, npt.NDArray[Any]], name: str, where: str | None = None
) -> tuple[str, ...] | None:
    """A column of text; with `where`, empty cells are refused."""
    if name not in columns:
        return None
    cells: Sequence[object] = columns[name].tolist()
    if where is not None:
        for row, cell in enumerate(cells, 1):
            if cell is None or not str(cell).strip():
                raise DataError(
                    f"{where}: row {row} below the header has no {name}; fill it in, or leave the "
                    "column out"
                )
    return tuple(str(cell) for cell in cells)


def _writer(path: Path) -> Any:
    from pyarrow import csv, parquet

    suffix = path.suffix.lower()
    if suffix == ".csv":
        return csv.write_csv
    if suffix in (".parquet", ".pq"):
        return parquet.write_table
    raise ConfigError(f"--out {path.name!r} must end in .parquet or .csv")
