"""The format of `splits.json`: which image is in which of the four splits, and its hash.

In and out: the file. `cascade_train.data` makes it, everything later reads it. Its bytes are
deterministic, one image a line, so that two versions can be compared with `diff`.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import msgspec

from cascade_runtime.errors import DataError
from cascade_runtime.preprocess import printable

FORMAT = "cascade-edge.splits"
VERSION = 1
SPLITS_NAME = "splits.json"
SPLITS = ("train", "val_select", "val_calib", "val_test")


class Skipped(msgspec.Struct, frozen=True):
    """An image that is not used, and why."""

    path: str
    reason: str


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One image: `sha256` is `labelled.pixels_sha256` of its full-size RGB pixels."""

    path: str
    label: int
    split: str
    sha256: str
    group: str | None = None


class Splits(msgspec.Struct, frozen=True, kw_only=True):
    """`splits.json`. `root` holds the paths; a relative root starts at the file's own folder.

    `content_sha256` is, for each split, `content_hash` over its entries.
    """

    format: str = FORMAT
    version: int = VERSION
    source: str
    root: str
    classes: tuple[str, str]
    seed: int
    fractions: dict[str, float]
    content_sha256: dict[str, str]
    entries: tuple[Entry, ...]
    skipped: tuple[Skipped, ...]

    def of(self, split: str) -> tuple[Entry, ...]:
        """The entries of one split."""
        return tuple(entry for entry in self.entries if entry.split == split)


def content_hash(hashes: Iterable[str], labels: Iterable[int]) -> str:
    """SHA-256 over the sorted lines `<sha256> <label>`: the same for every order of the images."""
    lines = sorted(f"{digest} {label}\n" for digest, label in zip(hashes, labels, strict=True))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def write_splits(splits: Splits, path: Path) -> None:
    """Write `splits.json` under a temporary name and rename it: a kill leaves no half file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(encode(splits))
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def encode(splits: Splits) -> bytes:
    """JSON with one field a line, and one image a line."""
    fields: list[bytes] = []
    for name in splits.__struct_fields__:
        value = getattr(splits, name)
        if name in ("entries", "skipped") and value:
            rows = b",\n    ".join(msgspec.json.encode(row) for row in value)
            text = b"[\n    " + rows + b"\n  ]"
        else:
            text = msgspec.json.encode(value)
        fields.append(b'  "' + name.encode() + b'": ' + text)
    return b"{\n" + b",\n".join(fields) + b"\n}\n"


def read_splits(path: str | Path) -> Splits:
    """Read and check a `splits.json`.

    Raises:
        DataError: missing, not JSON, another format or version, or a field that does not fit.
    """
    where = printable(str(path))
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{where}: cannot be read ({error.strerror})") from error
    try:
        head = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
        name = msgspec.json.decode(head.get("format", b"null"))
        version = msgspec.json.decode(head.get("version", b"null"))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{where}: not a splits file ({error})") from error
    if name != FORMAT or version != VERSION:
        raise DataError(
            f"{where}: is {name!r} version {version!r}, this reader knows {FORMAT!r} version "
            f"{VERSION}; make it again with `cascade-train`"
        )
    try:
        splits = msgspec.json.decode(data, type=Splits)
    except (msgspec.ValidationError, UnicodeDecodeError) as error:
        raise DataError(f"{where}: {error}") from error
    _check(splits, where)
    return splits


def _check(splits: Splits, where: str) -> None:
    """The relations between fields that a type cannot say."""
    seen: set[str] = set()
    for row, entry in enumerate(splits.entries, 1):
        item = f"{where}: entry {row} ({entry.path!r})"
        if entry.split not in SPLITS:
            raise DataError(f"{item}: split is {entry.split!r}, expected one of {SPLITS}")
        if entry.label not in (0, 1):
            raise DataError(f"{item}: label is {entry.label}, expected 0 or 1")
        if entry.path in seen:
            raise DataError(f"{item}: the path is listed twice")
        seen.add(entry.path)
    grouped = {entry.group is not None for entry in splits.entries}
    if len(grouped) > 1:
        raise DataError(f"{where}: some entries have a group and some have none")
    for split in SPLITS:
        entries = splits.of(split)
        found = content_hash([e.sha256 for e in entries], [e.label for e in entries])
        if entries and splits.content_sha256.get(split) != found:
            raise DataError(
                f"{where}: content_sha256 of {split} does not match its entries; the file was "
                "edited, make it again"
            )
