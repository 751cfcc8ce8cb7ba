"""A required signature: made by this key over this list of files, or the bundle is refused."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from cascade_runtime import bundle as bundles
from cascade_runtime import engines, signature
from cascade_runtime.bundle import SIGNATURE, SUMS, Bundle, pack, seal, sign
from cascade_runtime.cascade import Cascade
from cascade_runtime.errors import BundleError, ConfigError

from .conftest import ONNX, Sample

FORMS = ("folder", "zip")


class Keys:
    """A key pair on disk."""

    def __init__(self, folder: Path, name: str = "release") -> None:
        self.private = folder / name
        self.public, self.fingerprint = signature.make_keys(self.private)


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path)


@pytest.fixture(params=FORMS)
def place(sample: Sample, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """The sample bundle, not signed, in both forms."""
    if request.param == "folder":
        return sample.path
    pack(sample.path, tmp_path / "a.zip")
    return tmp_path / "a.zip"


def test_signed_bundle_opens_with_its_key_and_says_who_signed(place: Path, keys: Keys) -> None:
    assert sign(place, keys.private) == keys.fingerprint
    opened = Bundle.open(place, public_key=keys.public)
    assert (opened.signed, opened.signer) == (True, keys.fingerprint)
    cascade = Cascade.open(place, ONNX, public_key=keys.public, threads=1, warm_up=False)
    assert cascade.bundle.signer == keys.fingerprint


def test_signature_that_nobody_asks_for_is_not_looked_at(place: Path, keys: Keys) -> None:
    assert Bundle.open(place).signed is False
    sign(place, keys.private)
    opened = Bundle.open(place)
    assert (opened.signed, opened.signer) == (True, None)


def test_signature_is_raw_bytes_over_the_list_that_others_can_check(
    sample: Sample, keys: Keys
) -> None:
    sign(sample.path, keys.private)
    written = (sample.path / SIGNATURE).read_bytes()
    assert len(written) == 64
    key = serialization.load_pem_public_key(keys.public.read_bytes())
    assert isinstance(key, Ed25519PublicKey)
    key.verify(written, (sample.path / SUMS).read_bytes())
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed: the second reader was not asked")
    subprocess.run(
        [
            *("openssl", "pkeyutl", "-verify", "-pubin", "-inkey", keys.public, "-rawin"),
            *("-in", SUMS, "-sigfile", SIGNATURE),
        ],
        cwd=sample.path,
        check=True,
        capture_output=True,
    )


def test_missing_signature_is_refused_where_one_is_required(place: Path, keys: Keys) -> None:
    with pytest.raises(BundleError, match=r"SHA256SUMS\.sig: missing; a signature is required"):
        Bundle.open(place, public_key=keys.public)


def test_signature_of_another_key_is_refused(place: Path, keys: Keys, tmp_path: Path) -> None:
    sign(place, keys.private)
    other = Keys(tmp_path, "other")
    with pytest.raises(BundleError, match=rf"\.sig: not made by the key {other.fingerprint}"):
        Bundle.open(place, public_key=other.public)


def test_any_changed_bit_of_a_signature_is_refused(sample: Sample, keys: Keys) -> None:
    sign(sample.path, keys.private)
    path = sample.path / SIGNATURE
    whole = path.read_bytes()
    for position in range(64):
        changed = bytearray(whole)
        changed[position] ^= 1 << (position % 8)
        path.write_bytes(changed)
        with pytest.raises(BundleError, match=r"SHA256SUMS\.sig: not made by"):
            Bundle.open(sample.path, public_key=keys.public)


@pytest.mark.parametrize("data", [b"", bytes(63), bytes(65), b"a" * 128, bytes(5000)])
def test_signature_of_another_length_is_refused(sample: Sample, keys: Keys, data: bytes) -> None:
    (sample.path / SIGNATURE).write_bytes(data)
    with pytest.raises(BundleError, match=r"SHA256SUMS\.sig: .*(64 raw bytes|the limit is)"):
        Bundle.open(sample.path, public_key=keys.public)


def test_signature_is_checked_before_hashes_manifest_and_engines(
    sample: Sample, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything else is wrong as well; what is said is that the signature is."""
    sign(sample.path, keys.private)
    (sample.path / "report.html").write_text("forged")
    (sample.path / "manifest.json").write_text("{")
    with (sample.path / SUMS).open("ab") as file:
        file.write(b"not a line")

    def touched(*_: object, **__: object) -> NoReturn:
        pytest.fail("something was read before the signature was checked")

    for module, name in ((bundles, "parse_sums"), (bundles, "_digest"), (engines, "load")):
        monkeypatch.setattr(module, name, touched)
    with pytest.raises(BundleError, match=r"SHA256SUMS\.sig: not made by"):
        Cascade.open(sample.path, public_key=keys.public)


def test_bundle_that_was_sealed_again_is_no_longer_signed(sample: Sample, keys: Keys) -> None:
    sign(sample.path, keys.private)
    (sample.path / "report.html").write_text("another report")
    seal(sample.path)
    with pytest.raises(BundleError, match="missing; a signature is required"):
        Bundle.open(sample.path, public_key=keys.public)


def test_signed_folder_packs_into_a_signed_zip(sample: Sample, keys: Keys, tmp_path: Path) -> None:
    sign(sample.path, keys.private)
    pack(sample.path, tmp_path / "a.zip")
    assert Bundle.open(tmp_path / "a.zip", public_key=keys.public).signer == keys.fingerprint


def test_signing_changes_nothing_else_and_leaves_nothing_behind(place: Path, keys: Keys) -> None:
    before, beside = Bundle.open(place).hashes, sorted(place.parent.iterdir())
    sign(place, keys.private)
    once = Bundle.open(place)
    assert once.hashes == before
    sign(place, keys.private)  # again: Ed25519 is deterministic
    assert Bundle.open(place, public_key=keys.public).hashes == before
    assert sorted(place.parent.iterdir()) == beside


def test_damaged_bundle_is_not_signed(sample: Sample, keys: Keys) -> None:
    (sample.path / "report.html").write_text("forged")
    with pytest.raises(BundleError, match=r"report\.html: SHA-256"):
        sign(sample.path, keys.private)
    assert not (sample.path / SIGNATURE).exists()


def other_kind(private: bool) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    pem = serialization.Encoding.PEM
    if private:
        plain = serialization.NoEncryption()
        return key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
    return key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)


def test_key_that_is_none_is_refused_by_name(sample: Sample, keys: Keys, tmp_path: Path) -> None:
    sign(sample.path, keys.private)
    bad = tmp_path / "bad.pub"
    for data, message in (
        (b"", "not a public key in PEM"),
        (b"\xff\0" * 40, "not a public key in PEM"),
        (keys.public.read_bytes()[:60], "not a public key in PEM"),
        (keys.private.read_bytes(), "that is a private key"),
        (other_kind(private=False), "not an Ed25519 key"),
    ):
        bad.write_bytes(data)
        with pytest.raises(BundleError, match=rf"bad\.pub: .*{message}"):
            Bundle.open(sample.path, public_key=bad)
    for place in (tmp_path / "gone.pub", tmp_path):
        with pytest.raises(BundleError, match="the key cannot be read"):
            Bundle.open(sample.path, public_key=place)


def test_private_key_that_is_none_is_refused_by_name(
    sample: Sample, keys: Keys, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.key"
    for data, message in (
        (b"", "not an unencrypted private key"),
        (keys.public.read_bytes(), "that is the public key"),
        (other_kind(private=True), "not an Ed25519 key"),
    ):
        bad.write_bytes(data)
        with pytest.raises(ConfigError, match=rf"bad\.key: .*{message}"):
            sign(sample.path, bad)


def test_encrypted_private_key_says_what_to_do(sample: Sample, keys: Keys, tmp_path: Path) -> None:
    key = signature.load_private_key(keys.private)
    secret = serialization.BestAvailableEncryption(b"word")
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, secret)
    (tmp_path / "locked").write_bytes(pem)
    with pytest.raises(ConfigError, match="an encrypted one: openssl pkey"):
        sign(sample.path, tmp_path / "locked")


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX's")
def test_private_key_is_its_owners_alone(keys: Keys) -> None:
    assert keys.private.stat().st_mode & 0o777 == 0o600


def test_key_files_are_never_overwritten(keys: Keys, tmp_path: Path) -> None:
    private, public = keys.private.read_bytes(), keys.public.read_bytes()
    with pytest.raises(ConfigError, match="a key is never overwritten"):
        signature.make_keys(keys.private)
    keys.public.unlink()
    with pytest.raises(ConfigError, match="a key is never overwritten"):
        signature.make_keys(keys.private)
    assert keys.private.read_bytes() == private
    assert not keys.public.exists(), "no public key of a key that was not written"
    keys.private.unlink()
    keys.public.write_bytes(public)
    with pytest.raises(ConfigError, match="a key is never overwritten"):
        signature.make_keys(keys.private)
    assert not keys.private.exists()
    with pytest.raises(ConfigError, match="cannot be written"):
        signature.make_keys(tmp_path / "nowhere" / "key")


def test_two_keys_have_two_fingerprints(keys: Keys, tmp_path: Path) -> None:
    assert keys.fingerprint != Keys(tmp_path, "other").fingerprint
    assert keys.fingerprint.startswith("ed25519:") and len(keys.fingerprint) == 8 + 32


def test_without_the_library_a_bundle_opens_and_a_required_signature_says_the_pip_line(
    sample: Sample, keys: Keys
) -> None:
    script = """
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda n, *r: None if n == "cryptography" else find(n, *r)
sys.modules["cryptography"] = None
from cascade_runtime.bundle import Bundle
from cascade_runtime.errors import ConfigError
Bundle.open(sys.argv[1])
try:
    Bundle.open(sys.argv[1], public_key=sys.argv[2])
except ConfigError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, sample.path, keys.public],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "pip install 'cascade-edge[sign]'" in done.stdout
