"""Whether a run is what a bundle was made from: its shape, and what its network says.

In: a run's network in float32 and its settings, and the opened bundle. Out: nothing, or an error.
The golden vectors hold what the bundle's engines answered, so the network is shown their images.
It may differ by what an engine may differ from its network when it is built
(`cascade_compile.parity`), for the most precise target: of one in float32 that is a thousandth.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cascade_runtime.bundle import GOLDEN
from cascade_runtime.cascade import Cascade
from cascade_runtime.errors import ConfigError
from cascade_runtime.golden import load_golden
from cascade_runtime.manifest import Manifest

if TYPE_CHECKING:
    from cascade_train.checkpoint import RunConfig
    from cascade_train.exits import Network


def check(run_folder: Path, network: Network, config: RunConfig, cascade: Cascade) -> None:
    """A run with more exits may be the one that the bundle's were chosen of.

    Raises:
        ConfigError: the run is neither that nor the one that the bundle was made from.
    """
    _check_shape(run_folder, cascade.manifest, config)
    _check_answers(run_folder, network, config, cascade)


def _check_shape(run_folder: Path, manifest: Manifest, config: RunConfig) -> None:
    model = manifest.model
    preset = model.preset.partition(",")[0]  # behind it, how many patches are merged
    same = (
        ("preset", config.preset, preset),
        ("exits", config.exits, model.exits),
        ("classes", config.classes, model.classes),
        ("preprocess", config.preprocess, manifest.preprocess),
    )
    for name, ours, theirs in same:
        more = name == "exits" and not config.joined and set(model.exits) < set(config.exits)
        if ours != theirs and not more:
            raise ConfigError(
                f"{run_folder} is not what the bundle was made from: its {name} is {ours!r}, the "
                f"bundle has {theirs!r}"
            )


def _check_answers(run_folder: Path, network: Network, config: RunConfig, cascade: Cascade) -> None:
    """Where patches are merged, by as much more as that has moved any image when it was built."""
    import torch

    from cascade_compile.parity import LIMITS

    golden = load_golden(cascade.bundle.read(GOLDEN), cascade.manifest.preprocess)
    limits = {name: LIMITS[name.split("/")[1]] for name in golden.exits}
    target = min(limits, key=limits.__getitem__)
    engine = np.stack([outputs.logits for outputs in golden.exits[target]])
    with torch.no_grad():
        exits = network(torch.from_numpy(golden.images.copy()))
    kept = cascade.manifest.model.exits
    blocks = zip(config.exits, exits, strict=True)
    said = np.stack([out.logits.numpy() for block, out in blocks if block in kept])
    merging = cascade.manifest.targets[target].parity.get("merging_max_difference", 0.0)
    limit = limits[target] * np.abs(said).max() + merging
    difference = np.median(np.abs(engine - said).max(axis=(0, 2)))  # of half of the images
    if not difference <= limit:
        raise ConfigError(
            f"{run_folder} is not what the bundle was made from: on the golden images its logits "
            f"differ by {difference:.3g} from those of {target}, and {limit:.3g} is the most that "
            "rounding explains"
        )
