"""A bundle opens only when every byte is the sealed one and each certificate is about it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from cascade_runtime import bundle, manifest
from cascade_runtime.bundle import SIGNATURE, SUMS, Bundle, pack, parse_sums, seal
from cascade_runtime.cascade import Cascade
from cascade_runtime.errors import BundleError

from .conftest import ONNX, OPENVINO, Sample, make_decision, rewrite


def files_of(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def flip(path: Path, position: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(data)


def test_sealed_folder_opens_and_reads_back(template: Sample) -> None:
    opened = Bundle.open(template.path)
    assert sorted([*opened.hashes, SUMS]) == files_of(template.path)
    assert opened.manifest == template.manifest
    assert opened.read("report.html") == (template.path / "report.html").read_bytes()


def test_sha256sum_accepts_the_list(template: Sample) -> None:
    if shutil.which("sha256sum") is None:
        pytest.skip("sha256sum is not installed")
    subprocess.run(["sha256sum", "-c", "--strict", SUMS], cwd=template.path, check=True)


def test_flip_of_any_byte_is_refused_by_name(sample: Sample, no_engine: None) -> None:
    for name in files_of(sample.path):
        path = sample.path / name
        original = path.read_bytes()
        last = len(original) - 1
        for position in sorted({0, 7, last // 3, last // 2, last - 1, last}):
            flip(path, position, bit=position % 8)
            with pytest.raises(BundleError) as caught:
                Cascade.open(sample.path)
            assert name in str(caught.value)
            path.write_bytes(original)
    Bundle.open(sample.path)


def test_flip_of_any_byte_of_the_list_is_refused(sample: Sample, no_engine: None) -> None:
    path = sample.path / SUMS
    original = path.read_bytes()
    for position in range(len(original)):
        letter = chr(original[position]).isalpha()
        flip(path, position, bit=5 if letter else 0)  # bit 5 is a letter's case: 'a' becomes 'A'
        with pytest.raises(BundleError) as caught:
            Cascade.open(sample.path)
        assert any(name in str(caught.value) for name in (SUMS, *files_of(sample.path)))
        path.write_bytes(original)


def test_missing_and_unlisted_files_are_refused_by_name(sample: Sample) -> None:
    (sample.path / "extra.txt").write_text("hello")
    with pytest.raises(BundleError, match=r"extra\.txt: not listed in SHA256SUMS"):
        Bundle.open(sample.path)
    (sample.path / "extra.txt").unlink()
    (sample.path / "report.html").unlink()
    with pytest.raises(BundleError, match=r"report\.html: listed in SHA256SUMS but missing"):
        Bundle.open(sample.path)
    (sample.path / SUMS).unlink()
    with pytest.raises(BundleError, match="SHA256SUMS: missing"):
        Bundle.open(sample.path)
    with pytest.raises(BundleError, match="no such bundle"):
        Bundle.open(sample.path / "nowhere")


def test_links_are_refused_inside_and_followed_to_the_bundle(
    sample: Sample, tmp_path: Path
) -> None:
    link = tmp_path / "current.cascade"
    link.symlink_to(sample.path)
    Bundle.open(link)
    report = sample.path / "report.html"
    report.rename(tmp_path / "elsewhere.html")
    report.symlink_to(tmp_path / "elsewhere.html")
    with pytest.raises(BundleError, match=r"report\.html: is a link"):
        Bundle.open(sample.path)
    with pytest.raises(BundleError, match=r"report\.html: is a link"):
        seal(sample.path)


def test_file_that_is_no_file_is_refused(sample: Sample) -> None:
    os.mkfifo(sample.path / "pipe")
    with pytest.raises(BundleError, match="pipe: neither a file nor a folder"):
        Bundle.open(sample.path)
    with pytest.raises(BundleError, match="no such bundle"):
        Bundle.open(sample.path / "pipe")


A, B = "0" * 64, "1" * 64


@pytest.mark.parametrize(
    "text",
    [
        "",
        f"{A}  a",
        f"{A}  a\n\n",
        f"{A}  a\r\n",
        f"{A} a\n",
        f"{A} *a\n",
        f"{A[:-1]}  a\n",
        f"{'A' * 64}  a\n",
        f"{A}  b\n{B}  a\n",
        f"{A}  a\n{B}  a\n",
        f"{A}  /etc/passwd\n",
        f"{A}  ../a\n",
        f"{A}  a/../b\n",
        f"{A}  a/./b\n",
        f"{A}  a//b\n",
        f"{A}  a\\b\n",
        f"{A}  a b\n",
        f"{A}  .hidden\n",
        f"{A}  ä\n",
        f"{A}  SHA256SUMS\n",
        f"{A}  SHA256SUMS.sig\n",
        f"{A}  {'a' * 1025}\n",
    ],
)
def test_list_outside_the_grammar_is_refused(text: str) -> None:
    with pytest.raises(BundleError, match="SHA256SUMS"):
        parse_sums(text.encode())


def test_list_in_the_grammar_is_read() -> None:
    text = f"{A}  a\n{B}  a-1/b.c\n{A}  a/b_c+d.bin\n"
    assert parse_sums(text.encode()) == {"a": A, "a-1/b.c": B, "a/b_c+d.bin": A}


def test_change_after_opening_is_noticed_when_read(sample: Sample) -> None:
    opened = Bundle.open(sample.path)
    flip(sample.path / "report.html", 3)
    with pytest.raises(BundleError, match=r"report\.html: SHA-256"):
        opened.read("report.html")
    with pytest.raises(BundleError, match=r"secrets\.txt: not in the bundle"):
        opened.read("secrets.txt")


def test_seal_survives_an_interrupted_one_and_drops_a_stale_signature(sample: Sample) -> None:
    (sample.path / ".SHA256SUMS.tmp").write_text("half a li")
    (sample.path / SIGNATURE).write_bytes(b"\0" * 64)
    (sample.path / "report.html").write_text("another report")
    seal(sample.path)
    assert not (sample.path / SIGNATURE).exists()
    assert Bundle.open(sample.path).read("report.html") == b"another report"


def changed(sample: Sample, name: str, **fields: Any) -> manifest.Manifest:
    """The manifest with some fields of one target's certificate replaced."""
    certificate = msgspec.structs.replace(sample.manifest.certificates[name], **fields)
    certificates = {**sample.manifest.certificates, name: certificate}
    return msgspec.structs.replace(sample.manifest, certificates=certificates)


def test_another_engine_under_an_old_certificate_is_refused(
    sample: Sample, no_engine: None
) -> None:
    """Sealed again, so every hash fits the list: only the certificate knows."""
    path = f"targets/{OPENVINO}/stage1.bin"
    flip(sample.path / path, 0)
    seal(sample.path)
    with pytest.raises(BundleError, match=f"{path}: not the engine .* certified"):
        Cascade.open(sample.path, ONNX)


def test_certificate_of_other_files_is_refused(sample: Sample, no_engine: None) -> None:
    others = sample.manifest.certificates[OPENVINO].engines
    rewrite(sample.path, changed(sample, ONNX, engines=others))
    with pytest.raises(BundleError, match=f"certificate of '{ONNX}' is about other files"):
        Cascade.open(sample.path)


def test_changed_threshold_is_refused(sample: Sample, no_engine: None) -> None:
    """One unit in the last place of one float32 is enough."""
    first, second = (rule.tau_logit for rule in sample.decision.exits)
    assert first is not None
    nudged = float(np.nextafter(np.float32(first), np.float32(-9)))
    decision = {**sample.manifest.decision, ONNX: make_decision((nudged, second))}
    rewrite(sample.path, msgspec.structs.replace(sample.manifest, decision=decision))
    with pytest.raises(BundleError, match=f"preprocess, decision or inputs of '{ONNX}'"):
        Cascade.open(sample.path)


def test_changed_preprocessing_is_refused(sample: Sample, no_engine: None) -> None:
    other = msgspec.structs.replace(sample.manifest.preprocess, resize="bicubic")
    rewrite(sample.path, msgspec.structs.replace(sample.manifest, preprocess=other))
    with pytest.raises(BundleError, match="preprocess, decision or inputs"):
        Cascade.open(sample.path)


def test_infeasible_target_with_an_open_exit_is_refused(sample: Sample, no_engine: None) -> None:
    rewrite(sample.path, changed(sample, ONNX, status="INFEASIBLE"))
    with pytest.raises(BundleError, match="INFEASIBLE and yet has a threshold"):
        Cascade.open(sample.path)


def test_number_beyond_float32_is_refused(sample: Sample) -> None:
    decision = {**sample.manifest.decision, ONNX: make_decision((1e39, None))}
    rewrite(sample.path, msgspec.structs.replace(sample.manifest, decision=decision))
    with pytest.raises(BundleError, match="beyond float32"):
        Bundle.open(sample.path)


def test_stage_that_takes_pixels_instead_of_tokens_is_refused(sample: Sample) -> None:
    first, second = sample.manifest.stages
    stages = (first, msgspec.structs.replace(second, input="pixels"))
    rewrite(sample.path, msgspec.structs.replace(sample.manifest, stages=stages))
    with pytest.raises(BundleError, match=r"inputs of .* are not what was certified"):
        Bundle.open(sample.path)


def test_engine_path_outside_the_bundle_is_refused(sample: Sample) -> None:
    target = sample.manifest.targets[ONNX]
    stage = msgspec.structs.replace(target.stages[0], files=("../../etc/passwd",))
    target = msgspec.structs.replace(target, stages=(stage, target.stages[1]))
    targets = {**sample.manifest.targets, ONNX: target}
    rewrite(sample.path, msgspec.structs.replace(sample.manifest, targets=targets))
    with pytest.raises(BundleError, match=r"paths inside the bundle, not '../../etc/passwd'"):
        Bundle.open(sample.path)


def test_zip_is_the_same_bundle_and_deterministic(sample: Sample, tmp_path: Path) -> None:
    first, second = tmp_path / "a.zip", tmp_path / "b.zip"
    pack(sample.path, first)
    os.utime(sample.path / "report.html", (0, 0))
    pack(sample.path, second)
    assert first.read_bytes() == second.read_bytes()
    zipped, folder = Bundle.open(first), Bundle.open(sample.path)
    assert (zipped.manifest, zipped.hashes) == (folder.manifest, folder.hashes)
    assert all(zipped.read(name) == folder.read(name) for name in folder.hashes)
    assert Cascade.open(first, ONNX, threads=1, warm_up=False).target == ONNX


def test_unsealed_folder_is_not_packed(sample: Sample, tmp_path: Path) -> None:
    (sample.path / "report.html").write_text("changed")
    with pytest.raises(BundleError, match=r"report\.html"):
        pack(sample.path, tmp_path / "a.zip")
    assert not (tmp_path / "a.zip").exists()


def test_flip_in_a_zip_is_refused_or_changes_no_byte_of_the_bundle(
    sample: Sample, tmp_path: Path
) -> None:
    """A date in a zip header is not covered by a hash; nothing that is read may differ."""
    packed = tmp_path / "a.zip"
    pack(sample.path, packed)
    whole = Bundle.open(packed)
    original = packed.read_bytes()
    refused = 0
    for position in range(0, len(original), 97):
        flip(packed, position, bit=position % 8)
        try:
            opened = Bundle.open(packed)
        except BundleError:
            refused += 1
        else:
            assert opened.hashes == whole.hashes
        packed.write_bytes(original)
    assert refused > 0.9 * len(range(0, len(original), 97))


def write_zip(path: Path, members: list[tuple[str, bytes]], method: int = 0) -> None:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name), data, compress_type=method)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("members", "method", "message"),
    [
        ([("a", b"1"), ("a", b"2")], zipfile.ZIP_STORED, "a: is in the archive 2 times"),
        ([("a", b"1" * 100)], zipfile.ZIP_DEFLATED, "a: is compressed"),
        ([("../a", b"1")], zipfile.ZIP_STORED, "a name that a bundle cannot hold"),
        ([("/a", b"1")], zipfile.ZIP_STORED, "a name that a bundle cannot hold"),
        ([("folder/", b"")], zipfile.ZIP_STORED, "a name that a bundle cannot hold"),
        ([("a", b"1")], zipfile.ZIP_STORED, "SHA256SUMS: missing"),
    ],
)
def test_hostile_zip_is_refused(
    tmp_path: Path, members: list[tuple[str, bytes]], method: int, message: str
) -> None:
    path = tmp_path / "hostile.zip"
    write_zip(path, members, method)
    with pytest.raises(BundleError, match=message):
        Bundle.open(path)


def test_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("a")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "hostile.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(BundleError, match="a: is a link"):
        Bundle.open(tmp_path / "hostile.zip")


def test_file_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "noise.cascade"
    path.write_bytes(bytes(range(256)))
    with pytest.raises(BundleError, match=r"noise\.cascade: cannot be read"):
        Bundle.open(path)


def test_wide_bundle_is_refused_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["cascade_runtime.container"], "MAX_FILES", 3)
    for index in range(4):
        (tmp_path / str(index)).write_bytes(b"")
    with pytest.raises(BundleError, match="4 files, the limit is 3"):
        Bundle.open(tmp_path)


def test_list_beyond_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "_MAX_SUMS_BYTES", 60)
    with pytest.raises(BundleError, match="the limit is 60"):
        parse_sums(f"{A}  a\n".encode())
