"""`cascade-compile exits`: of a run's exits, ship those whose cascade is the fastest here.

In: a run that was trained with many exits, a target, and the promise that will be asked for. Out: a
run with some of these exits, for `bundle`, and what was expected of each choice. The engines of all
exits are built, their stages timed, and `val_select` is run through them once.

`val_calib` and `val_test` are never read: what is chosen by an image cannot be certified on it.
Only how many images `val_calib` has is used, since the thresholds that can be proven depend on it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from cascade_calib.certify_engines import collected, costs
from cascade_calib.certify_target import decision_of, fit_rules
from cascade_calib.labelled import Loaded, Progress, load_split_pixels
from cascade_calib.path import SET_POLICIES, Request
from cascade_calib.publish import part_of
from cascade_calib.splits_file import SPLITS_NAME, read_splits
from cascade_compile.build_target import (
    Build,
    build_engines,
    compare,
    open_stages,
    spread,
    stage_sources,
)
from cascade_compile.ledger import carry
from cascade_compile.placement import CHANCE, Exits, Placement, choose, expect, subsets
from cascade_compile.stage_times import measure_times
from cascade_compile.stages import describe
from cascade_compile.targets import TargetName
from cascade_runtime.errors import ConfigError
from cascade_runtime.stages import Stages
from cascade_train.checkpoint import RunConfig, load_trained, read_trained, write_atomic
from cascade_train.exits import CascadeModel
from cascade_train.keep_exits import keep_exits, with_exits

BATCH = 32
MOST = 3
CHOICE = "exits.json"
Say = Callable[[str], None]


@dataclass(frozen=True)
class ExitsRequest:
    """What to choose for. `splits` is the splits.json that will certify, default the run's own.

    batch: images at a time, as the device will get them. most: exits that a choice may have.
    chance: of a certificate that a choice must have. within: how much less it may cover than the
    best choice; None: the coverage floor alone counts.
    """

    run: Path
    out: Path
    target: TargetName
    promise: Request
    splits: Path | None = None
    batch: int = BATCH
    most: int = MOST
    chance: float = CHANCE
    within: float | None = None
    threads: int | None = None


@dataclass(frozen=True)
class ExitsChoice:
    """What was expected of every choice, the fastest first, and the one that was made.

    own: the run's own exits, None where they do not reach the coverage floor; chosen: None where no
    choice is likely enough to be certified. `considered` counts those, too, that cover too little.
    """

    request: ExitsRequest
    images: int
    considered: int
    placements: tuple[Placement, ...]
    own: Placement | None
    chosen: Placement | None

    def likely(self, placement: Placement) -> bool:
        """Whether a choice has the chance of a certificate that was asked for."""
        return placement.chance >= self.request.chance

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe; `exits.json` of the run that is written."""
        request, promise = self.request, self.request.promise
        return {
            "run": str(request.run),
            "target": str(request.target),
            "alpha": float(promise.alpha),
            "delta": float(promise.delta),
            "coverage": float(promise.coverage),
            "fnr": None if promise.fnr is None else float(promise.fnr),
            "policy": promise.policy,
            "batch": request.batch,
            "most": request.most,
            "chance": request.chance,
            "within": request.within,
            "images": self.images,
            "considered": self.considered,
            "chosen": None if self.chosen is None else self.chosen.to_dict(),
            "own": None if self.own is None else self.own.to_dict(),
            "placements": [placement.to_dict() for placement in self.placements],
        }


def choose_exits(
    request: ExitsRequest, *, progress: Progress | None = None, say: Say = print
) -> ExitsChoice:
    """Choose, and write the run with the chosen exits; nothing where none can be proven.

    Raises:
        ConfigError: the run has one exit, or joins others; `out` is taken; or the promise is about
            prediction sets.
        TargetError: the target cannot run here.
        ParityError: its engines are wrong.
    """
    config = _check(request)
    part = part_of(request.out)
    part.mkdir(parents=True)
    try:
        exits, n_calib = _measure(request, config, part, progress, say)
        found = _search(request, exits, n_calib, progress)
        if found.chosen is not None:
            shutil.rmtree(part)
            _write(found, part)
            part.rename(request.out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return found


def _check(request: ExitsRequest) -> RunConfig:
    config = read_trained(request.run)
    if len(config.exits) == 1:
        raise ConfigError(
            f"{request.run} has one exit, after block {config.exits[0]}, so there is nothing to "
            "choose from; train with several, such as cascade-train fit --exits "
            f"{','.join(str(block) for block in range(1, config.exits[0] + 1))}"
        )
    if request.promise.policy in SET_POLICIES:
        raise ConfigError(
            f"exits are chosen by what is expected of single answers, and {request.promise.policy} "
            "promises prediction sets; choose under the policy certified, softmax or gate"
        )
    if request.out.exists():
        raise ConfigError(f"{request.out} exists; choose another --out")
    return config


def _measure(
    request: ExitsRequest, config: RunConfig, folder: Path, progress: Progress | None, say: Say
) -> tuple[Exits, int]:
    """What all exits say and cost, and how many images will certify."""
    splits = request.splits or request.run / SPLITS_NAME
    n_calib = len(read_splits(splits).of("val_calib"))
    select = load_split_pixels(splits, "val_select", config.preprocess, progress=progress)
    model, _ = load_trained(request.run)
    last = with_exits(model, model.exit_blocks[-1:])
    say(f"{request.target}: building {len(model.exit_blocks)} stages, and all of them as one")
    build = partial(_build, request, config, select, progress)
    cascade = _engines(build(folder / "all", model), request.target, check=True)
    whole = _engines(build(folder / "one", last), request.target, check=False)
    seen = collected(cascade, select, f"{request.target} val_select", progress)
    rules = fit_rules(seen, request.promise.policy)
    never = decision_of(rules, None, request.promise.policy)
    times = measure_times(
        (cascade, never),
        (whole, msgspec.structs.replace(never, exits=never.exits[-1:])),
        spread(select.pixels, request.batch),
        request.batch,
        progress=progress,
    )
    macs = costs(describe(model, config.preprocess.height))
    return Exits(seen, rules, config.exits, tuple(macs), times), n_calib


def _build(
    request: ExitsRequest,
    config: RunConfig,
    select: Loaded,
    progress: Progress | None,
    folder: Path,
    model: CascadeModel,
) -> Build:
    """What the engines of a network are made from, in a new folder."""
    folder.mkdir()
    size = config.preprocess.height
    return Build(
        folder=folder,
        sources=stage_sources(model, size, folder, select.pixels),
        infos=describe(model, size),
        model=model,
        preprocess=config.preprocess,
        select=select,
        threads=request.threads,
        progress=progress,
    )


def _engines(build: Build, name: TargetName, *, check: bool) -> Stages:
    """Engines, loaded; `check`: they are compared with their network."""
    target = build_engines(build, name)
    stages = open_stages(build, name, target)
    if check:
        compare(build, name, target, stages)
    return stages


def _search(
    request: ExitsRequest, exits: Exits, n_calib: int, progress: Progress | None
) -> ExitsChoice:
    count = len(exits.blocks)
    choices = list(subsets(count, request.most))
    expected = {}
    for number, kept in enumerate(choices, 1):
        expected[kept] = expect(exits, kept, request.promise, n_calib)
        if progress is not None:
            progress("choices of exits", number, len(choices))
    own = tuple(range(count))
    allowed = [p for kept, p in expected.items() if p and len(kept) <= request.most]
    return ExitsChoice(
        request=request,
        images=len(exits.seen),
        considered=len(choices),
        placements=tuple(sorted(allowed, key=lambda p: (p.ms, p.exits))),
        own=expected[own],
        chosen=choose(allowed, request.chance, request.within),
    )


def _write(found: ExitsChoice, part: Path) -> None:
    assert found.chosen is not None
    keep_exits(found.request.run, found.chosen.exits, part)
    carry(found.request.run, part)
    encoded = msgspec.json.format(msgspec.json.encode(found.to_dict()), indent=2) + b"\n"
    write_atomic(part / CHOICE, encoded)
