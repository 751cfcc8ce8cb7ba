"""`cascade-train fit`: from a data source to a run folder.

In: a `FitRequest`. Out: RUN with the selected weights (`checkpoint` says which files). The way:
split the images, build the network (new, from weights, or from an earlier run, with or without an
adapter), train, choose the score of each exit, and say what was reached on `val_select`. Of
several processes the first alone splits, writes and talks.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
from torch import nn

from cascade_calib.labelled import Loaded, Progress
from cascade_calib.provenance import made_by
from cascade_runtime.errors import ConfigError
from cascade_runtime.manifest import Preprocess
from cascade_train import checkpoint
from cascade_train.adapters import AdapterConfig, add_adapter, share_text, trainable_share
from cascade_train.ancestry import refuse_seen
from cascade_train.augment_config import decode_spec
from cascade_train.backbone import backbone_config, build_backbone
from cascade_train.checkpoint import InitFrom, RunConfig
from cascade_train.constraints import statement
from cascade_train.curves import TensorBoardLog
from cascade_train.data.contact_sheet import contact_sheet
from cascade_train.data.decoded import decoded_split
from cascade_train.data.readers import Reader, split_files
from cascade_train.data.sources import (
    SPLITS_NAME,
    Prepared,
    load_split_pixels,
    load_splits,
    prepare,
)
from cascade_train.data.splits import DEFAULT_FRACTIONS
from cascade_train.exits import CascadeModel, check_exits
from cascade_train.explora.output import is_explored, load_adapted, read_explored
from cascade_train.features import HeadsOnly
from cascade_train.gates import read_exits
from cascade_train.loop import Epoch, FitConfig, fit
from cascade_train.losses import exit_shares
from cascade_train.presets import preset
from cascade_train.recorder import Recorder
from cascade_train.scale import Machine, ended
from cascade_train.score_choice import ScoreChoice, choose_scores

Decode = Literal["memory", "cached", "files"]
GLANCE = 32  # pixels: what images are read at when only their split is wanted


@dataclass(frozen=True)
class FitRequest:
    """What `fit` was asked for; None means "as the preset, or as the earlier run, has it".

    decode: training images are held in memory, decoded once into a cache on disk, or decoded from
    their files for each batch.
    """

    data: str
    out: Path
    preset: str | None = None
    exits: tuple[int, ...] | None = None
    image_size: int | None = None
    weights: str = "random"
    init: Path | None = None
    adapter: AdapterConfig | None = None
    fractions: tuple[float, ...] | None = None
    split_seed: int | None = None  # None: that of the training
    positive: str | None = None
    decode: Decode = "memory"
    threads: int | None = None
    resume: bool = False


@dataclass(frozen=True)
class _Data:
    """What is trained on, in memory or read as it is needed, and `val_select`."""

    train: Loaded | Reader
    select: Loaded


@dataclass(frozen=True)
class FitResult:
    """What training gave: the log, the selected epoch, the parameter counts, the exits' scores."""

    log: list[Epoch]
    best: Epoch
    trainable: int
    parameters: int
    scores: ScoreChoice


Say = Callable[[str], None]


def run_fit(
    request: FitRequest, config: FitConfig, *, progress: Progress | None = None, say: Say = print
) -> FitResult:
    """Train as requested.

    Args:
        say: gets one line a step for people.

    Raises:
        ConfigError, DataError: what was asked for cannot be done; the message says why.
    """
    began = time.monotonic()
    torch.set_num_threads(request.threads or _threads())
    torch.manual_seed(config.seed)
    with ended(Machine(config.scale, config.amp)) as machine:
        if not machine.is_first:
            progress, say = None, lambda line: None
        machine.shard.check(config.batch_size)
        if machine.is_first:
            _claim(request.out, request.resume)
        machine.wait()
        model, shape = _network(request, config)
        data = _data(request, shape, config, machine, progress, say)
        recorder = _recorder(model, request, machine, began)
        log = _train(model, shape, data, request, config, machine, recorder, progress, say)
        best = [epoch for epoch in log if epoch.selected][-1]
        say(f"selected epoch {best.epoch + 1}: {_summary(best)}")
        if best.point is not None and not best.eligible:
            say(f"warning: {statement(best.point, config.constraints)}")
        scores = _scores(request.out, data.select, config, machine, say)
        if recorder is not None:
            recorder.finish()
    return FitResult(log, best, *trainable_share(model), scores)


def _threads() -> int:
    """This process's share of the cores."""
    cores, processes = len(os.sched_getaffinity(0)), os.environ.get("LOCAL_WORLD_SIZE", "1")
    return max(1, cores // int(processes))


def _train(
    model: nn.Module,
    shape: RunConfig,
    data: _Data,
    request: FitRequest,
    config: FitConfig,
    machine: Machine,
    recorder: Recorder | None,
    progress: Progress | None,
    say: Say,
) -> list[Epoch]:
    """The epochs, recorded."""
    say(
        f"network: {shape.preset}, exits after blocks {', '.join(map(str, shape.exits))}; "
        f"{share_text(model)} on {len(data.train.labels)} images"
        + (f", in {machine.world} processes" if machine.world > 1 else "")
    )

    board = None
    if config.tensorboard and machine.is_first:
        board = TensorBoardLog(request.out / "tensorboard")

    def report(epoch: Epoch) -> None:
        say(_line(epoch, config))
        if board is not None:
            board.write(msgspec.to_builtins(epoch))
        if recorder is not None:
            recorder.epoch()

    return fit(
        model,
        data.train,
        data.select,
        config,
        request.out,
        resume=request.resume,
        progress=progress,
        report=report,
        machine=machine,
    )


def _recorder(
    model: nn.Module, request: FitRequest, machine: Machine, began: float
) -> Recorder | None:
    """Who notes time and memory: in the first process."""
    if not machine.is_first:
        return None
    some, total = trainable_share(model)
    return Recorder(request.out, trainable=some, parameters=total, began=began)


def _scores(
    run: Path, select: Loaded, config: FitConfig, machine: Machine, say: Say
) -> ScoreChoice:
    """Choose what each exit of the selected network ships as its score, and write it down."""
    machine.wait()
    if machine.is_first:
        model, _ = checkpoint.load_trained(run, scores=False)
        seen = read_exits(model.to(machine.device), select.pixels)
        chosen = choose_scores(seen, select.labels, select.groups, config.scores)
        checkpoint.save_scores(run, chosen)
    machine.wait()
    choice = checkpoint.read_scores(run)
    for exit_ in choice.exits:
        say(exit_.sentence)
    return choice


def _claim(run: Path, resume: bool) -> None:
    """Make the run folder; never write over another run."""
    exists = (run / "config.json").exists()
    if resume and not exists:
        raise ConfigError(f"{run} holds no run to resume; leave --resume out to start one")
    if exists and not resume:
        raise ConfigError(
            f"{run} already holds a run; resume it with --resume or choose another --out"
        )
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {run}: the folder cannot be made ({error.strerror})") from error


def _network(request: FitRequest, config: FitConfig) -> tuple[nn.Module, RunConfig]:
    """The network to train and the run's description (its classes are set once data is read)."""
    if request.adapter is not None and config.freeze == "backbone":
        raise ConfigError("freeze is backbone, which leaves an adapter nothing to adapt")
    if request.resume:
        return _resumed(request, config)
    init = None
    if request.init is not None:
        adapted = is_explored(request.init)  # which has a backbone and no exits
        for field in ("preset",) if adapted else ("preset", "exits"):
            if getattr(request, field) is not None:
                raise ConfigError(f"{field} comes from the --init run; leave it out")
        if request.weights != "random":
            raise ConfigError("weights come from the --init run; leave --weights out")
        if adapted:
            explored = read_explored(request.init)
            exits = request.exits or preset(explored.preset).exits
            model = CascadeModel(load_adapted(request.init), exits)
            shape = (explored.preset, exits, explored.preprocess)
        else:
            model, base = checkpoint.load_trained(request.init, scores=False)
            shape = (base.preset, base.exits, base.preprocess)
        if request.image_size is not None:  # RoPE has places for patches of any number
            size = backbone_config(preset(shape[0]), request.image_size).image_size
            shape = (*shape[:2], msgspec.structs.replace(shape[2], height=size, width=size))
        model.train()
        where = os.path.relpath(request.init.resolve(), request.out.resolve())
        init = InitFrom(where, checkpoint.weights_sha256(request.init))
    else:
        if request.adapter is not None and request.weights == "random":
            raise ConfigError("an adapter needs trained weights: give --init RUN or --weights")
        name = preset(request.preset or "tiny")
        exits = request.exits or name.exits
        check_exits(exits, name.blocks)
        backbone = build_backbone(name, image_size=request.image_size, weights=request.weights)
        size = backbone.config.image_size
        model = CascadeModel(backbone, exits)
        shape = (name.name, exits, Preprocess(height=size, width=size))
    _prepare(model, config)
    described = RunConfig(
        preset=shape[0],
        exits=shape[1],
        preprocess=shape[2],
        classes=("", ""),
        data=request.data,
        weights=_weights(request.weights),
        weights_sha256=checkpoint.folder_sha256(Path(request.weights)),
        init=init,
        adapter=request.adapter,
        fit=_as_json(config),
        made_by=made_by(config.seed),
    )
    return (add_adapter(model, request.adapter) if request.adapter else model), described


def _weights(weights: str) -> str:
    """A folder by its whole path, which means the same from everywhere."""
    return str(Path(weights).resolve()) if Path(weights).is_dir() else weights


def _prepare(model: CascadeModel, config: FitConfig) -> None:
    """What the settings say about the network itself."""
    for head in model.exits.heads:
        head.joint_gate = config.loss.joint_gate
    exit_shares(config.loss, len(model.exits.heads))  # says so if they are not one an exit
    if config.freeze == "backbone":
        HeadsOnly(model)


def _resumed(request: FitRequest, config: FitConfig) -> tuple[nn.Module, RunConfig]:
    """The network of an unfinished run; its settings must be the ones it was started with."""
    shape = checkpoint.read_trained(request.out)
    if shape.exits_of:
        raise ConfigError(
            f"{request.out} has some exits of another run and was not trained itself; train on "
            f"with another --out and --init {request.out}"
        )
    asked, had = _leaves(_as_json(config)), _leaves(shape.fit)
    if foreign := sorted(had.keys() - asked.keys()):
        raise ConfigError(
            f"{request.out} was made by another version of cascade-train (it has a setting "
            f"{foreign[0]}) and cannot be resumed; start again with another --out, and with --init "
            f"{request.out} if its weights are there"
        )
    for key, now, then in _asked_again(request, shape):
        asked[key], had[key] = now, then
    changed = sorted(key for key in asked if asked[key] != had.get(key))
    if changed:
        key = changed[0]
        raise ConfigError(
            f"--resume goes on with the settings of {request.out}/config.json, but {key} is "
            f"{asked[key]!r} now and was {had.get(key)!r}; give the same options as before"
        )
    model = checkpoint.start_network(request.out, shape)
    _prepare(model, config)
    return (add_adapter(model, shape.adapter) if shape.adapter else model), shape


def _leaves(settings: Any, path: str = "") -> dict[str, Any]:
    """Nested settings by dotted path."""
    if not isinstance(settings, dict) or not settings:
        return {path: settings}
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= _leaves(value, f"{path}.{key}" if path else key)
    return found


def _asked_again(request: FitRequest, shape: RunConfig) -> list[tuple[str, object, object]]:
    """(field, as asked now, as the run has it) of what must not change; None asks for nothing."""
    pairs = [
        ("data", request.data, shape.data),
        ("weights", _weights(request.weights), shape.weights),
        ("adapter", _as_json(request.adapter), _as_json(shape.adapter)),
        ("init", *(str(p) if p else None for p in _init_paths(request, shape))),
        ("preset", request.preset or shape.preset, shape.preset),
        ("exits", request.exits or shape.exits, shape.exits),
        ("image_size", request.image_size or shape.preprocess.height, shape.preprocess.height),
        ("positive", request.positive or shape.classes[1], shape.classes[1]),
    ]
    if request.split_seed is not None:
        drawn = load_splits(request.out / SPLITS_NAME).seed
        pairs.append(("split_seed", request.split_seed, drawn))
    if request.fractions is not None:
        fractions = load_splits(request.out / SPLITS_NAME).fractions
        pairs.append(("splits", request.fractions, tuple(fractions.values())))
    return pairs


def _init_paths(request: FitRequest, shape: RunConfig) -> tuple[Path | None, Path | None]:
    """The earlier run that is asked for and the one that this run started from."""
    asked = request.init.resolve() if request.init else None
    return asked, (request.out / shape.init.path).resolve() if shape.init else None


def _as_json(settings: object) -> Any:
    """Plain values as config.json gives them back: lists for tuples."""
    return msgspec.json.decode(msgspec.json.encode(settings))


def _data(
    request: FitRequest,
    shape: RunConfig,
    config: FitConfig,
    machine: Machine,
    progress: Progress | None,
    say: Say,
) -> _Data:
    """The images, by a new split or the run's own; the first process decodes for all of them."""
    data = None
    if machine.is_first:
        prepared = None
        if not request.resume:
            prepared = _split(request, shape, config.seed, progress, say)
        if prepared is not None and request.decode == "memory":
            data = _Data(prepared.pixels["train"], prepared.pixels["val_select"])
        else:
            data = _opened(request, shape, config, progress)
    machine.wait()
    return data or _opened(request, shape, config, progress)


def _opened(
    request: FitRequest, shape: RunConfig, config: FitConfig, progress: Progress | None
) -> _Data:
    """The images of a split that is there."""
    path, spec = request.out / SPLITS_NAME, shape.preprocess
    select = load_split_pixels(path, "val_select", spec, progress=progress)
    if request.decode == "memory":
        return _Data(load_split_pixels(path, "train", spec, progress=progress), select)
    larger = spec if config.freeze == "backbone" else decode_spec(spec, config.augment)
    if request.decode == "files":
        return _Data(split_files(path, "train", larger), select)
    return _Data(decoded_split(path, "train", larger, progress=progress), select)


def _split(
    request: FitRequest, shape: RunConfig, seed: int, progress: Progress | None, say: Say
) -> Prepared:
    """Split the images anew, and describe the run in its folder.

    Where the images are not to be in memory, their splits are drawn from small copies of them.
    """
    fractions, run, spec = DEFAULT_FRACTIONS, request.out, shape.preprocess
    if request.fractions is not None:
        fractions = dict(zip(DEFAULT_FRACTIONS, request.fractions, strict=True))
    if request.decode != "memory":
        side = min(GLANCE, spec.height, spec.width)
        spec = msgspec.structs.replace(spec, height=side, width=side)
    prepared = prepare(
        request.data,
        run,
        spec,
        fractions=fractions,
        seed=seed if request.split_seed is None else request.split_seed,
        positive=request.positive,
        progress=progress,
    )
    for start in (request.init, Path(request.weights)):
        if start is not None:
            refuse_seen(start, prepared.splits)
    say(prepared.summary())
    classes, train = prepared.splits.classes, prepared.pixels["train"]
    contact_sheet(train.pixels, train.labels, classes, run / "contact_sheet.png")
    checkpoint.write_config(run, msgspec.structs.replace(shape, classes=classes))
    return prepared


def _line(epoch: Epoch, config: FitConfig) -> str:
    mark = "*" if epoch.selected else " "
    return (
        f"epoch {epoch.epoch + 1:3d}/{config.epochs} {mark} loss {epoch.loss:.3f}  "
        f"{_summary(epoch)}  {epoch.images_per_s:.0f} images/s"
    )


def _summary(epoch: Epoch) -> str:
    accuracy = " / ".join(f"{100 * a:.1f}" for a in epoch.accuracy)
    return f"accuracy by exit {accuracy} %  AUGRC {epoch.augrc:.5f}  FNR {100 * epoch.fnr:.1f} %"
