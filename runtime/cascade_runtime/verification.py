"""Everything about a bundle that this machine can check, and what it cannot, with the reason.

In: a bundle, perhaps a public key and a target. Out: a `Verification`: one `Check` a question, in
the order of docs/bundle-format.md, "Order of checks". A bundle that is not valid raises, since
nothing that it says of itself can be believed; an engine that answers otherwise is a failed check.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from cascade_runtime import engines
from cascade_runtime.bundle import GOLDEN, Bundle
from cascade_runtime.errors import CascadeError, TargetError
from cascade_runtime.golden import Golden, check_recorded, load_golden, self_test
from cascade_runtime.signature import KeyFile
from cascade_runtime.stages import load_stages

Outcome = Literal["passed", "failed", "not checked"]


@dataclass(frozen=True)
class Check:
    """One question and its answer. `target`: whose golden vectors it is about, if any."""

    what: str
    outcome: Outcome
    why: str
    target: str | None = None

    @property
    def sentence(self) -> str:
        return self.why if self.outcome == "passed" else f"{self.what}: {self.outcome}, {self.why}"


@dataclass(frozen=True)
class Verification:
    """The checks that were made. `error`: what the command ends with, None if nothing failed."""

    bundle: str
    checks: tuple[Check, ...]
    error: CascadeError | None = field(default=None, repr=False)

    @property
    def ran(self) -> tuple[str, ...]:
        """The targets whose engines ran here and answered as recorded."""
        return tuple(c.target for c in self.checks if c.target and c.outcome == "passed")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "bundle": self.bundle,
            "valid": True,  # or it would not have been opened
            "ok": self.error is None,
            "checks": [asdict(check) for check in self.checks],
        }


def verify(
    path: str | os.PathLike[str],
    *,
    public_key: KeyFile | None = None,
    golden: bool = True,
    target: str | None = None,
    threads: int | None = None,
) -> Verification:
    """Check the bundle, then run its golden vectors.

    Args:
        golden: also run the golden vectors; False checks bytes and certificates alone.
        target: whose; one that cannot run here then fails. None: of every target that can.

    Raises:
        BundleError: the bundle is not valid: its signature, hashes, manifest or certificates.
        TargetError: `target` is not in it.
    """
    opened = Bundle.open(path, public_key=public_key)
    targets = opened.manifest.targets
    if target is not None and target not in targets:
        raise TargetError(
            f"target {target!r} is not in this bundle, which has: {', '.join(targets)}"
        )
    checks = [_signature(opened), *_sealed(opened)]
    error: CascadeError | None = None
    if golden:
        vectors = load_golden(opened.read(GOLDEN), opened.manifest.preprocess)
        for name in targets:
            check_recorded(opened.manifest.decision[name], vectors, name)
        for name in targets if target is None else [target]:
            check, found = _golden(opened, name, vectors, threads, asked=name == target)
            checks.append(check)
            error = error or found
    return Verification(os.fspath(path), tuple(checks), error)


def _signature(opened: Bundle) -> Check:
    if opened.signer is not None:
        return Check("signature", "passed", f"signed by {opened.signer}")
    if opened.signed:
        return Check("signature", "not checked", "there is one; give the public key to check it")
    return Check("signature", "not checked", "there is none")


def _sealed(opened: Bundle) -> Iterator[Check]:
    count = len(opened.hashes)
    yield Check("files", "passed", f"{count} files have the hashes they were sealed with")
    names = ", ".join(opened.manifest.targets)
    said = f"each certificate is about the engines and the decision here ({names})"
    yield Check("certificates", "passed", said)


def _golden(
    opened: Bundle, name: str, vectors: Golden, threads: int | None, *, asked: bool
) -> tuple[Check, TargetError | None]:
    """Run one target's golden images; the error is what the caller should end with."""
    manifest = opened.manifest
    what = f"golden vectors of {name}"
    reason = engines.unavailable(manifest.targets[name])
    if reason is not None:
        if not asked:
            return Check(what, "not checked", f"it cannot run here: {reason}", name), None
        error = TargetError(f"target {name!r} cannot run here: {reason}")
        return Check(what, "failed", str(error), name), error
    try:
        stages = load_stages(manifest, name, opened.read, threads)
        self_test(stages, manifest.decision[name], vectors, name)
    except TargetError as error:
        return Check(what, "failed", str(error), name), error
    said = f"{name}: answers {len(vectors.images)} golden images as recorded"
    return Check(what, "passed", said, name), None
