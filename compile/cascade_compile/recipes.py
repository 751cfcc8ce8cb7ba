"""Build recipes: engines that are finished on the device they are for.

In: exported stages. Out: in the bundle, under `recipes/<backend>-<precision>/`, what each stage's
engine is made of, and `reference.safetensors`: images of `val_select` and what the float32 network
says of them, so that a device which has neither the network nor torch can tell a right engine from
a wrong one. `finish` makes the engine files there. docs/bundle-format.md, "Recipes".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from cascade_compile import onnx_files, parity, targets
from cascade_compile.as_written import AsWritten
from cascade_compile.targets import Built, StageSource, TargetName
from cascade_runtime.decision import ExitOutputs
from cascade_runtime.errors import BundleError, TargetError
from cascade_runtime.golden import Tensors, read_safetensors
from cascade_runtime.manifest import Recipe, StageInput, Target, TargetStage
from cascade_runtime.stages import Stages

REFERENCE_IMAGES = 32


@dataclass(frozen=True)
class Reference:
    """Images, uint8 [K, H, W, 3], and each exit's outputs of the float32 network."""

    pixels: npt.NDArray[np.uint8]
    exits: list[ExitOutputs]


def parse(name: str) -> tuple[str, str]:
    """`backend/precision`, taken apart.

    Raises:
        TargetError: nothing here builds it.
    """
    known = sorted({f"{t.backend}/{t.precision}" for t in targets.every_target()})
    if name not in known:
        raise TargetError(f"no recipe can be written for {name!r}; choose from {', '.join(known)}")
    backend, _, precision = name.partition("/")
    return backend, precision


def write(
    folder: Path,
    name: str,
    sources: list[StageSource],
    reference: Reference,
    inputs: Sequence[StageInput],
    *,
    force: bool = False,
) -> Recipe:
    """Write the files of one recipe into the bundle `folder`, and run them on the processor.

    Raises:
        ParityError: they are not the network (`force` writes them all the same).
    """
    backend, precision = parse(name)
    place = folder / _place(name)
    place.mkdir(parents=True)
    stages, islands = [], []
    for source in sources:
        built = _prepare(backend, precision, source, place)
        stages.append(TargetStage(files=tuple(f"{_place(name)}/{file}" for file in built.files)))
        islands += [f"stage{source.index}:{layer}" for layer in built.islands]
    on_cpu = Stages([AsWritten(folder / stage.files[0]) for stage in stages], inputs=inputs)
    compared = compare(on_cpu, reference, f"recipe {name}", precision, force=force)
    path = f"{_place(name)}/reference.safetensors"
    save_file(_tensors(reference), folder / path)
    (folder / path).chmod(0o644)  # the library writes for its owner alone
    return Recipe(
        backend=backend,
        precision=precision,
        stages=tuple(stages),
        reference=path,
        islands=tuple(islands),
        parity=compared.differences(),
    )


def compare(
    stages: Stages, reference: Reference, what: str, precision: str, *, force: bool
) -> parity.Parity:
    """Engines beside the reference, at batches of 1, 3 and 8.

    Raises:
        ParityError: they differ by more than the precision explains, and nobody forces it.
    """
    compared = parity.against(reference.exits, stages, reference.pixels, precision)
    if not compared.finite or not (compared.ok or force):
        raise parity.ParityError(
            f"{what}: differs from the float32 network by {compared.max_difference:.3g} at logits "
            f"up to {compared.scale:.3g} (limit {compared.limit:g} of that); choose another "
            "precision"
        )
    return compared


def finish(folder: Path, name: TargetName, recipe: Recipe) -> Target:
    """Make the engine files of a target from its recipe, both in the bundle `folder`.

    Raises:
        TargetError: this machine has no builder for it.
    """
    place = folder / "targets" / name.folder
    place.mkdir(parents=True)
    builder: Any = targets.builder(name.backend)
    make = getattr(builder, "finish", builder.build)
    stages, inspector = [], {}
    for index, stage in enumerate(recipe.stages):
        source = StageSource(index, folder / stage.files[0], None, _no_samples)
        built: Built = make(source, place, name.precision, name.device)
        stages.append(
            TargetStage(files=tuple(f"targets/{name.folder}/{file}" for file in built.files))
        )
        inspector |= {f"stage{index}:{key}": value for key, value in built.figures.items()}
    return Target(
        backend=name.backend,
        precision=name.precision,
        device=name.device,
        stages=tuple(stages),
        images_per_s=0.0,
        parity={},
        islands=recipe.islands,
        inspector=inspector,
    )


def read_reference(data: bytes, name: str) -> Reference:
    """What `write` stored.

    Raises:
        BundleError: not such a file.
    """
    tensors: Mapping[str, npt.NDArray[Any]] = read_safetensors(data, name)
    try:
        logits, gate = tensors["logits"], tensors["gate"]
        exits = [ExitOutputs(*pair) for pair in zip(logits, gate, strict=True)]
        return Reference(tensors["images"], exits)
    except (KeyError, ValueError) as error:
        raise BundleError(
            f"{name}: no reference of a recipe ({error}); rebuild the bundle"
        ) from None


def _prepare(backend: str, precision: str, source: StageSource, place: Path) -> Built:
    """What the backend prepares, or else the exported file, which `build` then starts from."""
    prepare = getattr(targets.builder(backend), "prepare", None)
    if prepare is not None:
        built: Built = prepare(source, place, precision)
        return built
    return Built(onnx_files.copy_to(source.onnx_file, place))


def _tensors(reference: Reference) -> Tensors:
    return {
        "images": reference.pixels,
        "logits": np.stack([out.logits for out in reference.exits]),
        "gate": np.stack([out.gate for out in reference.exits]),
    }


def _place(name: str) -> str:
    return f"recipes/{name.replace('/', '-')}"


def _no_samples() -> npt.NDArray[np.generic]:
    raise TargetError(
        "this backend looks at images to build an engine, so it has no recipe; use bundle"
    )
