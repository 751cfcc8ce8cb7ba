"""How a run is described: a YAML file, flags and `--set a.b=c`, into one checked `TrainConfig`.

In: layers of settings, the later over the earlier: defaults < file < flags < `--set`. Out: a
`TrainConfig`, and from it what `run_fit` takes. A key that does not exist is named with its path
and the nearest one that does; a value of the wrong kind with what was expected and where it was
set (`settings` does the checking).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from cascade_runtime.errors import ConfigError
from cascade_train.adapters import AdapterConfig
from cascade_train.fit import FitRequest
from cascade_train.loop import FitConfig
from cascade_train.settings import Layer, build, nested, read_yaml, setting, write_yaml

if TYPE_CHECKING:
    import click


class TrainConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that a run is made from, but not where it goes. None: as the preset or the start has it.

    Paths are relative to the working folder, in a file as on the command line. `split_seed` draws
    the four splits; without it `fit.seed` does.
    """

    data: str | None = None
    preset: str | None = None
    exits: tuple[int, ...] | None = None
    image_size: int | None = None
    weights: str = "random"
    init: str | None = None
    adapter: AdapterConfig | None = None
    fractions: tuple[float, ...] | None = None
    split_seed: int | None = None
    positive: str | None = None
    decode: Literal["memory", "cached", "files"] = "memory"
    threads: int | None = None
    fit: FitConfig = FitConfig()

    def __post_init__(self) -> None:
        if self.fractions is not None and len(self.fractions) != 4:
            raise ConfigError(
                f"fractions is {list(self.fractions)}, expected four shares: "
                "train, val_select, val_calib, val_test"
            )
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"threads is {self.threads}, it must be at least 1")


def train_config(
    file: Path | None = None,
    flags: Mapping[str, Any] | None = None,
    sets: Sequence[str] = (),
) -> TrainConfig:
    """Defaults, under the file, under the flags, under `--set`.

    Args:
        file: a YAML (or JSON) file.
        flags: values by dotted path, see `flag_values`.
        sets: `a.b=c`, the value as YAML.

    Raises:
        ConfigError: an unknown key, a value that does not fit, or a file that is not YAML.
    """
    layers: list[Layer] = [] if file is None else [(str(file), read_yaml(file))]
    layers.append(("the command line", nested(flags or {})))
    layers += [(f"--set {text}", setting(text)) for text in sets]
    return build(TrainConfig, layers)


def request_of(
    config: TrainConfig, out: Path, resume: bool = False
) -> tuple[FitRequest, FitConfig]:
    """What `run_fit` takes.

    Raises:
        ConfigError: nothing says which data.
    """
    if not config.data:
        raise ConfigError("data is missing: give --data, or a line `data: FOLDER` in the config")
    own = {f: getattr(config, f) for f in TrainConfig.__struct_fields__ if f != "fit"}
    own["init"] = Path(config.init) if config.init else None
    return FitRequest(out=out, resume=resume, **own), config.fit


def to_yaml(config: TrainConfig) -> str:
    """The whole configuration as YAML that `train_config` reads back to an equal one."""
    return write_yaml(_plain(config))


def flag_values(
    context: click.Context, places: Mapping[str, str], *, skip: Sequence[str] = ()
) -> dict[str, Any]:
    """The options that were typed (or set in the environment), by their dotted path.

    An option left at its default is not among them, so it never hides what the file says.

    Args:
        places: the paths of options that are not called like their field.
        skip: options that are no settings or that the caller translates itself.

    Raises:
        LookupError: an option that was typed has no place: a bug of the command.
    """
    from click.core import ParameterSource

    typed = (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT)
    values = {}
    for name, value in context.params.items():
        if name in skip or context.get_parameter_source(name) not in typed:
            continue
        if name in places:
            values[places[name]] = value
        elif name in FitConfig.__struct_fields__:
            values[f"fit.{name}"] = value
        elif name in TrainConfig.__struct_fields__:
            values[name] = str(value) if isinstance(value, Path) else value
        else:
            raise LookupError(f"the option {name} has no place in the configuration")
    return values


def differing(first: TrainConfig, second: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """The settings in which two configurations differ: values by dotted path."""
    a, b = dict(_leaves(_plain(first))), dict(_leaves(_plain(second)))
    return {key: (a.get(key), b.get(key)) for key in sorted(a | b) if a.get(key) != b.get(key)}


def _plain(config: TrainConfig) -> Any:
    return msgspec.json.decode(msgspec.json.encode(config))


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else key)
    else:
        yield path, value
