"""The two forms of a bundle, a folder and an uncompressed zip, seen as a set of named files.

In: a path. Out: `Folder` or `Archive`: the names of the files in it, and the bytes of each.
Nothing is trusted here: links, odd names, compressed, duplicate or overlapping members are refused
by name, and nothing is read before its size is known to be bearable.
Spec: docs/bundle-format.md, "Layout" and "Zip form".
"""

from __future__ import annotations

import io
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
MAX_DIRECTORY_BYTES = 4 << 20
_LOCAL_HEADER_BYTES = 30
_CHUNK = 1 << 20
_SEGMENT = r"[A-Za-z0-9][A-Za-z0-9._+-]*"
_NAME = re.compile(rf"{_SEGMENT}(?:/{_SEGMENT})*")
# Where the system has them: follow no link, wait for no pipe, leave line ends alone.
_NO_LINK: int = getattr(os, "O_NOFOLLOW", 0)
_NO_WAIT: int = getattr(os, "O_NONBLOCK", 0)
_BINARY: int = getattr(os, "O_BINARY", 0)
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

    def size(self, name: str) -> int:
        """How many bytes the file has."""
        ...

    def read(self, name: str, limit: int | None = None) -> bytes:
        """The file's bytes at once; BundleError where they are more than `limit`."""
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
        found: set[str] = set()
        for name in self._walk(self._root, ""):
            found.add(name)
            _check_count(len(found))
        return frozenset(found)

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

    def size(self, name: str) -> int:
        with self._open(name) as stream:
            return os.fstat(stream.fileno()).st_size

    def read(self, name: str, limit: int | None = None) -> bytes:
        with self._open(name) as stream:
            _check_size(name, os.fstat(stream.fileno()).st_size, limit)
            return stream.read() if limit is None else stream.read(limit)

    @contextmanager
    def _open(self, name: str) -> Iterator[IO[bytes]]:
        """The file, still a file: what was put in its place meanwhile is not waited for."""
        try:
            handle = os.open(self._root / name, os.O_RDONLY | _NO_LINK | _NO_WAIT | _BINARY)
            with os.fdopen(handle, "rb") as stream:
                if not stat.S_ISREG(os.fstat(handle).st_mode):
                    raise BundleError(f"{name}: is no file any more; copy the bundle again")
                yield stream
        except OSError as error:
            raise BundleError(f"{name}: cannot be read ({error.strerror})") from error


class Archive:
    """A bundle as one zip whose members are stored, not compressed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._errors(path.name), _Scan(path) as file, zipfile.ZipFile(file) as archive:
            members = archive.infolist()
        _check_count(len(members))
        for member in members:
            _check_member(member)
        for name, times in Counter(member.filename for member in members).items():
            if times > 1:
                raise BundleError(f"{name}: is in the archive {times} times")
        if sum(member.file_size for member in members) > path.stat().st_size:
            raise BundleError(f"{path.name}: its members are larger than the archive; damaged")
        _check_apart(members, path.stat().st_size)
        self._sizes = {member.filename: member.file_size for member in members}

    def names(self) -> frozenset[str]:
        return frozenset(self._sizes)

    def chunks(self, name: str) -> Iterator[bytes]:
        with (
            self._errors(name),
            zipfile.ZipFile(self._path) as archive,
            archive.open(name) as stream,
        ):
            while chunk := stream.read(_CHUNK):
                yield chunk

    def size(self, name: str) -> int:
        return self._sizes[name]

    def read(self, name: str, limit: int | None = None) -> bytes:
        _check_size(name, self._sizes.get(name, 0), limit)
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


def _check_apart(members: list[zipfile.ZipInfo], size: int) -> None:
    """That no two members share a byte: otherwise one small file could stand for many big ones."""
    end, before = 0, ""
    for member in sorted(members, key=lambda member: member.header_offset):
        name, start = member.filename, member.header_offset
        if start < end:
            raise BundleError(f"{name}: overlaps {before or 'the front'} in the archive; damaged")
        end = start + _LOCAL_HEADER_BYTES + len(name) + member.file_size
        if end > size:
            raise BundleError(f"{name}: lies outside the archive; it is cut short, copy it again")
        before = name


def _check_count(files: int) -> None:
    if files > MAX_FILES:
        raise BundleError(f"the bundle has at least {files} files, the limit is {MAX_FILES}")


def _check_size(name: str, size: int, limit: int | None) -> None:
    if limit is not None and size > limit:
        raise BundleError(f"{name}: {size} bytes, the limit is {limit}; this is no bundle of ours")


class _Scan(io.FileIO):
    """A zip whose directory alone is read: never more at once than a directory may have."""

    def read(self, size: int | None = -1, /) -> bytes:
        left = os.fstat(self.fileno()).st_size - self.tell()
        wanted = left if size is None or size < 0 else size
        if min(wanted, left) > MAX_DIRECTORY_BYTES:
            raise ValueError(f"its directory is over {MAX_DIRECTORY_BYTES} bytes long")
        return super().read(wanted) or b""
