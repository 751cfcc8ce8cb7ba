"""The record of experiments: what each run was, how far it came, and what it took.

In: run folders (`checkpoint` says what is in them, `recorder` what training notes there). Out:
`list_runs` and `show_run`, for programs; `record_tables` shows them to people. Reading needs
neither torch nor the versions that wrote a run, and a run that is damaged or was stopped is listed
as such.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from cascade_runtime.errors import ConfigError
from cascade_train.curves import read_log, read_object, selected_epoch
from cascade_train.recorder import read_environment

FORMAT = "cascade-edge.run"
DEPTH = 4  # folders below the one that is listed

Status = Literal["finished", "unfinished", "damaged", "joined", "chosen"]


@dataclass(frozen=True)
class RunSummary:
    """One line of `cascade-train list`; None where the run does not say.

    path: relative to the folder that was listed. epochs: done. wanted: asked for. share: of the
    parameters, that trained. seconds: of all epochs. problem: why it is damaged. A run that is
    "joined" was not trained: its `init` are two. One that is "chosen" has some exits of its `init`.
    augrc, accuracy by exit and fnr: of the selected epoch, on val_select.
    """

    path: str
    status: Status
    problem: str = ""
    preset: str | None = None
    data: str | None = None
    adapter: str | None = None
    init: str | None = None
    epochs: int = 0
    wanted: int | None = None
    augrc: float | None = None
    accuracy: tuple[float, ...] = ()
    fnr: float | None = None
    share: float | None = None
    seconds: float | None = None
    peak_memory: int | None = None
    created: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe."""
        return {key: json_safe(value) for key, value in asdict(self).items()}


@dataclass(frozen=True)
class RunDetail:
    """One run in full: its line, config.json, environment.json and log as they are."""

    summary: RunSummary
    config: dict[str, Any]
    environment: dict[str, Any] | None
    log: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe."""
        return {key: json_safe(value) for key, value in asdict(self).items()}


def list_runs(folder: Path) -> list[RunSummary]:
    """Every run in a folder and the ones below it, by path.

    Raises:
        ConfigError: there is no such folder.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder; give the one that your runs are in")
    return [summarise(run, run.relative_to(folder).as_posix()) for run in _runs_below(folder)]


def show_run(run: Path) -> RunDetail:
    """All there is to say of one run.

    Raises:
        ConfigError: it is no run folder.
    """
    if not _is_run(run):
        raise ConfigError(f"{run} is no run folder (no config.json of a run, no log.jsonl)")
    environment = read_environment(run)
    config: dict[str, Any] = {}
    log: list[dict[str, Any]] = []
    with contextlib.suppress(ConfigError):  # the summary says what is wrong
        config = read_object(run / "config.json")
        log = read_log(run)
    return RunDetail(
        summary=summarise(run, str(run)),
        config=config,
        environment=None if environment is None else msgspec.to_builtins(environment),
        log=log,
    )


def summarise(run: Path, name: str) -> RunSummary:
    """A run's line; whatever is wrong with it becomes its status."""
    try:
        config, log = read_object(run / "config.json"), read_log(run)
        return _summary(run, name, config, log)
    except ConfigError as error:
        problem = str(error).removeprefix(f"{run}/")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        problem = f"its files do not hold what they should ({type(error).__name__}: {error})"
    return RunSummary(name, "damaged", problem)


def _summary(
    run: Path, name: str, config: Mapping[str, Any], log: Sequence[Mapping[str, Any]]
) -> RunSummary:
    if config.get("joined"):
        return _joined(run, name, config)
    if config.get("exits_of"):
        return _chosen(run, name, config)
    settings, best = config["fit"], selected_epoch(log)
    environment = read_environment(run)
    adapter, init = config.get("adapter"), config.get("init")
    wanted = int(settings["epochs"])
    patience = int(settings.get("patience") or 0)
    out_of_patience = len(log) > patience > 0 and not any(e["selected"] for e in log[-patience:])
    ended = len(log) >= wanted or out_of_patience or bool(environment and environment.finished)
    kept = (run / "model.safetensors").exists() or (run / "adapter").is_dir()
    if best and not kept:
        raise ConfigError("the selected weights are missing")
    peaks = [s.peak_memory for s in environment.sessions if s.peak_memory] if environment else []
    return RunSummary(
        path=name,
        status="finished" if ended and best else "unfinished",
        preset=str(config["preset"]),
        data=str(config["data"]),
        adapter=f"{adapter['kind']} {adapter['rank']}" if adapter else None,
        init=init["path"] if init else None,
        epochs=len(log),
        wanted=wanted,
        augrc=float(best["augrc"]) if best else None,
        accuracy=tuple(float(a) for a in best["accuracy"]) if best else (),
        fnr=float(best["fnr"]) if best else None,
        share=environment.trainable / environment.parameters if environment else None,
        seconds=sum(float(e["seconds"]) for e in log) if log else None,
        peak_memory=max(peaks, default=None),
        created=config.get("made_by", {}).get("created"),
    )


def _joined(run: Path, name: str, config: Mapping[str, Any]) -> RunSummary:
    """A run of two others, which say the rest."""
    paths = [str(part["path"]) for part in config["joined"]]
    for path in paths:
        if not (run / path / "config.json").exists():
            raise ConfigError(f"the run {path} that it joins is missing")
    return RunSummary(
        path=name,
        status="joined",
        preset=str(config["preset"]),
        data=str(config["data"]),
        init=" + ".join(paths),
        created=config.get("made_by", {}).get("created"),
    )


def _chosen(run: Path, name: str, config: Mapping[str, Any]) -> RunSummary:
    """A run that has some of the exits of another, which says how it was trained."""
    if not (run / "model.safetensors").exists():
        raise ConfigError("its weights are missing")
    return RunSummary(
        path=name,
        status="chosen",
        preset=str(config["preset"]),
        data=str(config["data"]),
        init=config["init"]["path"],
        created=config.get("made_by", {}).get("created"),
    )


def _is_run(folder: Path) -> bool:
    """Whether it is a run, damaged or not; other tools' folders have a config.json as well."""
    if (folder / "log.jsonl").exists():
        return True
    if not (folder / "config.json").exists():
        return False
    try:
        return bool(read_object(folder / "config.json").get("format") == FORMAT)
    except ConfigError:
        return (folder / "splits.json").exists()


def _runs_below(folder: Path, depth: int = DEPTH) -> Iterator[Path]:
    """Run folders, in order; a run holds no other runs, links are not followed."""
    if _is_run(folder):
        yield folder
        return
    if depth == 0:
        return
    try:
        inner = sorted(p for p in folder.iterdir() if p.is_dir() and not p.is_symlink())
    except OSError:
        return  # a folder that may not be read holds no run for this reader
    for path in inner:
        if not path.name.startswith("."):
            yield from _runs_below(path, depth - 1)


def json_safe(value: Any) -> Any:
    """The same with lists for tuples and None for what JSON cannot say."""
    if isinstance(value, dict):
        return {str(key): json_safe(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
