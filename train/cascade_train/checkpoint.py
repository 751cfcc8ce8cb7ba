"""A run folder: what training writes and what compiling, resuming and `--init` read.

    RUN/config.json             RunConfig: network, data, settings, provenance
    RUN/splits.json             who is in which split
    RUN/log.jsonl               one line an epoch
    RUN/model.safetensors       the selected weights (full training), or
    RUN/adapter/                the selected adapters and heads (adapter training)
    RUN/scores.json             which score each exit ships, and why
    RUN/scores.safetensors      the numbers of those scores
    RUN/last.safetensors        everything a resumed run needs; settings in its header

A run that joins two others has config.json and splits.json alone, and finds their weights by path.
One that keeps some exits of another has no log and no last.safetensors.

Files are written under a temporary name and renamed. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from peft import PeftModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cascade_runtime.errors import ConfigError
from cascade_runtime.manifest import MadeBy, Preprocess
from cascade_train.adapters import AdapterConfig, load_adapter, merge, save_adapter
from cascade_train.backbone import build_backbone
from cascade_train.exits import CascadeModel, JoinedModel, Network
from cascade_train.gates import attach_scores, new_scores
from cascade_train.presets import preset
from cascade_train.score_choice import Chosen, ScoreChoice
from cascade_train.sharding import full, like

FORMAT = "cascade-edge.run"


class InitFrom(msgspec.Struct, frozen=True):
    """The earlier run whose merged weights this one started from."""

    path: str
    weights_sha256: str


class Part(InitFrom, frozen=True):
    """One of the runs that a run joins: its weights, and the scores that its exits ship."""

    scores_sha256: str | None = None


class RunConfig(msgspec.Struct, frozen=True, kw_only=True):
    """`config.json`. `fit` holds the training settings as plain JSON, for the record.

    joined: the runs whose networks follow one another in this one (`join`); it was not trained.
    exits_of: all exits of the run `init`, of which this one has some (`keep_exits`); not trained.
    """

    format: str = FORMAT
    version: int = 1
    preset: str
    exits: tuple[int, ...]
    preprocess: Preprocess
    classes: tuple[str, str]
    data: str
    weights: str = "random"
    weights_sha256: str = ""
    init: InitFrom | None = None
    adapter: AdapterConfig | None = None
    joined: tuple[Part, ...] = ()
    exits_of: tuple[int, ...] = ()
    fit: dict[str, Any]
    made_by: MadeBy


def write_config(run: Path, config: RunConfig) -> None:
    """Write config.json."""
    data = msgspec.json.format(msgspec.json.encode(config), indent=2) + b"\n"
    write_atomic(run / "config.json", data)


def read_config(run: Path) -> RunConfig:
    """Read config.json.

    Raises:
        ConfigError: no run folder, or not one of ours.
    """
    path = run / "config.json"
    if not path.is_file():
        raise ConfigError(
            f"{run} is no run folder (no config.json); make one with cascade-train fit"
        )
    try:
        config = msgspec.json.decode(path.read_bytes(), type=RunConfig)
    except msgspec.DecodeError as error:
        raise ConfigError(f"{path}: {error}") from error
    if config.format != FORMAT or config.version != 1:
        raise ConfigError(f"{path}: unknown format {config.format!r} version {config.version}")
    return config


def read_trained(run: Path) -> RunConfig:
    """Read config.json of a run that was trained.

    Raises:
        ConfigError: as `read_config`, or it joins others and there is nothing to go on with.
    """
    config = read_config(run)
    if config.joined:
        names = " and ".join(str((run / part.path).resolve()) for part in config.joined)
        raise ConfigError(f"{run} only joins the runs {names}; give the one that is meant")
    return config


def write_atomic(path: Path, data: bytes) -> None:
    """Write under a temporary name, flush to disk, rename."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def save_tensors(
    path: Path, tensors: dict[str, Tensor], header: dict[str, str] | None = None
) -> None:
    """Write a safetensors file atomically."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        save_file({k: v.detach().contiguous() for k, v in tensors.items()}, temporary, header)
        temporary.replace(path)
    except SafetensorError as error:
        raise _unwritten(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def _unwritten(path: Path, error: SafetensorError) -> ConfigError:
    """What a full disk has become by then."""
    return ConfigError(
        f"{path} cannot be written ({error}); what was there is kept. Make room, then --resume"
    )


def save_selected(run: Path, model: nn.Module, *, write: bool = True) -> None:
    """Write the weights that ship: the whole network, or adapters and heads alone.

    Args:
        write: False where another process does; all have to call it when weights are sharded.
    """
    if isinstance(model, PeftModel):
        temporary = run / ".adapter.part" if write else None
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        try:
            save_adapter(model, temporary)
        except SafetensorError as error:
            shutil.rmtree(run / ".adapter.part", ignore_errors=True)
            raise _unwritten(run / "adapter", error) from error
        if temporary is None:
            return
        old = run / ".adapter.old"
        shutil.rmtree(old, ignore_errors=True)
        if (run / "adapter").exists():
            (run / "adapter").rename(old)
        temporary.rename(run / "adapter")
        shutil.rmtree(old, ignore_errors=True)
    else:
        tensors = model.state_dict().items()
        state = {name: full(tensor, keep=write) for name, tensor in tensors}
        if write:
            save_tensors(run / "model.safetensors", state)


def weights_sha256(run: Path) -> str:
    """SHA-256 of the run's selected weights file, or of an adaptation's backbone."""
    from cascade_train.explora.output import adapted_sha256, is_explored  # which reads runs itself

    if is_explored(run):
        return adapted_sha256(run)
    path = run / "model.safetensors"
    if not path.exists():
        path = run / "adapter" / "adapter_model.safetensors"
    if not path.exists():
        raise ConfigError(f"{run} holds no finished weights yet; let cascade-train fit end first")
    return _sha256(path)


def scores_sha256(run: Path) -> str | None:
    """SHA-256 of the scores that the run's exits ship; None: they ship their trained gates."""
    path = run / "scores.safetensors"
    return _sha256(path) if path.exists() else None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_scores(run: Path, chosen: Chosen) -> None:
    """Write which score each exit ships."""
    modules = nn.ModuleList(chosen.scores)
    save_tensors(run / "scores.safetensors", dict(modules.state_dict()))
    data = msgspec.json.format(msgspec.json.encode(chosen.choice), indent=2) + b"\n"
    write_atomic(run / "scores.json", data)


def read_scores(run: Path) -> ScoreChoice:
    """Which score each exit ships, and why."""
    return msgspec.json.decode((run / "scores.json").read_bytes(), type=ScoreChoice)


def load_network(run: Path, *, scores: bool = True) -> tuple[Network, RunConfig]:
    """The network of a run, trained or joined, in float32 and eval mode, and its config.

    Args:
        scores: whether the exits' gates are the scores that were chosen after training, if any
            were, or the gates that were trained.

    Raises:
        ConfigError: weights missing, damaged, not fitting, or a run it depends on has changed.
    """
    config = read_config(run)
    if config.joined:
        return _load_joined(run, config, scores=scores), config
    return load_trained(run, scores=scores)


def load_trained(run: Path, *, scores: bool = True) -> tuple[CascadeModel, RunConfig]:
    """The selected network of a run that was trained, adapters merged; see `load_network`.

    Raises:
        ConfigError: also when the run joins others, and so is no network to go on with.
    """
    config = read_trained(run)
    weights_sha256(run)  # says so when nothing is there
    if config.adapter is not None:
        model = merge(load_adapter(start_network(run, config), run / "adapter"))
    else:
        model = _network(config, "random")
        load_exact(model, run / "model.safetensors")
    if scores and (run / "scores.safetensors").exists():
        modules = new_scores(model)
        load_exact(modules, run / "scores.safetensors")
        attach_scores(model, modules)
    return model.float().eval(), config


def folder_sha256(weights: Path) -> str:
    """SHA-256 over the safetensors files of a local weights folder; "" where it has none."""
    files = sorted(weights.glob("*.safetensors")) if weights.is_dir() else []
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest() if files else ""


def start_network(run: Path, config: RunConfig) -> CascadeModel:
    """The network that a run starts from: an earlier run's, or its preset with its weights."""
    if config.init is None:
        if config.weights_sha256 and folder_sha256(Path(config.weights)) != config.weights_sha256:
            raise ConfigError(
                f"{config.weights} holds other weights than {run} started from, or none; restore "
                "them, or train again"
            )
        return _network(config, config.weights)
    return _load_init(run, config.init, config.exits)


def _network(config: RunConfig, weights: str) -> CascadeModel:
    size = config.preprocess.height
    backbone = build_backbone(preset(config.preset), image_size=size, weights=weights)
    return CascadeModel(backbone, config.exits)


def _load_init(run: Path, init: InitFrom, exits: tuple[int, ...]) -> CascadeModel:
    """The earlier run's network, or an adapted backbone with new exits; none that has changed."""
    from cascade_train.explora.output import is_explored, load_adapted

    base_run = (run / init.path).resolve()
    if weights_sha256(base_run) != init.weights_sha256:
        raise ConfigError(
            f"{base_run} is not the base that {run} was adapted from (its weights have changed); "
            "restore it, or run the adaptation again"
        )
    if is_explored(base_run):
        return CascadeModel(load_adapted(base_run), exits)
    return load_trained(base_run, scores=False)[0]


def _load_joined(run: Path, config: RunConfig, *, scores: bool) -> JoinedModel:
    """The networks of a run that `join` made, as one in eval mode; see `load_network`.

    Raises:
        ConfigError: one of them is gone, or no longer what was joined.
    """
    places = [(run / part.path).resolve() for part in config.joined]
    for place, part in zip(places, config.joined, strict=True):
        read_trained(place)  # says so when nothing is there
        found = weights_sha256(place), scores_sha256(place)
        if found != (part.weights_sha256, part.scores_sha256):
            raise _changed(run, f"the weights or scores of {place} have changed")
    loaded = [load_trained(place, scores=scores) for place in places]
    for name, value in joined_shape([shape for _, shape in loaded]).items():
        if getattr(config, name) != value:
            raise _changed(run, f"{name} of its parts is {value!r}, and was then otherwise")
    return JoinedModel([model for model, _ in loaded]).eval()


def _changed(run: Path, what: str) -> ConfigError:
    return ConfigError(f"{run} is no longer what was joined: {what}; restore it, or join again")


def joined_shape(configs: Sequence[RunConfig]) -> dict[str, Any]:
    """What a pair's description takes from those of its parts; exits are counted through."""
    return {
        "preset": " + ".join(config.preset for config in configs),
        "exits": tuple(blocks for config in configs for blocks in config.exits),
        "preprocess": configs[0].preprocess,
        "classes": configs[0].classes,
    }


def load_exact(model: nn.Module, path: Path) -> None:
    """Load a safetensors file whose keys and shapes must be exactly the model's."""
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error
    wanted = model.state_dict()
    wrong = set(wanted) ^ set(state) or {k for k in wanted if wanted[k].shape != state[k].shape}
    if wrong:
        raise ConfigError(f"{path}: does not fit the network, first at {min(wrong)!r}")
    model.load_state_dict(state)


def save_state(
    run: Path,
    model: nn.Module,
    average: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    notes: dict[str, Any],
    *,
    write: bool = True,
) -> None:
    """Write last.safetensors: trainable weights, their average, and the optimiser's moments."""
    tensors = {f"model/{k}": full(v.detach(), keep=write) for k, v in trainable(model).items()}
    tensors |= {f"ema/{k}": full(v, keep=write).clone() for k, v in average.items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{k}": full(v, keep=write) for k, v in state.items()}
    if write:
        save_tensors(run / "last.safetensors", tensors, {"notes": json.dumps(notes)})


def load_state(
    run: Path, model: nn.Module, average: dict[str, Tensor], optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """Restore what `save_state` wrote, in place; returns its notes."""
    path = run / "last.safetensors"
    try:
        tensors = load_file(path)
        with safe_open(path, "pt") as file:
            notes: dict[str, Any] = json.loads(file.metadata()["notes"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ConfigError(f"{path}: cannot resume from it ({error}); start again") from error
    parameters = trainable(model)
    for prefix, target in (("model", parameters), ("ema", average)):
        for name, tensor in target.items():
            saved = tensors.get(f"{prefix}/{name}")
            if saved is None or saved.shape != tensor.shape:
                raise ConfigError(f"{path}: does not fit the network at {name!r}; start again")
            with torch.no_grad():
                tensor.copy_(like(saved, tensor))
    optimizer.load_state_dict(_moments(tensors, optimizer))
    return notes


def _moments(tensors: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimiser's state from the tensors of a file, cut as its parameters are."""
    owners = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer/"):
            _, index, name = key.split("/")
            owner = owners[int(index)]
            cut = like(value, owner) if value.shape == owner.shape else value
            state.setdefault(int(index), {})[name] = cut
    return {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training moves, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
