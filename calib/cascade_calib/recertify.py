"""`cascade-calibrate certify`: certify a bundle anew, in place, on the machine it will run on.

In: a bundle and labelled images, one set to propose thresholds and one to test them. Out: the same
engines with new decisions, certificates, golden vectors and report; the bundle is swapped in one
step when all of that is made and checked, and stays as it was when anything fails.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import msgspec

from cascade_calib.bounds import as_fraction
from cascade_calib.certify_engines import CertifiedTarget, certify_engines, outcome
from cascade_calib.evaluate import in_the_classes_of
from cascade_calib.labelled import (
    Loaded,
    check_unchanged,
    content_sha256,
    load_pixels,
    read_labelled,
)
from cascade_calib.path import SET_POLICIES, Request
from cascade_calib.progress import Progress
from cascade_calib.provenance import made_by
from cascade_calib.publish import REPORT, part_of, publish, recover, write_contents
from cascade_runtime.bundle import GOLDEN, MANIFEST, Bundle, engine_files
from cascade_runtime.engines import unavailable
from cascade_runtime.errors import ConfigError, DataError, TargetError
from cascade_runtime.manifest import (
    FORMAT_VERSION,
    Decision,
    Manifest,
    Policy,
    Target,
    stage_inputs,
)
from cascade_runtime.stages import load_target

Say = Callable[[str], None]
UNUSED_DELTA = Fraction(1, 20)  # SCRC-T promises a mean and looks at none
REWRITTEN = frozenset((MANIFEST, GOLDEN, REPORT))
# What the maker counted under the old thresholds; without the network nobody can count it again.
OUTDATED_PARITY = frozenset(("decision_flips",))


@dataclass(frozen=True)
class RecertifyRequest:
    """What to certify on what. Numbers that are None are those of the bundle's old certificates.

    data, select: sources as of `read_labelled`; select None is another split of `data`.
    drop_others: leave out the targets that cannot run here, engines and all.
    out: where the new bundle goes; None replaces the old one.
    only: leave out every target but the added ones.
    thumbnails: show the worst selection images in the report.
    """

    bundle: Path
    data: str
    select: str | None = None
    split: str = "val_calib"
    select_split: str = "val_select"
    alpha: Fraction | None = None
    delta: Fraction | None = None
    coverage: Fraction | None = None
    fnr: Fraction | None = None
    policy: Policy | None = None
    drop_others: bool = False
    thumbnails: bool = True
    threads: int | None = None
    seed: int = 0
    out: Path | None = None
    only: bool = False


# Makes engines: writes them into the folder of the new bundle, and returns each target with what
# is to be recorded of its parity once its decision is known.
Made = tuple[Target, Callable[[Decision], dict[str, float]]]
Make = Callable[[Bundle, Path], dict[str, Made]]


def recertify(
    request: RecertifyRequest,
    *,
    make: Make | None = None,
    progress: Progress | None = None,
    say: Say = print,
) -> Manifest:
    """Certify every target that runs here, with those that `make` adds, and replace the bundle.

    Targets that cannot run here hold certificates from another machine, other images and another
    share of delta; they cannot stay beside the new ones. They are refused unless `drop_others`
    says to leave them out, since this replaces the only copy of their engines at this place.

    An INFEASIBLE outcome is written too, as by `cascade-compile`: the bundle then defers every
    image, and the calibration images count as asked.

    Raises:
        BundleError: the bundle is damaged.
        TargetError: no target, or without `drop_others` not every target, can run here.
        DataError, ConfigError: the images are not usable, or select and calibration overlap.
    """
    place = request.bundle.resolve()
    if recover(place):
        say(f"{request.bundle} was put back: an earlier run was killed while replacing it")
    opened = Bundle.open(place)
    out = place if request.out is None else request.out.resolve()
    drop = request.drop_others or request.out is not None  # the old bundle stays then
    names = [] if request.only else _runnable(opened.manifest, drop, make is None, say)
    select, calib = _load(request, opened.manifest, progress, say)
    uses = _uses(opened.manifest, calib)
    if uses > 1:
        say(
            f"these calibration images are asked for the {_ordinal(uses)} time: of several "
            "attempts on the same images the promise holds for the first alone, unless delta was "
            "divided between them"
        )
    if request.policy in SET_POLICIES and any(
        c.fnr_promised is not None for c in opened.manifest.certificates.values()
    ):
        say(f"the old promise on missed positives goes: {request.policy} makes none")
    part = part_of(out)
    try:
        added = {} if make is None else make(opened, part)
        old = {name: opened.manifest.targets[name] for name in names}
        targets = old | {name: target for name, (target, _) in added.items()}
        claims, data = len(targets), (select, calib, uses)
        certified = {
            name: _certify(opened, part, name, target, request, claims, data, progress)
            for name, target in targets.items()
        }
        for name, (_, figures) in added.items():
            certified[name] = _with_parity(certified[name], figures)
        for name, made in certified.items():
            say(f"{name}: {outcome(made.certificate)}")
        manifest = _new_manifest(opened.manifest, certified, request.seed)
        _copy_rest(opened, part, manifest)
        write_contents(part, manifest, certified)
        Bundle.open(part)  # the reader's own checks, before anyone else meets the bundle
        if opened.signed:
            say("the old signature is not about the new contents and is gone; sign the bundle anew")
        publish(part, out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return manifest


def _runnable(manifest: Manifest, drop_others: bool, needed: bool, say: Say) -> list[str]:
    """The targets that can run here; `needed`: there must be one."""
    blocked = {
        name: reason
        for name, target in manifest.targets.items()
        if (reason := unavailable(target)) is not None
    }
    names = [name for name in manifest.targets if name not in blocked]
    reasons = "; ".join(f"{name}: {reason}" for name, reason in blocked.items())
    if not names and needed:
        raise TargetError(f"no target of this bundle can run, and be certified, here: {reasons}")
    if blocked and not drop_others:
        raise TargetError(
            f"not every target can run, and be certified, here ({reasons}); --drop-others leaves "
            "those out of the bundle, or certify on a machine that runs all of them"
        )
    for name, reason in blocked.items():
        say(f"{name}: left out of the bundle, it cannot run here ({reason})")
    return names


def _load(
    request: RecertifyRequest, manifest: Manifest, progress: Progress | None, say: Say
) -> tuple[Loaded, Loaded]:
    """The pixels to propose on and to test on, which must not share an image."""
    if request.select is None and not _is_splits(request.data):
        raise ConfigError(
            f"--select is missing: {request.data} has no splits, so give other labelled images of "
            "the same kind, on which the thresholds are proposed"
        )
    source = request.data if request.select is None else request.select
    select = _read(source, request.select_split, manifest, progress, say)
    calib = _read(request.data, request.split, manifest, progress, say)
    where = dict(zip(select.hashes or (), select.names, strict=True))
    both = [
        f"{name} is {where[digest]}"
        for name, digest in zip(calib.names, calib.hashes or (), strict=True)
        if digest in where
    ]
    if both:
        raise DataError(
            f"{len(both)} calibration images are also among those that propose the thresholds "
            f"({', '.join(both[:3])}); a test on them proves nothing, give images apart"
        )
    return select, calib


def _read(
    source: str, split: str, manifest: Manifest, progress: Progress | None, say: Say
) -> Loaded:
    wanted = split if _is_splits(source) else None
    images = in_the_classes_of(read_labelled(source, split=wanted), manifest.model.classes)
    loaded = load_pixels(images, manifest.preprocess, progress=progress, hashes=True)
    if wanted is not None:
        check_unchanged(loaded, Path(source), split)
    elif loaded.skipped:
        say(f"{source}: {loaded.summary()}")
    return loaded


def _is_splits(source: str) -> bool:
    return Path(source).suffix.lower() == ".json"


def _uses(manifest: Manifest, calib: Loaded) -> int:
    """How often these images have been asked, this time included, as far as the bundle knows."""
    digest = content_sha256(calib.pixels, calib.labels)
    before = (
        c.calibration_uses for c in manifest.certificates.values() if c.calibration_sha256 == digest
    )
    return 1 + max(before, default=0)


def _certify(
    opened: Bundle,
    part: Path,
    name: str,
    target: Target,
    request: RecertifyRequest,
    claims: int,
    data: tuple[Loaded, Loaded, int],
    progress: Progress | None,
) -> CertifiedTarget:
    """One target, whose engines are in the old bundle or, made just now, in the new one."""
    manifest = opened.manifest
    select, calib, uses = data
    parity = {k: v for k, v in target.parity.items() if k not in OUTDATED_PARITY}
    inputs = stage_inputs(manifest.stages)

    def read(path: str) -> bytes:
        new = part / path
        return new.read_bytes() if new.exists() else opened.read(path)

    return certify_engines(
        load_target(target, read, request.threads, inputs),
        name,
        msgspec.structs.replace(target, parity=parity),
        select,
        calib,
        infos=manifest.stages,
        request=_promise(request, manifest, name, claims),
        preprocess=manifest.preprocess,
        engines={path: hashlib.sha256(read(path)).hexdigest() for path in engine_files(target)},
        calibration_uses=uses,
        thumbnails=request.thumbnails,
        progress=progress,
    )


def _with_parity(
    made: CertifiedTarget, figures: Callable[[Decision], dict[str, float]]
) -> CertifiedTarget:
    target = msgspec.structs.replace(made.target, parity=figures(made.decision))
    return replace(made, target=target)


def _promise(request: RecertifyRequest, manifest: Manifest, name: str, claims: int) -> Request:
    """What was asked for, and where nothing was, what the old certificate promises.

    A target that has none yet goes on with the first one's.
    """
    name = name if name in manifest.certificates else next(iter(manifest.certificates))
    old = manifest.certificates[name]
    policy = request.policy or manifest.decision[name].policy
    delta = request.delta
    if delta is None and old.delta is not None:
        delta = as_fraction(old.delta, "delta")
    if delta is None and policy != "scrc-t":
        raise ConfigError(
            f"--delta is missing: the old certificate of {name}, of SCRC-T, has none to go on with"
        )
    fnr = request.fnr
    if fnr is None and old.fnr_promised is not None and policy not in SET_POLICIES:
        fnr = as_fraction(old.fnr_promised, "fnr")
    return Request(
        request.alpha or as_fraction(old.alpha, "alpha"),
        delta or UNUSED_DELTA,
        as_fraction(old.coverage_floor, "coverage", closed=True)
        if request.coverage is None
        else request.coverage,
        claims=claims,
        fnr=fnr,
        policy=policy,
    )


def _new_manifest(old: Manifest, certified: Mapping[str, CertifiedTarget], seed: int) -> Manifest:
    return msgspec.structs.replace(
        old,
        format_version=FORMAT_VERSION,
        made_by=made_by(seed),
        targets={name: made.target for name, made in certified.items()},
        decision={name: made.decision for name, made in certified.items()},
        certificates={name: made.certificate for name, made in certified.items()},
    )


def _copy_rest(opened: Bundle, part: Path, manifest: Manifest) -> None:
    """Every listed file but those written or made anew and the engines of targets left out."""
    engines, kept = (
        {path for target in m.targets.values() for path in engine_files(target)}
        for m in (opened.manifest, manifest)
    )
    for path in opened.hashes.keys() - REWRITTEN - (engines - kept):
        file = part / path
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(opened.read(path))


def _ordinal(number: int) -> str:
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{'th' if number % 100 in (11, 12, 13) else ending}"
