"""`cascade-train join`: two trained runs, one after the other, as one run.

In: a small and a big run that answer the same question: same classes, same preprocessing, and the
same images in the same splits, so that what certifies the pair has trained neither. Out: RUN with
config.json and splits.json. Weights stay where they are and are found by path and hash, as with
`--init`; the whole way from there takes RUN like any other. An image that no exit of the first
network answers goes to the second as pixels.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from cascade_calib.provenance import made_by
from cascade_calib.splits_file import SPLITS_NAME, Splits, read_splits, write_splits
from cascade_runtime.errors import ConfigError, DataError
from cascade_train import checkpoint
from cascade_train.checkpoint import Part, RunConfig
from cascade_train.record import summarise


def join(small: Path, big: Path, out: Path) -> RunConfig:
    """Write `out`, a run whose network is that of `small` and then that of `big`.

    Raises:
        ConfigError: a run is not finished, is a pair itself, or the two do not fit; or `out` is
            taken.
        DataError: they were not trained on the same splits.
    """
    runs = (small, big)
    configs = [_finished(run) for run in runs]
    _check_alike(runs, configs)
    splits = [read_splits(run / SPLITS_NAME) for run in runs]
    _check_splits(runs, splits)
    _claim(out)
    parts = tuple(
        Part(
            os.path.relpath(run.resolve(), out.resolve()),
            checkpoint.weights_sha256(run),
            checkpoint.scores_sha256(run),
        )
        for run in runs
    )
    joined = RunConfig(
        **checkpoint.joined_shape(configs),
        data=configs[0].data,
        weights="joined",
        joined=parts,
        fit={},
        made_by=made_by(0),
    )
    root = (small.absolute() / splits[0].root).as_posix()  # where a relative one starts
    write_splits(msgspec.structs.replace(splits[0], root=root), out / SPLITS_NAME)
    checkpoint.write_config(out, joined)  # last: without it the folder is no run
    return joined


def _finished(run: Path) -> RunConfig:
    config = checkpoint.read_trained(run)
    summary = summarise(run, str(run))
    if summary.status not in ("finished", "chosen"):
        raise ConfigError(
            f"{run} is {summary.status} ({summary.problem or 'training has not ended'}); "
            "let cascade-train fit end first"
        )
    return config


def _check_alike(runs: Sequence[Path], configs: Sequence[RunConfig]) -> None:
    first, second = configs
    if runs[0].resolve() == runs[1].resolve():
        raise ConfigError(f"{runs[0]} is given twice; a pair is two networks")
    if first.classes != second.classes:
        raise ConfigError(
            f"the classes of {runs[0]} are {' / '.join(first.classes)}, those of {runs[1]} "
            f"{' / '.join(second.classes)}; train the second with --positive {first.classes[1]}"
        )
    if first.preprocess != second.preprocess:
        sizes = [f"{c.preprocess.width} x {c.preprocess.height}" for c in configs]
        raise ConfigError(
            f"{runs[0]} takes images of {sizes[0]} pixels, {runs[1]} of {sizes[1]}, or prepares "
            "them otherwise; a cascade prepares an image once: train both with the same "
            "--image-size"
        )


def _check_splits(runs: Sequence[Path], splits: Sequence[Splits]) -> None:
    """That every image is the same and in the same split.

    Else what trained one network would certify the other.
    """
    first, second = (
        {e.path: (e.sha256, e.label, e.split) for e in each.entries} for each in splits
    )
    different = sorted(p for p in first.keys() | second.keys() if first.get(p) != second.get(p))
    if not different:
        return
    path, as_in = different[0], splits[0]
    states = [
        f"in {run}: {entries[path][2] if path in entries else 'missing'}"
        for run, entries in zip(runs, (first, second), strict=True)
    ]
    fractions = ",".join(f"{fraction:g}" for fraction in as_in.fractions.values())
    raise DataError(
        f"{runs[0]} and {runs[1]} were not trained on the same splits: {len(different)} of "
        f"{len(first.keys() | second.keys())} images differ, first {path!r} ({', '.join(states)}); "
        f"train the second with --data {as_in.source} --split-seed {as_in.seed} "
        f"--splits {fractions}"
    )


def _claim(out: Path) -> None:
    """Make the run folder; never write over another run."""
    if (out / "config.json").exists():
        raise ConfigError(f"{out} already holds a run; choose another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {out}: the folder cannot be made ({error.strerror})") from error
