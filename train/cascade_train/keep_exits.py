"""Some of a run's exits as a run of their own: `cascade-compile exits` chooses them.

In: a trained run and the blocks after which to exit. Out: a run folder that everything takes like
any other, its adapter merged in float32. The heads of other exits are left out; the backbone stays
whole, as in every run, and blocks after the last exit are never exported. Its `init` is the run it
was made from, so that what shaped that one is remembered as having shaped this one (`ancestry`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec
from torch import nn

from cascade_calib.provenance import made_by
from cascade_calib.splits_file import SPLITS_NAME, read_splits, write_splits
from cascade_runtime.errors import ConfigError
from cascade_train import checkpoint
from cascade_train.checkpoint import InitFrom, RunConfig
from cascade_train.exits import CascadeModel
from cascade_train.gates import ExitScore, new_scores
from cascade_train.score_choice import Chosen, ScoreChoice


def with_exits(model: CascadeModel, blocks: Sequence[int]) -> CascadeModel:
    """The network with only these of its exits, in eval mode; it shares the weights.

    Raises:
        ConfigError: the network has no exit after one of the blocks.
    """
    rows = _rows(model, blocks)
    kept = CascadeModel(model.backbone, tuple(blocks))
    kept.exits.heads = nn.ModuleList(model.exits.heads[row] for row in rows)
    return kept.eval()


def keep_exits(run: Path, blocks: Sequence[int], out: Path) -> RunConfig:
    """Write into the new folder `out` what `run` is with only these exits.

    Raises:
        ConfigError: the run is not trained, or has no exit after one of the blocks.
    """
    model, config = checkpoint.load_trained(run, scores=False)
    kept = with_exits(model, blocks)
    out.mkdir(parents=True)
    checkpoint.save_tensors(out / "model.safetensors", dict(kept.state_dict()))
    if checkpoint.scores_sha256(run) is not None:
        _keep_scores(run, model, _rows(model, blocks), out)
    splits = read_splits(run / SPLITS_NAME)
    root = (run.absolute() / splits.root).as_posix()  # where a relative one starts
    write_splits(msgspec.structs.replace(splits, root=root), out / SPLITS_NAME)
    where = os.path.relpath(run.resolve(), out.resolve())
    made = msgspec.structs.replace(
        config,
        exits=tuple(blocks),
        exits_of=config.exits,
        weights="some exits of a run",
        weights_sha256="",
        init=InitFrom(where, checkpoint.weights_sha256(run)),
        adapter=None,
        fit={},
        made_by=made_by(0),
    )
    checkpoint.write_config(out, made)  # last: without it the folder is no run
    return made


def _rows(model: CascadeModel, blocks: Sequence[int]) -> list[int]:
    missing = [block for block in blocks if block not in model.exit_blocks]
    if missing:
        raise ConfigError(
            f"there is no exit after block {missing[0]}; the network has exits after blocks "
            f"{', '.join(map(str, model.exit_blocks))}"
        )
    return [model.exit_blocks.index(block) for block in blocks]


def _keep_scores(run: Path, model: CascadeModel, rows: Sequence[int], out: Path) -> None:
    """Which score each kept exit ships, under its new number."""
    scores, choice = new_scores(model), checkpoint.read_scores(run)
    checkpoint.load_exact(scores, run / "scores.safetensors")
    said = tuple(
        msgspec.structs.replace(
            choice.exits[row],
            exit=number,
            sentence=choice.exits[row].sentence.replace(f"Exit {row} ", f"Exit {number} ", 1),
        )
        for number, row in enumerate(rows)
    )
    kept = [score for score in (scores[row] for row in rows) if isinstance(score, ExitScore)]
    checkpoint.save_scores(out, Chosen(ScoreChoice(exits=said, config=choice.config), kept))
