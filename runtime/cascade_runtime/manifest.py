"""The bundle's manifest as typed, frozen structures, and its binding hash.

In: the bytes of `manifest.json`. Out: a `Manifest`, or a `BundleError` naming the field.
Spec: docs/bundle-format.md. Numbers that decide are float32 and are stored as the shortest
decimals that read back to the same float32 (CALIBRATION, "At run time"). Unknown fields are
ignored, so that a later minor version can add some.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Literal

import msgspec

from cascade_runtime.errors import BundleError

FORMAT = "cascade-edge.bundle"
FORMAT_MAJOR = 1
FORMAT_VERSION = "1.0"

ScoreKind = Literal["gate", "softmax"]
Status = Literal["CERTIFIED", "INFEASIBLE"]


class MadeBy(msgspec.Struct, frozen=True, kw_only=True):
    """Where the bundle comes from: enough to make it again."""

    version: str
    command: str
    git_commit: str
    seed: int
    created: str
    versions: dict[str, str]
    machine: str


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """The network, in words and counts."""

    name: str
    preset: str
    classes: tuple[str, str]
    parameters: int
    exits: tuple[int, ...]
    data: str


class Preprocess(msgspec.Struct, frozen=True, kw_only=True):
    """How an image file becomes the uint8 pixels that stage 0 takes."""

    height: int
    width: int
    color: Literal["RGB"] = "RGB"
    exif: Literal["apply"] = "apply"
    resize: Literal["bilinear", "bicubic"] = "bilinear"
    crop: Literal["none", "center"] = "none"
    max_pixels: int = 100_000_000


class StageInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One stage: the blocks it holds and what it costs, in multiply-adds an image."""

    name: str
    blocks: tuple[int, int]
    parameters: int
    macs: int
    tokens: int
    width: int


class TargetStage(msgspec.Struct, frozen=True, kw_only=True):
    """The engine files of one stage of one target, the one to open first."""

    files: tuple[str, ...]


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """One compiled form of the whole cascade and what was measured when it was made."""

    backend: str
    precision: str
    device: str
    stages: tuple[TargetStage, ...]
    images_per_s: float
    parity: dict[str, float]


class ExitRule(msgspec.Struct, frozen=True, kw_only=True):
    """One exit's numbers, float32. `tau_logit` null is +inf: the exit never answers.

    score == "gate":    score_logit = a*gate + b
    score == "softmax": score_logit = |logit_1 - logit_0| / temperature
    """

    score: ScoreKind
    platt_a: float
    platt_b: float
    temperature: float
    tau_logit: float | None


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """How a target's outputs become decisions. `set_logit` is logit(1 - lambda)."""

    policy: Literal["certified"]
    exits: tuple[ExitRule, ...]
    set_logit: float


class Certificate(msgspec.Struct, frozen=True, kw_only=True):
    """What was proven, on which engine, from which images (DESIGN, "Words").

    `claims` certificates share `delta`: this one was tested, and its bounds hold, at delta/claims,
    or half of that where `fnr_promised` makes it two promises.
    """

    status: Status
    method: str
    promise: str
    advice: str
    alpha: float
    delta: float
    claims: int = 1
    coverage_floor: float
    n: int
    accepted: int
    errors: int
    risk_upper: float
    coverage: float
    coverage_lower: float
    exit_counts: tuple[int, ...]
    class_errors: tuple[int, ...]
    class_accepted: tuple[int, ...]
    path_length: int
    path_tested: int
    calibration_sha256: str
    calibration_uses: int
    engines: dict[str, str]
    binding: str
    fnr_promised: float | None = None
    fnr_upper: float | None = None


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """`manifest.json`; the fields in the order of docs/bundle-format.md."""

    format: str
    format_version: str
    made_by: MadeBy
    model: Model
    preprocess: Preprocess
    stages: tuple[StageInfo, ...]
    targets: dict[str, Target]
    decision: dict[str, Decision]
    certificates: dict[str, Certificate]


def encode(manifest: Manifest) -> bytes:
    """JSON, indented for people, numbers as shortest round-trip decimals."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"


def decode(data: bytes) -> Manifest:
    """Read and check a manifest.

    Raises:
        BundleError: not JSON, another format or major version, or a field that does not fit.
    """
    try:
        head = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
        name = msgspec.json.decode(head.get("format", b"null"))
        version = msgspec.json.decode(head.get("format_version", b"null"))
    except msgspec.DecodeError as error:
        raise BundleError(f"manifest.json: not a JSON object ({error})") from error
    if name != FORMAT:
        raise BundleError(f"manifest.json: format is {name!r}, this reader knows {FORMAT!r}")
    if not isinstance(version, str) or version.split(".")[0] != str(FORMAT_MAJOR):
        raise BundleError(
            f"manifest.json: format_version is {version!r}, this reader knows {FORMAT_MAJOR}.x; "
            "upgrade cascade-edge to open this bundle"
        )
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except msgspec.ValidationError as error:
        raise BundleError(f"manifest.json: {error}") from error
    _check(manifest)
    return manifest


def _check(manifest: Manifest) -> None:
    """The relations between fields that a type cannot say."""
    if not manifest.targets:
        raise BundleError("manifest.json: targets is empty, there is nothing to run")
    for name, target in manifest.targets.items():
        if name != f"{target.backend}/{target.precision}/{target.device}":
            raise BundleError(f"manifest.json: target {name!r} does not match its own fields")
        if len(target.stages) != len(manifest.stages):
            raise BundleError(
                f"manifest.json: target {name!r} has {len(target.stages)} stages, "
                f"the model has {len(manifest.stages)}"
            )
        for table in (manifest.decision, manifest.certificates):
            if name not in table:
                raise BundleError(f"manifest.json: no decision or certificate for {name!r}")
        if len(manifest.decision[name].exits) != len(manifest.stages):
            raise BundleError(f"manifest.json: decision of {name!r} does not cover every exit")
    size = manifest.preprocess
    if min(size.height, size.width, size.max_pixels) < 1:
        raise BundleError("manifest.json: preprocess.height, width and max_pixels must be >= 1")


def _bits(value: float | None) -> str:
    """A float32's bit pattern as eight hex digits; None is +inf."""
    return struct.pack(">f", float("inf") if value is None else value).hex()


def binding(preprocess: Preprocess, decision: Decision, engines: dict[str, str]) -> str:
    """The hash that ties a certificate to everything its promise depends on.

    SHA-256 over the lines of docs/bundle-format.md, "Binding": the preprocessing, the decision's
    numbers as float32 bits, and the SHA-256 of each engine file, in path order.
    """
    p = preprocess
    lines = [
        f"preprocess {p.width} {p.height} {p.color} {p.exif} {p.resize} {p.crop}",
        f"policy {decision.policy} {_bits(decision.set_logit)}",
    ]
    for rule in decision.exits:
        numbers = (rule.platt_a, rule.platt_b, rule.temperature, rule.tau_logit)
        lines.append(f"exit {rule.score} " + " ".join(_bits(x) for x in numbers))
    lines += [f"engine {digest} {path}" for path, digest in sorted(engines.items())]
    return hashlib.sha256(("\n".join(lines) + "\n").encode()).hexdigest()
