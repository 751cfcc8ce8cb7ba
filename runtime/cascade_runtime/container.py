"""The two forms of a bundle, a folder and an uncompressed zip, seen as a set of named files.

In: a path. Out: `Folder` or `Archive`: the names of the files in it, and the bytes of each.
Nothing is trusted here: links, odd names, compressed or duplicate members are refused by name.
Spec: docs/bundle-format.md, "Layout" and "Zip form".
"""

from __future__ import annotations

import os
import re
import stat
import struct
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol

from cascade_runtime.errors import BundleError

MAX_FILES = 10_000
MAX_NAME = 1024
_CHUNK = 1 << 20
_SEGMENT = r"[A-Za-z0-9][A-Za-z0-9._+-]*"
_NAME = re.compile(rf"{_SEGMENT}(?:/{_SEGMENT})*")
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    struct.error,
    EOFError,
    OSError,
    KeyError,
    ValueError,
    OverflowError,
    RuntimeError,  # an encrypted member; NotImplementedError, an unknown method, is one too
)


class Container(Protocol):
    """A set of named files."""

    def names(self) -> frozenset[str]:
        """Every file by its path relative to the root, with `/`."""
        ...

    def chunks(self, name: str) -> Iterator[bytes]:
        """The file's bytes, piece by piece."""
        ...

    def read(self, name: str) -> bytes:
        """The file's bytes at once."""
        ...


def open_container(path: str | os.PathLike[str]) -> Container:
    """The container at `path`; a link to a bundle is followed, a link inside one is not.

    Raises:
        BundleError: nothing there, or neither a folder nor a zip archive.
    """
    place = Path(path)
    if place.is_dir():
        return Folder(place)
    if not place.is_file():
        raise BundleError(f"{place}: no such bundle")
    return Archive(place)


def is_name(name: str) -> bool:
    """Whether a bundle may hold this path: plain ASCII segments, none beginning with a dot."""
    return len(name) <= MAX_NAME and _NAME.fullmatch(name) is not None


class Folder:
    """A bundle as a folder."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def names(self) -> frozenset[str]:
        return _counted(frozenset(self._walk(self._root, "")))

    def _walk(self, folder: Path, prefix: str) -> Iterator[str]:
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            raise BundleError(f"{folder}: cannot be listed ({error.strerror})") from error
        for entry in entries:
            name = prefix + entry.name
            if not is_name(name):
                raise BundleError(f"{name!r}: a name that a bundle cannot hold; remove the file")
            if entry.is_symlink():
                raise BundleError(f"{name}: is a link, a bundle holds only files; copy the file")
            if entry.is_dir():
                yield from self._walk(Path(entry.path), name + "/")
            elif entry.is_file():
                yield name
            else:
                raise BundleError(f"{name}: neither a file nor a folder; remove it")

    def chunks(self, name: str) -> Iterator[bytes]:
        with self._open(name) as stream:
            while chunk := stream.read(_CHUNK):
                yield chunk

    def read(self, name: str) -> bytes:
        with self._open(name) as stream:
            return stream.read()

    @contextmanager
    def _open(self, name: str) -> Iterator[IO[bytes]]:
        try:
            with (self._root / name).open("rb") as stream:
                yield stream
        except OSError as error:
            raise BundleError(f"{name}: cannot be read ({error.strerror})") from error


class Archive:
    """A bundle as one zip whose members are stored, not compressed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._errors(path.name), zipfile.ZipFile(path) as archive:
            members = archive.infolist()
        for member in members:
            _check_member(member)
        for name, times in Counter(member.filename for member in members).items():
            if times > 1:
                raise BundleError(f"{name}: is in the archive {times} times")
        if sum(member.file_size for member in members) > path.stat().st_size:
            raise BundleError(f"{path.name}: its members are larger than the archive; damaged")
        self._names = _counted(frozenset(member.filename for member in members))

    def names(self) -> frozenset[str]:
        return self._names

    def chunks(self, name: str) -> Iterator[bytes]:
        with (
            self._errors(name),
            zipfile.ZipFile(self._path) as archive,
            archive.open(name) as stream,
        ):
            while chunk := stream.read(_CHUNK):
                yield chunk

    def read(self, name: str) -> bytes:
        with self._errors(name), zipfile.ZipFile(self._path) as archive:
            return archive.read(name)

    @contextmanager
    def _errors(self, name: str) -> Iterator[None]:
        try:
            yield
        except _ZIP_ERRORS as error:
            raise BundleError(
                f"{name}: cannot be read, the zip archive {self._path.name} is damaged or is "
                f"none ({error})"
            ) from error


def _check_member(member: zipfile.ZipInfo) -> None:
    name = member.filename
    if not is_name(name) or member.orig_filename != name:
        raise BundleError(
            f"{member.orig_filename!r}: a name that a bundle cannot hold; "
            "pack files only, without entries for folders (zip -0 -D)"
        )
    if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
        raise BundleError(f"{name}: is compressed; pack the bundle without compression (zip -0)")
    if stat.S_ISLNK(member.external_attr >> 16):
        raise BundleError(f"{name}: is a link, a bundle holds only files; pack the file itself")


def _counted(names: frozenset[str]) -> frozenset[str]:
    if len(names) > MAX_FILES:
        raise BundleError(f"the bundle has {len(names)} files, the limit is {MAX_FILES}")
    return names
