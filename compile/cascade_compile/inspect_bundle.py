"""`cascade-compile inspect`: what is inside a bundle, and whether this machine can run it.

In: a bundle, perhaps the public key of who must have signed it. Out: an `Inspection`, as tables for
people or as one object for machines. The bundle is verified first; no engine is loaded.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from cascade_runtime import engines
from cascade_runtime.bundle import Bundle, engine_files
from cascade_runtime.cascade import choose_target
from cascade_runtime.cli import certificate_in_words
from cascade_runtime.errors import TargetError
from cascade_runtime.manifest import Target, stage_inputs
from cascade_runtime.preprocess import printable
from cascade_runtime.signature import KeyFile

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Inspection:
    """An open bundle and this machine's view of it.

    sizes: bytes of every listed file. blocked: per target why it cannot run here, or None.
    auto: the target that `--target auto` takes here, None if there is none; why: in a sentence.
    """

    bundle: Bundle
    sizes: dict[str, int]
    blocked: dict[str, str | None]
    auto: str | None
    why: str

    def target_bytes(self, target: Target) -> int:
        return sum(self.sizes[path] for path in engine_files(target))

    @property
    def signature(self) -> str:
        if self.bundle.signer is not None:
            return f"by {self.bundle.signer}"
        return "there, not checked: give --public-key" if self.bundle.signed else "none"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: the manifest as it is, and what was found beside it."""
        manifest = self.bundle.manifest
        return {
            "bundle": str(self.bundle.path),
            "form": "folder" if self.bundle.path.is_dir() else "zip",
            "bytes": sum(self.sizes.values()),
            "signature": {"present": self.bundle.signed, "signer": self.bundle.signer},
            "files": {
                path: {"bytes": self.sizes[path], "sha256": digest}
                for path, digest in self.bundle.hashes.items()
            },
            "targets": {
                name: {
                    "bytes": self.target_bytes(target),
                    "runs_here": self.blocked[name] is None,
                    "why_not": self.blocked[name],
                    "status": manifest.certificates[name].status,
                }
                for name, target in manifest.targets.items()
            },
            "here": {"auto": self.auto, "why": self.why},
            "manifest": msgspec.to_builtins(manifest),
        }


def inspect(path: str | os.PathLike[str], public_key: KeyFile | None = None) -> Inspection:
    """Open and look.

    Raises:
        BundleError: the bundle is not valid, or the required signature is not there.
    """
    opened = Bundle.open(path, public_key=public_key)
    targets = opened.manifest.targets
    try:
        auto, why = choose_target(opened.manifest)
    except TargetError as error:
        auto, why = "", str(error)
    return Inspection(
        opened,
        {path: opened.size(path) for path in opened.hashes},
        {name: engines.unavailable(target) for name, target in targets.items()},
        auto or None,
        why,
    )


def tables(found: Inspection) -> list[Table]:
    """What it is, its stages, its targets."""
    return [_summary(found), _stages(found), _targets(found)]


def conclusion(found: Inspection) -> str:
    """The certificates in words, and what would run here."""
    lines = []
    for name, certificate in found.bundle.manifest.certificates.items():
        lines.append(name)
        lines += [f"  {line}" for line in certificate_in_words(certificate)]
    lines.append(f"auto: {found.why}")
    return "\n".join(map(printable, lines))


def _summary(found: Inspection) -> Table:
    from rich.table import Table

    m = found.bundle.manifest
    size = m.preprocess
    rows = {
        "model": f"{m.model.name}: {' or '.join(m.model.classes)}",
        "network": f"{m.model.preset}, {millions(m.model.parameters)} parameters, trained on "
        f"{m.model.data}",
        "images": f"{size.width} x {size.height}, {size.resize}, crop {size.crop}",
        "format": m.format_version,
        "made": f"{m.made_by.created} by cascade-edge {m.made_by.version} "
        f"({m.made_by.git_commit}) on {m.made_by.machine}",
        "command": m.made_by.command,
        "size": f"{mebibytes(sum(found.sizes.values()))} in {len(found.sizes)} files",
        "signature": found.signature,
    }
    table = Table(show_header=False)
    for name, value in rows.items():
        table.add_row(name, printable(value))
    return table


def _stages(found: Inspection) -> Table:
    from rich.table import Table

    stages = found.bundle.manifest.stages
    table = Table("stage", "takes", "blocks", "parameters", "multiply-adds", "tokens x width")
    for stage, kind in zip(stages, stage_inputs(stages), strict=True):
        first, last = stage.blocks
        table.add_row(
            printable(stage.name),
            kind,
            f"{first + 1} to {last}" if last > first else "none",
            millions(stage.parameters),
            millions(stage.macs),
            f"{stage.tokens} x {stage.width}",
        )
    return table


def _targets(found: Inspection) -> Table:
    from rich.table import Table

    manifest = found.bundle.manifest
    table = Table(
        "target", "size", "images/s when built", "difference to float32", "status", "here"
    )
    for name, target in manifest.targets.items():
        blocked = found.blocked[name]
        table.add_row(
            printable(name),
            mebibytes(found.target_bytes(target)),
            f"{target.images_per_s:.0f}",
            "\n".join(_difference(target)),
            manifest.certificates[name].status,
            "runs" if blocked is None else printable(f"no: {blocked}"),
        )
    return table


def _difference(target: Target) -> Iterator[str]:
    """What was measured when it was made, as far as the manifest has it."""
    p = target.parity
    if "max_difference" in p:
        yield f"{p['max_difference']:.2g} at most"
    if "decision_flips" in p:
        yield f"{p['decision_flips']:g} decisions flip"
    if target.islands:
        yield f"{len(target.islands)} layers kept wider"
    if target.forced:
        yield "beyond the limit, FORCED"


def millions(count: int) -> str:
    return f"{count / 1e6:.2f} M"


def mebibytes(count: int) -> str:
    return f"{count / 2**20:.2f} MiB"
