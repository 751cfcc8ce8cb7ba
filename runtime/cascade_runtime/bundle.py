"""A bundle on disk: opened only when every byte of it is the one that was sealed.

In: a folder or an uncompressed zip, and the public key of who must have signed it. Out: a `Bundle`
with its manifest and verified reads, or a `BundleError` naming the file; `seal`, `sign` and `pack`
are the writing side. No engine is loaded here.
Spec: docs/bundle-format.md, "SHA256SUMS" and "Order of checks".
"""

from __future__ import annotations

import hashlib
import os
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cascade_runtime import manifest as manifests
from cascade_runtime import signature as signatures
from cascade_runtime.container import Container, Folder, is_name, open_container
from cascade_runtime.errors import BundleError
from cascade_runtime.manifest import Manifest, Target
from cascade_runtime.signature import KeyFile

SUMS = "SHA256SUMS"
SIGNATURE = "SHA256SUMS.sig"
MANIFEST = "manifest.json"
GOLDEN = "golden.safetensors"
UNLISTED = frozenset({SUMS, SIGNATURE})
_MAX_SUMS_BYTES = 16 << 20
_MAX_MANIFEST_BYTES = 16 << 20
_MAX_SIGNATURE_BYTES = 4096  # so that one of another length is named for what it is
_LINE = re.compile(r"([0-9a-f]{64})  ([^\n]+)")


@dataclass(frozen=True)
class Bundle:
    """An open bundle: checked hashes, its manifest, and certificates that fit its engines.

    signed: it has a signature, which says nothing until somebody checks it.
    signer: the fingerprint of the public key that was required, and which did sign it.
    """

    path: Path
    manifest: Manifest
    hashes: dict[str, str]  # every listed file's SHA-256
    signed: bool
    signer: str | None
    _container: Container

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, public_key: KeyFile | None = None) -> Bundle:
        """Check everything that can be checked without an engine, in the order of the spec.

        Args:
            public_key: a file with the Ed25519 public key, in PEM, of who must have signed it;
                None asks for no signature and looks at none.

        Raises:
            BundleError: the first thing that is wrong, by file or field, and what to do.
            ConfigError: a key is given and the library that checks signatures is not installed.
        """
        key = None if public_key is None else signatures.load_public_key(public_key)
        container = open_container(path)
        names = container.names()
        sums = _read_sums(container, names)
        if key is not None:
            if SIGNATURE not in names:
                raise BundleError(
                    f"{SIGNATURE}: missing; a signature is required, and here is none"
                )
            written = container.read(SIGNATURE, limit=_MAX_SIGNATURE_BYTES)
            signatures.check(sums, written, key, SIGNATURE)
        hashes = _verify(container, names, sums)
        if MANIFEST not in hashes:
            raise BundleError(f"{MANIFEST}: missing; rebuild with cascade-compile bundle")
        manifest = manifests.decode(_read(container, MANIFEST, hashes, _MAX_MANIFEST_BYTES))
        for name in manifest.targets:
            check_certificate(manifest, name, hashes)
        for path in recipe_files(manifest):
            if path not in hashes:
                raise BundleError(f"{path}: a file of a build recipe that is not in the bundle")
        signer = None if key is None else signatures.fingerprint(key)
        return cls(Path(path), manifest, hashes, SIGNATURE in names, signer, container)

    def read(self, path: str) -> bytes:
        """The bytes of a listed file, hashed again: what is returned is what was verified.

        Raises:
            BundleError: not in the bundle, or changed since it was opened.
        """
        return _read(self._container, path, self.hashes)

    def size(self, path: str) -> int:
        """How many bytes a listed file has."""
        return self._container.size(path)


def engine_files(target: Target) -> list[str]:
    """Every engine file of a target, sorted."""
    return sorted({path for stage in target.stages for path in stage.files})


def recipe_files(manifest: Manifest) -> list[str]:
    """Every file of every build recipe, sorted."""
    recipes = manifest.recipes.values()
    stages = {path for recipe in recipes for stage in recipe.stages for path in stage.files}
    return sorted(stages | {recipe.reference for recipe in recipes})


def seal(folder: Path) -> None:
    """Write `SHA256SUMS` over every file of `folder`; a signature of an older list is removed.

    Raises:
        BundleError: a file that a bundle cannot hold: a link, or a name outside the grammar.
    """
    _temporary(folder / SUMS).unlink(missing_ok=True)
    container = Folder(folder)
    names = sorted(container.names() - UNLISTED)
    text = "".join(f"{_digest(container, name)}  {name}\n" for name in names)
    (folder / SIGNATURE).unlink(missing_ok=True)
    _write_renamed(folder / SUMS, text.encode("ascii"))


def pack(folder: Path, zip_path: Path) -> None:
    """Write a sealed folder as one uncompressed zip; the same folder gives the same bytes.

    Raises:
        BundleError: the folder is not sealed, or was changed since.
    """
    container = Folder(folder)
    names = container.names()
    hashes = _verify(container, names, _read_sums(container, names))
    _write_zip(container, names, zip_path, {})
    packed = open_container(zip_path)
    for name, digest in hashes.items():
        _expect(name, _digest(packed, name), digest)


def sign(path: Path, private_key: KeyFile) -> str:
    """Sign a whole bundle, folder or zip, in place; an earlier signature goes.

    The signature enters in one step: whoever opens the bundle meanwhile finds it with the old one
    or with the new one.

    Returns:
        The fingerprint of the key.

    Raises:
        BundleError: the bundle is not valid; nobody should vouch for it.
        ConfigError: the key is not usable.
    """
    key = signatures.load_private_key(private_key)
    place = path.resolve()
    hashes = Bundle.open(place).hashes
    container = open_container(place)
    names = container.names()
    sums = _read_sums(container, names)
    if parse_sums(sums) != hashes:
        raise BundleError(f"{SUMS}: changed while it was verified; nothing was signed")
    signature = key.sign(sums)
    if place.is_dir():  # made outside: inside, a half-written file would be no bundle's
        temporary = place.with_name(f".{place.name}.{SIGNATURE}.tmp")
        temporary.write_bytes(signature)
        temporary.replace(place / SIGNATURE)
    else:
        _write_zip(container, names | {SIGNATURE}, place, {SIGNATURE: signature})
    return signatures.fingerprint(key.public_key())


def _write_zip(
    container: Container, names: frozenset[str], path: Path, instead: Mapping[str, bytes]
) -> None:
    """The files of `container` as a zip at `path`; those in `instead` have other bytes."""
    temporary = _temporary(path)
    with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(names):
            member = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            member.create_system = 3  # Unix on every platform: the field decides no bytes then
            member.external_attr = 0o644 << 16
            new = instead.get(name)
            member.file_size = container.size(name) if new is None else len(new)
            with archive.open(member, "w") as stream:
                for chunk in container.chunks(name) if new is None else (new,):
                    stream.write(chunk)
    temporary.replace(path)


def _read_sums(container: Container, names: frozenset[str]) -> bytes:
    if SUMS not in names:
        raise BundleError(f"{SUMS}: missing; this is no sealed bundle")
    return container.read(SUMS, limit=_MAX_SUMS_BYTES)


def _verify(container: Container, names: frozenset[str], sums: bytes) -> dict[str, str]:
    """The listed hashes, after the file set and every hash were found to match the list."""
    hashes = parse_sums(sums)
    for name in sorted(hashes.keys() - names):
        raise BundleError(f"{name}: listed in {SUMS} but missing; copy the bundle again")
    for name in sorted(names - hashes.keys() - UNLISTED):
        raise BundleError(f"{name}: not listed in {SUMS}; remove it or copy the bundle again")
    for name, digest in hashes.items():
        _expect(name, _digest(container, name), digest)
    return hashes


def parse_sums(data: bytes) -> dict[str, str]:
    """`SHA256SUMS` to {path: digest}, in file order.

    Raises:
        BundleError: anything but sorted lines of 64 lower-case hex digits, two spaces and a path.
    """
    if len(data) > _MAX_SUMS_BYTES:
        raise BundleError(f"{SUMS}: {len(data)} bytes, the limit is {_MAX_SUMS_BYTES}")
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError as error:
        raise BundleError(f"{SUMS}: byte {error.start} is not ASCII; the file is damaged") from None
    if not text.endswith("\n"):
        raise BundleError(f"{SUMS}: does not end with a newline; the file is cut short")
    hashes: dict[str, str] = {}
    previous = ""
    for number, line in enumerate(text[:-1].split("\n"), start=1):
        match = _LINE.fullmatch(line)
        if match is None or not is_name(match[2]) or match[2] in UNLISTED:
            raise BundleError(f"{SUMS}: line {number} is not '<sha256>  <path>': {line!r}")
        if match[2] <= previous:
            raise BundleError(f"{SUMS}: line {number}, {match[2]!r} is out of order or repeated")
        previous = match[2]
        hashes[match[2]] = match[1]
    return hashes


def check_certificate(manifest: Manifest, name: str, hashes: dict[str, str]) -> None:
    """That a target's certificate is about these engine files and this decision.

    Raises:
        BundleError: it is not; what is different, and what to do.
    """
    target, decision = manifest.targets[name], manifest.decision[name]
    certificate = manifest.certificates[name]
    files = engine_files(target)
    for stage in target.stages:
        if not stage.files:
            raise BundleError(f"{MANIFEST}: a stage of target {name!r} lists no engine file")
    for path in files:
        if path not in hashes:
            raise BundleError(f"{path}: an engine file of {name!r} that is not in the bundle")
    again = "certify this engine with cascade-calibrate, or rebuild with cascade-compile bundle"
    if sorted(certificate.engines) != files:
        raise BundleError(
            f"{MANIFEST}: the certificate of {name!r} is about other files "
            f"({sorted(certificate.engines)}, the target has {files}); {again}"
        )
    for path in files:
        if certificate.engines[path] != hashes[path]:
            raise BundleError(f"{path}: not the engine that {name!r} was certified on; {again}")
    try:
        inputs = manifests.stage_inputs(manifest.stages)
        binding = manifests.binding(manifest.preprocess, decision, certificate.engines, inputs)
    except OverflowError as error:
        raise BundleError(
            f"{MANIFEST}: decision of {name!r} has a number beyond float32; {again}"
        ) from error
    if certificate.binding != binding:
        raise BundleError(
            f"{MANIFEST}: preprocess, decision or inputs of {name!r} are not what was certified; "
            f"{again}"
        )
    open_exits = [rule for rule in decision.exits if rule.tau_logit is not None]
    if certificate.status != "CERTIFIED" and open_exits:
        raise BundleError(
            f"{MANIFEST}: {name!r} is {certificate.status} and yet has a threshold that answers; "
            f"{again}"
        )


def _read(
    container: Container, name: str, hashes: dict[str, str], limit: int | None = None
) -> bytes:
    if name not in hashes:
        raise BundleError(f"{name}: not in the bundle; rebuild with cascade-compile bundle")
    data = container.read(name, limit)
    _expect(name, hashlib.sha256(data).hexdigest(), hashes[name])
    return data


def _digest(container: Container, name: str) -> str:
    digest = hashlib.sha256()
    for chunk in container.chunks(name):
        digest.update(chunk)
    return digest.hexdigest()


def _expect(name: str, found: str, listed: str) -> None:
    if found != listed:
        raise BundleError(
            f"{name}: SHA-256 is {found[:12]}…, {SUMS} says {listed[:12]}…; the file was changed "
            "or damaged, copy the bundle again"
        )


def _write_renamed(path: Path, data: bytes) -> None:
    temporary = _temporary(path)
    temporary.write_bytes(data)
    temporary.replace(path)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")
