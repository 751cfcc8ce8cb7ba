"""Who sealed a bundle: a detached Ed25519 signature over the bytes of `SHA256SUMS`.

In: key files and those bytes. Out: 64 raw bytes, or a `BundleError` by name when they are not what
the holder of the key wrote. Key files are PEM, so that openssl reads and makes them too: PKCS #8,
not encrypted, for the private key (mode 0600) and SubjectPublicKeyInfo for the public one.
Specs: docs/bundle-format.md, "Signature"; RFC 8032 (Ed25519), RFC 8410 (its keys), RFC 7468 (PEM).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from cascade_runtime.errors import BundleError, ConfigError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

SIGNATURE_BYTES = 64
INSTALL = "pip install 'cascade-edge[sign]'"
_MAX_KEY_BYTES = 64 << 10
_FINGERPRINT_DIGITS = 32

KeyFile = str | os.PathLike[str]


def unavailable() -> str | None:
    """Why this installation can neither sign nor check a signature, or None."""
    if find_spec("cryptography") is None:
        return f"signatures need the package cryptography; {INSTALL}"
    return None


def make_keys(private: Path) -> tuple[Path, str]:
    """Write a new private key to `private`, its public key to `private` + `.pub`.

    Returns:
        The public key's file and the key's fingerprint.

    Raises:
        ConfigError: one of the files exists (a key is never overwritten), or cannot be written.
    """
    _need_library()
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    shown = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    public = private.with_name(f"{private.name}.pub")
    _create(public, shown, 0o644)
    try:
        _create(private, secret, 0o600)
    except BaseException:
        public.unlink()  # ours, a moment old
        raise
    return public, fingerprint(key.public_key())


def load_private_key(path: KeyFile) -> Ed25519PrivateKey:
    """The private key in a file that `make_keys` or openssl wrote.

    Raises:
        ConfigError: no such file, or not an unencrypted Ed25519 private key in PEM.
    """
    _need_library()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    data = _read_key(path, ConfigError)
    try:
        key = load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        hint = (
            "that is the public key, sign with the other file"
            if b"PUBLIC" in data
            else ("make one with cascade-compile keygen; an encrypted one: openssl pkey first")
        )
        raise ConfigError(f"{path}: not an unencrypted private key in PEM; {hint}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{path}: not an Ed25519 key; make one with cascade-compile keygen")
    return key


def load_public_key(path: KeyFile) -> Ed25519PublicKey:
    """The public key that a bundle's signature is checked with.

    Raises:
        BundleError: no such file, or not an Ed25519 public key in PEM.
        ConfigError: the library for it is not installed.
    """
    _need_library()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    data = _read_key(path, BundleError)
    try:
        key = load_pem_public_key(data)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        hint = (
            "that is a private key, which stays with who signs; give its .pub file"
            if b"PRIVATE" in data
            else "ask who signs the bundle for it"
        )
        raise BundleError(f"{path}: not a public key in PEM; {hint}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise BundleError(f"{path}: not an Ed25519 key; bundles are signed with Ed25519")
    return key


def fingerprint(key: Ed25519PublicKey) -> str:
    """What people compare: `ed25519:` and half of the SHA-256 of the 32 raw bytes of the key."""
    digest = hashlib.sha256(key.public_bytes_raw()).hexdigest()
    return f"ed25519:{digest[:_FINGERPRINT_DIGITS]}"


def check(sums: bytes, signature: bytes, key: Ed25519PublicKey, name: str) -> None:
    """That the holder of `key` signed `sums`; `name` is the signature file's, for messages.

    Raises:
        BundleError: of another length, or of another key or other bytes.
    """
    from cryptography.exceptions import InvalidSignature

    if len(signature) != SIGNATURE_BYTES:
        raise BundleError(
            f"{name}: not a signature, it must be {SIGNATURE_BYTES} raw bytes; sign the bundle anew"
        )
    try:
        key.verify(signature, sums)
    except InvalidSignature:
        raise BundleError(
            f"{name}: not made by the key {fingerprint(key)} over this list of files; the bundle "
            "was changed or somebody else signed it"
        ) from None


def _need_library() -> None:
    reason = unavailable()
    if reason is not None:
        raise ConfigError(reason)


def _read_key(path: KeyFile, kind: type[BundleError] | type[ConfigError]) -> bytes:
    try:
        with Path(path).open("rb") as file:
            return file.read(_MAX_KEY_BYTES)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise kind(f"{path}: the key cannot be read ({why})") from error


def _create(path: Path, data: bytes, mode: int) -> None:
    """A new file and never an old one; whole, or not there."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError:
        raise ConfigError(
            f"{path} exists; a key is never overwritten, choose another name"
        ) from None
    except OSError as error:
        raise ConfigError(f"{path}: the key cannot be written ({error.strerror})") from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
    except OSError as error:
        with contextlib.suppress(OSError):
            path.unlink()
        raise ConfigError(f"{path}: the key cannot be written ({error.strerror})") from error
