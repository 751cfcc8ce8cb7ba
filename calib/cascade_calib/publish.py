"""A certified bundle onto the disk: whole and sealed, or not there at all.

In: a manifest and its certified targets, beside engine files that already lie in a hidden folder.
Out: that folder sealed (`write_contents`), and then in the place of the bundle (`publish`). Spec of
the files: docs/bundle-format.md.
"""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors.numpy import save_file

from cascade_calib.certify_engines import CertifiedTarget
from cascade_calib.report import render_report
from cascade_runtime.bundle import GOLDEN, MANIFEST, pack, seal
from cascade_runtime.manifest import Manifest, encode

REPORT = "report.html"
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def part_of(out: Path) -> Path:
    """The hidden folder beside `out` in which it is made; emptied of what a killed run left."""
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    return part


def write_contents(
    folder: Path, manifest: Manifest, certified: Mapping[str, CertifiedTarget]
) -> None:
    """Write everything but the engines into `folder`, and seal it."""
    (folder / MANIFEST).write_bytes(encode(manifest))
    tensors = {key: value for made in certified.values() for key, value in made.tensors.items()}
    save_file(tensors, folder / GOLDEN)
    readable = (folder / MANIFEST).stat().st_mode & 0o777
    (folder / GOLDEN).chmod(readable)  # the library writes for its owner alone
    report = render_report(manifest, {name: made.evidence for name, made in certified.items()})
    (folder / REPORT).write_text(report, encoding="utf-8")
    seal(folder)


def publish(part: Path, out: Path) -> None:
    """Put the sealed folder `part` (or its zip) in place of `out`.

    An old bundle goes only when the new one is in. Where the system can exchange two names in one
    step (Linux), there is no moment without a bundle, whenever the process is killed; elsewhere a
    kill between two renames leaves the old one whole beside its place, and `recover` puts it back.
    """
    if out.name.endswith(".zip"):
        pack(part, out)
        return
    if not out.exists():
        part.rename(out)
    elif _exchange(part, out):
        shutil.rmtree(part, ignore_errors=True)
        shutil.rmtree(_old(out), ignore_errors=True)
    else:
        _replace_in_two_steps(part, out)


def recover(out: Path) -> bool:
    """Put back the bundle that a killed `publish` had moved aside; whether there was one."""
    if out.exists() or not _old(out).is_dir():
        return False
    _old(out).rename(out)
    return True


def _replace_in_two_steps(part: Path, out: Path) -> None:
    old = _old(out)
    shutil.rmtree(old, ignore_errors=True)
    out.rename(old)
    try:
        part.rename(out)
    except OSError:
        old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _old(out: Path) -> Path:
    return out.with_name(f".{out.name}.old")


def _exchange(first: Path, second: Path) -> bool:
    """Swap two names in one step by renameat2(2); False where that cannot be done."""
    swap = getattr(ctypes.CDLL(None), "renameat2", None) if os.name == "posix" else None
    if swap is None:
        return False
    names = (os.fsencode(first.absolute()), os.fsencode(second.absolute()))
    return bool(swap(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0)
