"""The bundle's manifest as typed, frozen structures, and its binding hash.

In: the bytes of `manifest.json`. Out: a `Manifest`, or a `BundleError` naming the field.
Spec: docs/bundle-format.md. Numbers that decide are float32 and are stored as the shortest
decimals that read back to the same float32 (CALIBRATION, "At run time"). Unknown fields are
ignored, so that a later minor version can add some.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

import msgspec

from cascade_runtime import manifest_limits, strict_json
from cascade_runtime.errors import BundleError

FORMAT = "cascade-edge.bundle"
FORMAT_MAJOR = 1
FORMAT_VERSION = "1.0"
_VERSION = re.compile(rf"{FORMAT_MAJOR}\.[0-9]{{1,9}}")

ScoreKind = Literal["gate", "softmax"]
StageInput = Literal["pixels", "tokens"]
Policy = Literal["certified", "softmax", "gate", "scrc-i", "scrc-t"]
POLICIES: tuple[Policy, ...] = get_args(Policy)
Status = Literal["CERTIFIED", "INFEASIBLE"]
Outcome = Literal["shipped", "certified", "failed", "not reached", "passed over", "left out"]
FLOAT32_MAX = 3.4028234663852886e38  # itself: shorter decimals lie beyond it as a binary64


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
    jpeg: Literal["full", "reduced"] = "full"
    max_pixels: int = 100_000_000


class StageInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One stage: the blocks it holds and what it costs, in multiply-adds an image.

    input: what it takes; None is what `stage_inputs` says. A later stage that takes pixels begins
    another network.
    """

    name: str
    blocks: tuple[int, int]
    parameters: int
    macs: int
    tokens: int
    width: int
    input: StageInput | None = None


class TargetStage(msgspec.Struct, frozen=True, kw_only=True):
    """The engine files of one stage of one target, the one to open first."""

    files: tuple[str, ...]


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """One compiled form of the whole cascade and what was measured when it was made.

    islands: layers computed in a wider type than `precision` says. forced: the engines differ from
    the float32 network by more than their precision may, and were written all the same.
    inspector: what the engines are made of, as far as their library tells.
    """

    backend: str
    precision: str
    device: str
    stages: tuple[TargetStage, ...]
    images_per_s: float
    parity: dict[str, float]
    islands: tuple[str, ...] = ()
    forced: bool = False
    inspector: dict[str, float] = {}


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """What `cascade-compile engines` makes a target of, on the device that it is for.

    stages: what was written for each; reference: images, and what the float32 network says of them.
    islands, parity: of the files as they are, before a device made engines of them.
    """

    backend: str
    precision: str
    stages: tuple[TargetStage, ...]
    reference: str
    islands: tuple[str, ...] = ()
    parity: dict[str, float] = {}


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


class AcceptRule(msgspec.Struct, frozen=True, kw_only=True):
    """SCRC's second question, asked of the score at the exit where an image leaves; float32.

    Accepted where score_logit >= tau_logit; exactly there, `set_logit_at` bounds the set instead of
    the decision's `set_logit`.
    """

    tau_logit: float
    set_logit_at: float


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """How a target's outputs become decisions. `set_logit` is logit(1 - lambda).

    `accept` is there for the policies whose promise is about prediction sets, SCRC-I and SCRC-T.
    """

    policy: Policy
    exits: tuple[ExitRule, ...]
    set_logit: float
    accept: AcceptRule | None = None


class SetCertificate(msgspec.Struct, frozen=True, kw_only=True):
    """What SCRC proves: P(true class not in the set | accepted) <= alpha. Counts of images.

    misses: accepted with a set that lacks the true class; ambiguous and empty: accepted with both
    classes, or none, in their set, which defers them. coverage: accepted / n.
    """

    accepted: int
    misses: int
    risk_upper: float
    coverage: float
    coverage_lower: float
    ambiguous: int
    empty: int


class Certificate(msgspec.Struct, frozen=True, kw_only=True):
    """What was proven, on which engine, from which images (DESIGN, "Words").

    `claims` certificates share `delta`: this one was tested, and its bounds hold, at delta/claims,
    or half of that where `fnr_promised` makes it two promises. A null `delta`: the promise holds on
    average over calibration sets. With `sets`, the promise and its bounds are those of the sets;
    `accepted` and `errors` still count what is acted on, of which nothing is bounded then.
    """

    status: Status
    method: str
    promise: str
    advice: str
    alpha: float
    delta: float | None
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
    sets: SetCertificate | None = None

    @property
    def confidence(self) -> float | None:
        """At which each bound holds by itself; None where the promise is one on average."""
        if self.delta is None:
            return None
        return 1 - self.delta / self.claims / (1 if self.fnr_promised is None else 2)


class SearchCandidate(msgspec.Struct, frozen=True, kw_only=True):
    """One compiled form that a search looked at; figures are those of `val_select`.

    parity: as `Target.parity`, decisions flipped at the proposed thresholds. images_per_s, slowest
    and fastest: of the timed rounds the median, the least and the most. accepted and errors: at the
    proposed thresholds. steps: hypotheses about it in the sequence, of which `tested` were looked
    at and `passed` were rejected. Null and 0: it did not come so far. reason: why it did not ship.
    """

    name: str
    outcome: Outcome
    reason: str
    engine_bytes: int = 0
    parity: dict[str, float] = {}
    images_per_s: float | None = None
    slowest: float | None = None
    fastest: float | None = None
    accepted: int = 0
    errors: int = 0
    steps: int = 0
    tested: int = 0
    passed: int = 0


class Search(msgspec.Struct, frozen=True, kw_only=True):
    """How the target was chosen, when the bundle was built: informative.

    candidates: fastest first, then those without a speed. n_select: images of `val_select` that the
    thresholds were proposed on; timed: those of them that the speed was measured on, `batch` at a
    time, in so many `rounds`. sequence_length: hypotheses (candidate, thresholds), of which
    `sequence_tested` were looked at.
    """

    candidates: tuple[SearchCandidate, ...]
    n_select: int
    timed: int
    batch: int
    rounds: int
    sequence_length: int
    sequence_tested: int


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
    search: Search | None = None
    recipes: dict[str, Recipe] = {}


def stage_inputs(stages: Iterable[StageInfo]) -> tuple[StageInput, ...]:
    """What each stage takes: pixels the first, the tokens of the one before unless it says so."""
    inputs = [stage.input or "tokens" for stage in stages]
    return ("pixels", *inputs[1:])


def last_network(inputs: Sequence[StageInput]) -> int:
    """Where the last network begins: stage 0, but in a two-model cascade the second model's."""
    return max(stage for stage, kind in enumerate(inputs) if kind == "pixels")


def encode(manifest: Manifest) -> bytes:
    """JSON, indented for people, numbers as shortest round-trip decimals."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"


def decode(data: bytes) -> Manifest:
    """Read and check a manifest.

    Raises:
        BundleError: not JSON of one meaning, another format or major version, or a field that does
            not fit.
    """
    head = strict_json.parse(data, "manifest.json")
    name, version = head.get("format"), head.get("format_version")
    if name != FORMAT:
        raise BundleError(f"manifest.json: format is {name!r}, this reader knows {FORMAT!r}")
    if not isinstance(version, str) or not _VERSION.fullmatch(version):
        raise BundleError(
            f"manifest.json: format_version is {version!r}, this reader knows {FORMAT_MAJOR}.x; "
            "upgrade cascade-edge to open this bundle"
        )
    try:
        manifest = msgspec.convert(head, Manifest)
    except msgspec.ValidationError as error:
        raise BundleError(f"manifest.json: {error}") from error
    _check_written(head)
    _check(manifest)
    manifest_limits.check(manifest)
    return manifest


def _check_written(head: dict[str, Any]) -> None:
    """That no field was left to a default: these are for Python callers, not for bundles."""
    places: list[tuple[str, dict[str, Any], Iterable[str]]] = [
        ("preprocess", head["preprocess"], Preprocess.__struct_fields__)
    ]
    for name, certificate in head["certificates"].items():
        places.append((f"certificates[{name!r}]", certificate, ("claims",)))
    for name, recipe in head.get("recipes", {}).items():
        places.append((f"recipes[{name!r}]", recipe, ("parity",)))
    for candidate in (head.get("search") or {}).get("candidates", ()):
        places.append(("search.candidates", candidate, SearchCandidate.__struct_fields__))
    for where, node, fields in places:
        for field in fields:
            if field not in node:
                raise BundleError(f"manifest.json: {where}.{field} is missing")


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
    for name, decision in manifest.decision.items():
        _check_decision(name, decision, len(manifest.stages))
    for name, recipe in manifest.recipes.items():
        whole = len(recipe.stages) == len(manifest.stages)
        if name != f"{recipe.backend}/{recipe.precision}" or not whole:
            raise BundleError(
                f"manifest.json: recipe {name!r} does not match its own fields or the stages"
            )
    if manifest.stages and manifest.stages[0].input == "tokens":
        raise BundleError("manifest.json: stages[0].input is 'tokens', the first takes pixels")
    size = manifest.preprocess
    if min(size.height, size.width, size.max_pixels) < 1:
        raise BundleError("manifest.json: preprocess.height, width and max_pixels must be >= 1")


def _check_decision(name: str, decision: Decision, stages: int) -> None:
    policy = decision.policy
    if len(decision.exits) != stages:
        raise BundleError(f"manifest.json: decision of {name!r} does not cover every exit")
    if (decision.accept is not None) != policy.startswith("scrc-"):
        raise BundleError(
            f"manifest.json: decision of {name!r}: accept goes with the policies scrc-i and scrc-t "
            f"and with no other, this is {policy!r}"
        )
    if policy in ("softmax", "gate") and any(rule.score != policy for rule in decision.exits):
        raise BundleError(
            f"manifest.json: decision of {name!r}: under the policy {policy!r} that is every "
            "exit's score"
        )


def _bits(value: float | None) -> str:
    """A float32's bit pattern as eight hex digits; None is +inf."""
    return struct.pack(">f", float("inf") if value is None else value).hex()


def binding(
    preprocess: Preprocess,
    decision: Decision,
    engines: dict[str, str],
    inputs: Sequence[StageInput] = (),
) -> str:
    """The hash that ties a certificate to everything its promise depends on.

    SHA-256 over the lines of docs/bundle-format.md, "Binding": the preprocessing, what the stages
    take where a later one takes pixels, the decision's numbers as float32 bits, and the SHA-256 of
    each engine file, in path order.

    Args:
        inputs: from `stage_inputs`; may be left out for one network.
    """
    p = preprocess
    lines = [
        f"preprocess {p.width} {p.height} {p.color} {p.exif} {p.resize} {p.crop} {p.jpeg}",
    ]
    if "pixels" in inputs[1:]:
        lines.append(f"inputs {' '.join(inputs)}")
    lines.append(f"policy {decision.policy} {_bits(decision.set_logit)}")
    if decision.accept is not None:
        accept = decision.accept
        lines.append(f"accept {_bits(accept.tau_logit)} {_bits(accept.set_logit_at)}")
    for rule in decision.exits:
        numbers = (rule.platt_a, rule.platt_b, rule.temperature, rule.tau_logit)
        lines.append(f"exit {rule.score} " + " ".join(_bits(x) for x in numbers))
    lines += [f"engine {digest} {path}" for path, digest in sorted(engines.items())]
    return hashlib.sha256(("\n".join(lines) + "\n").encode()).hexdigest()
