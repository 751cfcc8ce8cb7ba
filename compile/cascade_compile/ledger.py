"""How often a calibration set has been asked: `RUN/calibration_uses.json`.

Certifying the same images again after a look at the result is one more test; the count goes into
the certificate so that a reader can see it (CALIBRATION, "Certifying what is acted on").
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from cascade_calib.labelled import Loaded, content_sha256
from cascade_runtime.errors import ConfigError
from cascade_train.checkpoint import write_atomic

LEDGER = "calibration_uses.json"


def count_use(run: Path, data: Loaded, parts: Iterable[Path] = ()) -> int:
    """Record one more use of these images and return how many that makes.

    Args:
        parts: the runs that this one joins, whose uses count as well: they led to it.

    Raises:
        ConfigError: a ledger is damaged.
    """
    digest = content_sha256(data.pixels, data.labels)
    uses = _read(run)
    uses[digest] = uses.get(digest, 0) + 1
    earlier = sum(_read(part).get(digest, 0) for part in parts)
    _write(run, uses)
    return uses[digest] + earlier


def carry(run: Path, out: Path) -> None:
    """Give `out`, which has what `run` was trained to be, the uses that `run` has made so far.

    Raises:
        ConfigError: the ledger is damaged.
    """
    if uses := _read(run):
        _write(out, uses)


def _read(run: Path) -> dict[str, int]:
    path = run / LEDGER
    if not path.exists():
        return {}
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, int])
    except msgspec.DecodeError as error:
        raise ConfigError(f"{path} is damaged ({error}); restore it") from error


def _write(run: Path, uses: dict[str, int]) -> None:
    encoded = msgspec.json.format(msgspec.json.encode(uses), indent=2) + b"\n"
    write_atomic(run / LEDGER, encoded)
