"""What a network has already seen, through every run that it started from.

In: the run, adaptation or backbone folder to start from, and a new split. Out: nothing, or a
`DataError`: a network judged or certified on images that shaped it would look better than it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from cascade_calib.splits_file import Splits
from cascade_runtime.errors import DataError
from cascade_train.checkpoint import read_config
from cascade_train.data.sources import SPLITS_NAME, load_splits
from cascade_train.explora.output import is_explored, read_explored, seen_images


@dataclass
class Seen:
    """Hashes of images that trained a network, and of those that it was selected by."""

    trained: set[str] = field(default_factory=set)
    selected: set[str] = field(default_factory=set)


def seen_by(start: Path) -> Seen:
    """What shaped the network in this folder and all those that it started from.

    Args:
        start: a run, an adaptation, or the backbone folder of one; of other weights nothing is
            known.
    """
    if is_explored(start.parent):
        start = start.parent
    if is_explored(start):
        explored = read_explored(start)
        seen, init, weights = Seen(set(seen_images(start))), explored.init, ""
    elif (start / SPLITS_NAME).is_file() and (start / "config.json").is_file():
        splits, config = load_splits(start), read_config(start)
        seen = Seen(*({e.sha256 for e in splits.of(name)} for name in ("train", "val_select")))
        init, weights = config.init, config.weights
    else:
        return Seen()
    for earlier in ([start / init.path] if init else []) + ([Path(weights)] if weights else []):
        more = seen_by(earlier)
        seen.trained |= more.trained
        seen.selected |= more.selected
    return seen


def refuse_seen(start: Path, splits: Splits) -> None:
    """Check a new split against what shaped the network to start from.

    Raises:
        DataError: images that certify or test would have been trained on or selected by, or images
            that select would have been trained on.
    """
    seen = seen_by(start)
    for names, known in (
        (("val_select",), seen.trained),
        (("val_calib", "val_test"), seen.trained | seen.selected),
    ):
        for name in names:
            again = sum(entry.sha256 in known for entry in splits.of(name))
            if again:
                raise DataError(
                    f"{again} of {len(splits.of(name))} images of {name} have shaped {start}, or a "
                    "run that it started from; what is measured or certified on them would be too "
                    "good. Give the same --data, --splits and --split-seed as that run had, or "
                    "other images"
                )
