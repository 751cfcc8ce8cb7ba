"""Rows of a labels table, CSV or Parquet, as text cells.

In: a file with the columns path, label and perhaps group; others are left alone. Out: each row's
number in the file and its cells by column name, and a `DataError` naming the file and the row
where something does not fit.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

from cascade_runtime.errors import DataError
from cascade_runtime.preprocess import printable

Row: TypeAlias = tuple[int, dict[str, str]]

COLUMNS = ("path", "label", "group")
LABELLED = ("path", "label")


def csv_rows(path: Path, needed: Sequence[str] = LABELLED) -> Iterator[Row]:
    """The rows of a CSV file, UTF-8 with or without a byte-order mark; blank lines are passed over.

    A row's number is that of its last line in the file, the header being line 1.
    """
    where = printable(str(path))
    header: list[str] = []
    line = 1
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            for cells in reader:
                line = reader.line_num
                if not any(cell.strip() for cell in cells):
                    continue
                if not header:
                    header = _header(where, cells, needed)
                elif len(cells) != len(header):
                    raise DataError(
                        f"{where}: row {line} has {len(cells)} cells, the header has "
                        f"{len(header)}; a path that holds a comma needs quotes"
                    )
                else:
                    yield line, dict(zip(header, cells, strict=True))
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: is not UTF-8 ({error.reason}); save it as UTF-8") from error
    except csv.Error as error:
        raise DataError(f"{where}: not CSV after row {line} ({error})") from error
    except OSError as error:
        raise DataError(f"{where}: cannot be read ({error.strerror})") from error
    if not header:
        expected = ",".join(needed)
        raise DataError(f"{where}: is empty, expected a header {expected} or {expected},group")


def parquet_rows(path: Path, needed: Sequence[str] = LABELLED) -> Iterator[Row]:
    """The rows of a Parquet file, numbered from 1; labels may be text, integers or booleans."""
    where = printable(str(path))
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(
            f"{where}: reading Parquet needs pyarrow: pip install 'cascade-edge[calib]'"
        ) from error
    try:
        names = parquet.read_schema(path).names
        header = _header(where, names, needed)
        wanted = {key: name for name, key in zip(names, header, strict=True) if key in COLUMNS}
        table = parquet.read_table(path, columns=list(wanted.values())).to_pydict()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            f"{where}: not a readable Parquet file ({printable(str(error))})"
        ) from error
    columns = [table[name] for name in wanted.values()]
    for number, cells in enumerate(zip(*columns, strict=True), 1):
        text = ("" if cell is None else str(cell) for cell in cells)
        yield number, dict(zip(wanted, text, strict=True))


def _header(where: str, names: Sequence[str], needed: Sequence[str]) -> list[str]:
    """Column names in lower case, with the needed ones among them, each once."""
    header = [name.strip().lower() for name in names]
    for column in COLUMNS:
        if header.count(column) > 1:
            raise DataError(f"{where}: the column {column} is there twice")
        if column not in header and column in needed:
            expected = ",".join(needed)
            raise DataError(
                f"{where}: no column {column}; the header is {some(names)}, expected "
                f"{expected} or {expected},group"
            )
    return header


def some(names: Sequence[str]) -> str:
    """The first few names, for a message."""
    shown = ", ".join(printable(name) for name in names[:6]) or "none"
    return shown + (", ..." if len(names) > 6 else "")
