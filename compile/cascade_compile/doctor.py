"""`cascade-compile doctor`: what this machine can build and run, and what is missing for the rest.

In: nothing but the machine. Out: a `Diagnosis`: processor, GPUs, installed pieces and, for every
target that the toolkit knows, whether it can be built and run here; each lack with the line that
installs it. Nothing is built and no engine is loaded.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from cascade_calib.provenance import cpu_name
from cascade_compile import targets
from cascade_runtime import engines
from cascade_runtime.engines import processor
from cascade_runtime.errors import CascadeError

if TYPE_CHECKING:
    from rich.table import Table

# What engines use, by the names of /proc/cpuinfo (x86, then ARM).
_FLAGS = (
    *("avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_bf16", "amx_int8", "asimd", "asimddp", "asimdhp", "bf16", "i8mm", "sve"),
)


@dataclass(frozen=True)
class Piece:
    """A library. needed: by which backends or precisions of one; empty: to build any target."""

    module: str
    package: str
    what_for: str
    install: str
    needed: tuple[str, ...] = ()


_EXTRA = "pip install 'cascade-edge[{}]'"
_COMPILE = _EXTRA.format("compile")
PIECES = (
    Piece("torch", "torch", "reading a run", _COMPILE),
    Piece("transformers", "transformers", "reading a run", _COMPILE),
    Piece("peft", "peft", "reading a run with adapters", _COMPILE),
    Piece("onnx", "onnx", "export", _COMPILE),
    Piece("onnxscript", "onnxscript", "export", _COMPILE),
    Piece("onnxruntime", "onnxruntime", "running", "pip install onnxruntime", ("onnxruntime",)),
    Piece("openvino", "openvino", "building and running", "pip install openvino", ("openvino",)),
    Piece("nncf", "nncf", "int8 of OpenVINO", _COMPILE, ("openvino int8",)),
    Piece(
        "tensorrt", "tensorrt", "TensorRT", "pip install 'cascade-edge[tensorrt]'", ("tensorrt",)
    ),
    Piece("cryptography", "cryptography", "sign", "pip install 'cascade-edge[sign]'", ("sign",)),
)


@dataclass(frozen=True)
class Ability:
    """One target: None where it can be built, or run, here; else the reason and the fix."""

    target: str
    cannot_build: str | None
    cannot_run: str | None


@dataclass(frozen=True)
class Diagnosis:
    """The machine. pieces: name to version, None if missing; missing: name to install line."""

    machine: str
    system: str
    flags: tuple[str, ...]
    memory_bytes: int | None
    gpus: tuple[str, ...]
    compiler: str | None
    pieces: dict[str, str | None]
    missing: dict[str, str]
    targets: tuple[Ability, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def diagnose() -> Diagnosis:
    """Look at the machine; takes a second or two, as engine libraries are asked what they can."""
    pieces = {piece.package: _version(piece) for piece in PIECES}
    lacking = {p.package: p.install for p in PIECES if pieces[p.package] is None}
    return Diagnosis(
        machine=cpu_name(),
        system=f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        flags=tuple(flag for flag in _FLAGS if flag in processor.flags()),
        memory_bytes=_memory(),
        gpus=_gpus(),
        compiler=shutil.which("c++") or shutil.which("g++") or shutil.which("clang++"),
        pieces=pieces,
        missing=lacking,
        targets=tuple(_ability(name, lacking) for name in _every_target()),
    )


def _every_target() -> list[targets.TargetName]:
    """All that can be built or run, here or elsewhere: some backends only do one of the two."""
    found = dict.fromkeys(targets.every_target())
    for name in engines.known():
        if _import_error(name) is None:
            for pair in engines.backend(name).TARGETS:
                found.setdefault(targets.TargetName(name, *pair))
    return list(found)


def _ability(name: targets.TargetName, lacking: dict[str, str]) -> Ability:
    return Ability(str(name), _cannot_build(name, lacking), _cannot_run(name))


def _cannot_build(name: targets.TargetName, lacking: dict[str, str]) -> str | None:
    """A builder may say so itself (`unbuildable`); the pieces that it is made of always count."""
    pair = (name.precision, name.device)
    if name.backend not in targets.TARGETS or pair not in targets.builder(name.backend).TARGETS:
        return "nothing here builds it"
    needs = {name.backend, f"{name.backend} {name.precision}"}
    for piece in PIECES:
        if piece.package in lacking and (not piece.needed or needs & set(piece.needed)):
            return f"{piece.package} is not installed; {piece.install}"
    ask = getattr(targets.builder(name.backend), "unbuildable", None)
    reason: str | None = ask(*pair) if ask is not None else None
    return reason


def _cannot_run(name: targets.TargetName) -> str | None:
    if name.backend not in engines.known():
        return "no engine of this installation runs it"
    broken = _import_error(name.backend)
    if broken is not None:
        return broken
    return engines.backend(name.backend).unavailable(name.precision, name.device)


def _import_error(backend: str) -> str | None:
    """Why the module that runs a backend cannot even be imported, or None."""
    try:
        engines.backend(backend)
    except (ImportError, CascadeError) as error:
        return f"its module cannot be imported ({error}); reinstall cascade-edge"
    return None


def _version(piece: Piece) -> str | None:
    if find_spec(piece.module) is None:
        return None
    try:
        return metadata.version(piece.package)
    except metadata.PackageNotFoundError:  # onnxruntime-gpu and its like give the same module
        return "installed"


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _gpus() -> tuple[str, ...]:
    """Name, compute capability, memory and driver of each NVIDIA GPU, as its own tool says."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    ask = [
        tool,
        "--query-gpu=name,compute_cap,memory.total,driver_version",
        "--format=csv,noheader",
    ]
    try:
        done = subprocess.run(ask, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line.strip() for line in done.stdout.splitlines() if line.strip())


def tables(found: Diagnosis) -> list[Table]:
    """The machine, the pieces, the targets."""
    from rich.table import Table

    memory = "" if found.memory_bytes is None else f", {found.memory_bytes / 2**30:.1f} GiB"
    machine = Table(show_header=False)
    machine.add_row("processor", f"{found.machine}{memory}")
    machine.add_row("instructions", " ".join(found.flags) or "unknown")
    machine.add_row("system", found.system)
    machine.add_row("GPU", "\n".join(found.gpus) or "none seen (nvidia-smi)")
    machine.add_row("C++ compiler", found.compiler or "none: no aot target can be built")
    pieces = Table("piece", "for", "found")
    for piece in PIECES:
        version = found.pieces[piece.package]
        pieces.add_row(piece.package, piece.what_for, version or f"missing: {piece.install}")
    able = Table("target", "builds here", "runs here")
    for ability in found.targets:
        able.add_row(ability.target, *map(_yes, (ability.cannot_build, ability.cannot_run)))
    return [machine, pieces, able]


def conclusion(found: Diagnosis) -> str:
    """How many targets can be built and certified here."""
    whole = [a.target for a in found.targets if a.cannot_build is None and a.cannot_run is None]
    return (
        f"{len(whole)} of {len(found.targets)} targets can be built and certified here: "
        f"{', '.join(whole) or 'none'}"
    )


def _yes(reason: str | None) -> str:
    return "yes" if reason is None else f"no: {reason}"
