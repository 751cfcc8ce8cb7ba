"""Archives made to do harm: overlapping, inflated, cut, of two meanings; refused by name."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cascade_runtime import container
from cascade_runtime.bundle import Bundle, pack
from cascade_runtime.container import Archive, Folder, open_container
from cascade_runtime.errors import BundleError

from .conftest import Sample

pytestmark = pytest.mark.usefixtures("no_engine")
MANY = settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture
def packed(sample: Sample, tmp_path: Path) -> bytes:
    pack(sample.path, tmp_path / "whole.zip")
    return (tmp_path / "whole.zip").read_bytes()


def refuse(data: bytes, tmp_path: Path, message: str) -> None:
    (tmp_path / "x.zip").write_bytes(data)
    with pytest.raises(BundleError, match=message):
        Bundle.open(tmp_path / "x.zip")


def test_zip_cut_anywhere_is_refused(packed: bytes, tmp_path: Path) -> None:
    for kept in {0, 1, 30, len(packed) // 3, len(packed) // 2, len(packed) - 30, len(packed) - 1}:
        refuse(packed[:kept], tmp_path, "x.zip")


def entries(data: bytes) -> list[int]:
    """Where each entry of the directory begins."""
    found, at = [], data.index(b"PK\1\2")
    while data[at : at + 4] == b"PK\1\2":
        found.append(at)
        name, extra, comment = struct.unpack("<HHH", data[at + 28 : at + 34])
        at += 46 + name + extra + comment
    return found


def patched(data: bytes, at: int, value: bytes) -> bytes:
    return data[:at] + value + data[at + len(value) :]


def test_zip_whose_members_overlap_is_refused(packed: bytes, tmp_path: Path) -> None:
    """Two entries of the directory that stand for the same bytes: how zip bombs are made."""
    first, second = entries(packed)[:2]
    size = packed[first + 20 : first + 28]
    offset = packed[first + 42 : first + 46]
    twice = patched(patched(packed, second + 20, size), second + 42, offset)
    refuse(twice, tmp_path, "overlaps")


def test_zip_that_claims_more_bytes_than_it_has_is_refused(packed: bytes, tmp_path: Path) -> None:
    big = struct.pack("<II", 1 << 30, 1 << 30)
    refuse(patched(packed, entries(packed)[0] + 20, big), tmp_path, "larger than the archive")


@pytest.mark.parametrize("kind", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressed_zip_bomb_is_refused_unread(kind: int, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", kind) as archive:
        archive.writestr("SHA256SUMS", bytes(20 << 20))
    assert (tmp_path / "bomb.zip").stat().st_size < 100_000
    with pytest.raises(BundleError, match="SHA256SUMS: is compressed"):
        Bundle.open(tmp_path / "bomb.zip")


def test_stored_member_that_says_it_is_smaller_than_it_unpacks_to_is_refused(
    tmp_path: Path,
) -> None:
    """A directory that calls deflated bytes stored: nothing is ever inflated."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("SHA256SUMS", bytes(1 << 20))
    data = stream.getvalue()
    [entry] = entries(data)
    data = patched(data, entry + 10, b"\0\0")  # method 0
    refuse(data, tmp_path, "SHA256SUMS: is compressed")
    data = patched(data, entry + 24, data[entry + 20 : entry + 24])  # size = compressed size
    refuse(data, tmp_path, "SHA256SUMS: ")


def test_directory_beyond_its_limit_is_refused_unread(
    packed: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(container, "MAX_DIRECTORY_BYTES", 100)
    refuse(packed, tmp_path, "its directory is over 100 bytes long")


def test_encrypted_member_is_refused(packed: bytes, tmp_path: Path) -> None:
    entry = entries(packed)[0]
    refuse(patched(packed, entry + 8, b"\1\0"), tmp_path, "SHA256SUMS: ")


def test_member_with_two_names_is_refused(packed: bytes, tmp_path: Path) -> None:
    """Another name in front of the bytes than in the directory."""
    at = packed.index(struct.pack("<HH", 11, 0) + b"report.html")
    refuse(patched(packed, at + 4, b"report.htmx"), tmp_path, r"report\.html: ")


def test_name_cut_at_a_zero_byte_is_refused(packed: bytes, tmp_path: Path) -> None:
    data = packed.replace(b"report.html", b"report\0html")
    refuse(data, tmp_path, "a name that a bundle cannot hold")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_zip_in_which_only_the_second_copy_of_a_file_is_right_is_refused(
    sample: Sample, tmp_path: Path
) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(zipfile.ZipInfo("report.html"), b"forged")
        for path in sorted(sample.path.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(sample.path).as_posix())
    with pytest.raises(BundleError, match=r"report\.html: is in the archive 2 times"):
        Bundle.open(tmp_path / "x.zip")


@MANY
@given(st.data())
def test_changed_zip_is_refused_or_the_same_bundle(
    sample: Sample, tmp_path: Path, data: st.DataObject
) -> None:
    """Bytes put in, taken out, exchanged; mostly where the structure is: headers and directory."""
    path = tmp_path / "x.zip"
    pack(sample.path, path)
    whole = path.read_bytes()
    listed = Bundle.open(path).hashes
    headers = [at for at in range(len(whole)) if whole[at : at + 2] == b"PK"]
    for _ in range(data.draw(st.integers(1, 3))):
        near = data.draw(st.sampled_from(headers)) + data.draw(st.integers(0, 60))
        at = min(data.draw(st.sampled_from((near, near, len(whole) // 2))), len(whole))
        removed = data.draw(st.integers(0, 6))
        whole = whole[:at] + data.draw(st.binary(max_size=6)) + whole[at + removed :]
    path.write_bytes(whole)
    try:
        opened = Bundle.open(path)
    except BundleError:
        return
    assert opened.hashes == listed


@MANY
@given(st.binary(max_size=200), st.booleans())
def test_random_bytes_are_no_zip(tmp_path: Path, data: bytes, ended: bool) -> None:
    """Also with the end that makes a zip of them."""
    path = tmp_path / "x.zip"
    path.write_bytes(data + (b"PK\5\6" + bytes(18) if ended else b""))
    with pytest.raises(BundleError):
        Bundle.open(path)


def test_folder_and_zip_give_the_same_names_sizes_and_bytes(packed: bytes, sample: Sample) -> None:
    here = open_container(sample.path)
    there = open_container(sample.path.parent / "whole.zip")
    assert isinstance(here, Folder) and isinstance(there, Archive)
    assert here.names() == there.names()
    for name in here.names():
        assert here.size(name) == there.size(name)
        assert here.read(name) == there.read(name)
