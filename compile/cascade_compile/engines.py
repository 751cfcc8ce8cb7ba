"""`cascade-compile engines`: finish a target of a bundle on the device it is for.

In: a bundle with a build recipe, and labelled images. Out: the bundle with the target that was made
of the recipe here, compared with the float32 network's recorded answers, and certified on this
device together with the other targets that run on it. The new bundle appears in one step.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec

from cascade_calib.progress import Progress
from cascade_calib.recertify import Made, RecertifyRequest, Say, recertify
from cascade_compile import recipes, targets
from cascade_compile.targets import TargetName
from cascade_runtime.bundle import Bundle
from cascade_runtime.engines import backend, unavailable
from cascade_runtime.errors import ConfigError, TargetError
from cascade_runtime.manifest import Manifest, stage_inputs
from cascade_runtime.stages import load_target


@dataclass(frozen=True)
class EnginesRequest:
    """What to finish, and how to certify it. target: `backend/precision`, or with the device."""

    target: str
    certify: RecertifyRequest
    force: bool = False


def finish(
    request: EnginesRequest, *, progress: Progress | None = None, say: Say = print
) -> Manifest:
    """Build, compare, certify, seal.

    Raises:
        TargetError: the bundle has no such recipe, or this machine cannot finish it.
        ParityError: the engines are not the network (`force` writes them all the same).
        BundleError, DataError, ConfigError: as of `recertify`.
    """
    out = request.certify.out
    if out is not None and out.exists():
        raise ConfigError(f"--out: {out} exists; choose another name")
    if out is not None and (out.suffix not in (".cascade", ".zip") or not out.parent.is_dir()):
        raise ConfigError(f"--out {out} must end in .cascade or .zip, in a folder that exists")
    make = partial(_make, request, say)
    return recertify(request.certify, make=make, progress=progress, say=say)


def _make(request: EnginesRequest, say: Say, opened: Bundle, part: Path) -> dict[str, Made]:
    """The engines of the asked target, in the folder of the new bundle."""
    manifest = opened.manifest
    name = _name(request.target, manifest)
    recipe = manifest.recipes[f"{name.backend}/{name.precision}"]
    for path in {recipe.reference, *(file for stage in recipe.stages for file in stage.files)}:
        (part / path).parent.mkdir(parents=True, exist_ok=True)
        (part / path).write_bytes(opened.read(path))
    say(f"{name}: building engines from the recipe")
    target = recipes.finish(part, name, recipe)
    reason = unavailable(target)
    if reason is not None:
        raise TargetError(f"{name} was built but cannot run here: {reason}")
    stages = load_target(
        target,
        lambda path: (part / path).read_bytes(),
        request.certify.threads,
        stage_inputs(manifest.stages),
    )
    reference = recipes.read_reference(opened.read(recipe.reference), recipe.reference)
    compared = recipes.compare(stages, reference, str(name), name.precision, force=request.force)
    target = msgspec.structs.replace(target, forced=not compared.ok)
    return {str(name): (target, compared.figures)}


def _name(asked: str, manifest: Manifest) -> TargetName:
    """The target with its device, of which the bundle has a recipe.

    Raises:
        TargetError: there is no such recipe, or no device for it here.
    """
    parts = asked.split("/")
    recipe = "/".join(parts[:2])
    if recipe not in manifest.recipes:
        known = ", ".join(manifest.recipes) or "none"
        raise TargetError(
            f"the bundle has no recipe for {asked!r} (it has: {known}); build it with "
            f"cascade-compile bundle --recipe {recipe}"
        )
    device = parts[2:] or [targets.device_here(parts[0])]
    name = targets.parse("/".join([recipe, *device]))
    if name.anywhere:
        reason = backend(name.backend).unavailable(name.precision, name.device)
        raise TargetError(f"{asked} cannot be finished here: {reason}")
    return name
