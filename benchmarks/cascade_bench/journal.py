"""A JSONL file that survives its writer: whole lines, on the disk before the next is begun.

In: JSON objects. Out: one line each. A writer that was killed leaves at most one torn line at the
end, which the next one cuts off. Two writers at a time are refused.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from cascade_runtime.errors import ConfigError


class Journal:
    """Open for appending; `entries` is what earlier writers left."""

    def __init__(self, path: Path) -> None:
        """Open or make the file.

        Raises:
            ConfigError: another process writes it, or it is no JSONL file.
        """
        self._file = _opened(path)
        try:
            _lock(self._file.fileno(), path)
            data = self._file.read()
            whole = data.rfind(b"\n") + 1
            self.entries = parse(data[:whole], path)
            if whole < len(data):
                self._file.truncate(whole)
        except BaseException:
            self._file.close()
            raise

    def append(self, entry: dict[str, Any]) -> None:
        """One more line, written at once and flushed to the disk.

        Raises:
            OSError: it does not fit; the file is then as it was, and can be gone on with.
        """
        line = json.dumps(entry, allow_nan=False, separators=(",", ":")) + "\n"
        end, left = self._file.seek(0, os.SEEK_END), line.encode()
        try:
            while left:  # a disk that fills up takes a part, and says so only to the next write
                left = left[self._file.write(left) :]
            os.fsync(self._file.fileno())
        except BaseException:
            self._file.truncate(end)
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()


def read(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file that others may be writing.

    Raises:
        ConfigError: it is not there, or no JSONL file.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such file")
    data = path.read_bytes()
    return parse(data[: data.rfind(b"\n") + 1], path)


def parse(data: bytes, path: Path) -> list[dict[str, Any]]:
    found = []
    for number, line in enumerate(data.splitlines(), 1):
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise ConfigError(f"{path}: line {number} is not JSON ({error})") from error
        if not isinstance(entry, dict):
            raise ConfigError(f"{path}: line {number} is not a JSON object")
        found.append(entry)
    return found


def _opened(path: Path) -> Any:
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: the folder {path.parent} does not exist; make it first")
    if path.is_dir():
        raise ConfigError(f"{path} is a folder, must be a file")
    file = path.open("a+b", buffering=0)
    file.seek(0)
    return file


def _lock(descriptor: int, path: Path) -> None:
    """Held until the file is closed, by whatever ends the process."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise ConfigError(f"{path}: another process is writing it") from error
