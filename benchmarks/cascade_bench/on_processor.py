"""A bundle opened for what is measured on the processor alone.

The peers of `compare` and the ceilings of `roofline` are the processor's. Beside them a GPU's
target would be ahead by what the GPU is worth, and not the bundle.
"""

from __future__ import annotations

from pathlib import Path

from cascade_runtime.bundle import Bundle
from cascade_runtime.cascade import Cascade, choose_target
from cascade_runtime.errors import TargetError
from cascade_runtime.manifest import Manifest

DEVICE = "cpu"


def open_on_processor(
    path: Path, target: str, threads: int | None, beside: str, *, warm_up: bool = False
) -> Cascade:
    """`Cascade.open`; a target of another device is refused before it is loaded.

    Args:
        beside: what is measured on the processor, in the plural.

    Raises:
        BundleError, TargetError: it cannot be opened or run here, or is no processor's.
    """
    bundle = Bundle.open(path)
    if target in bundle.manifest.targets:
        _refuse(bundle.manifest, target, beside)
    name, why = choose_target(bundle.manifest, target)
    _refuse(bundle.manifest, name, beside)
    cascade = Cascade(bundle, name, why, threads)
    if warm_up:
        cascade.stages.warm_up(cascade.preprocess.height, cascade.preprocess.width)
    return cascade


def _refuse(manifest: Manifest, name: str, beside: str) -> None:
    device = manifest.targets[name].device
    if device == DEVICE:
        return
    theirs = [each for each, target in manifest.targets.items() if target.device == DEVICE]
    instead = f"choose --target {' or '.join(theirs)}; " if theirs else ""
    raise TargetError(
        f"{name} runs on {device}, and {beside} run on the processor, which is no comparison; "
        f"{instead}cascade-bench run measures a GPU's target beside its own network run to the end"
    )
