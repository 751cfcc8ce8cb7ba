"""YAML, flags and `--set` become one configuration, and a mistake in them one clear message."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec
import pytest
from click.testing import CliRunner

from cascade_runtime.errors import ConfigError
from cascade_train.adapters import AdapterConfig
from cascade_train.config import (
    TrainConfig,
    differing,
    flag_values,
    request_of,
    to_yaml,
    train_config,
)
from cascade_train.fit import FitRequest
from cascade_train.loop import FitConfig

FILE = """
data: roadworks:day
exits: [1, 2]
fit:
  lr: 2e-3
  epochs: 5
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "train.yaml"
    path.write_text(FILE)
    return path


def test_later_layers_win_and_leave_the_rest(file: Path) -> None:
    config = train_config(file, {"fit.epochs": 6, "fit.ema": 0.5}, ["fit.ema=0.7", "threads=1"])
    assert (config.fit.lr, config.fit.epochs, config.fit.ema) == (0.002, 6, 0.7)
    assert (config.exits, config.threads) == ((1, 2), 1)
    assert config.fit.batch_size == FitConfig().batch_size


def test_no_layer_is_the_defaults() -> None:
    assert train_config() == TrainConfig()
    assert TrainConfig().fit == FitConfig()


def test_empty_file_is_no_settings(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("# nothing yet\n")
    assert train_config(tmp_path / "empty.yaml") == TrainConfig()


@pytest.mark.parametrize(
    "sets",
    [
        [],
        ["adapter.rank=4", "fit.loss.gate=0.5", "fit.lr=1e-05", "fractions=[.5,.2,.2,.1]"],
        ['positive="1e3"', 'data="0x10"', "init=runs/day", "fit.weight_decay=1e-300"],
        ["positive='yes'", "data='~'", "weights='12:30:45'"],
    ],
)
def test_yaml_round_trip_is_the_same_configuration(tmp_path: Path, sets: list[str]) -> None:
    config = train_config(sets=sets)
    again = tmp_path / "again.yaml"
    again.write_text(to_yaml(config), encoding="utf-8")
    assert train_config(again) == config
    assert to_yaml(train_config(again)) == to_yaml(config)


def test_yaml_states_every_setting() -> None:
    text = to_yaml(train_config(sets=["adapter.rank=4", "fit.loss.gate=0.5"]))
    for field in AdapterConfig.__struct_fields__:
        assert f"\n  {field}:" in text
    for field in TrainConfig.__struct_fields__:
        assert f"\n{field}:" in f"\n{text}"


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("fit.lrr=1", "fit.lrr is unknown, did you mean fit.lr?"),
        ("lr=1", "lr is unknown, did you mean fit.lr?"),
        ("adapter.rnk=3", "did you mean adapter.rank?"),
        ("wieghts=hub", "did you mean weights?"),
        ("qqq=1", "qqq is unknown; there are data, preset"),
        ("fit.epochs=ten", "fit.epochs is 'ten', expected a whole number (from --set"),
        ("fit.amp=fp8", "fit.amp is 'fp8', expected one of auto, bf16"),
        ("exits=2,6", "exits is '2,6', expected a list, each a whole number"),
        ("exits=[2,x]", "exits is [2, 'x']"),
        ("positive=1", "expected text or null; put it in quotes"),
        ("adapter=lora", "adapter is 'lora', expected a mapping or null"),
        ("fit=3", "fit is 3, expected a mapping"),
        ("fit.lr=-1", "fit.lr is -1.0, which is out of range (from --set fit.lr=-1)"),
        ("fractions=[.5,.5]", "expected four shares"),
        ("threads=0", "threads is 0, it must be at least 1"),
        ("fit..lr=1", "is not of the form key=value"),
        ("fit.lr", "is not of the form key=value"),
        ("fit.lr=[", "the value is not YAML"),
    ],
)
def test_mistake_names_path_value_and_what_is_expected(
    file: Path, setting: str, words: str
) -> None:
    with pytest.raises(ConfigError) as error:
        train_config(file, sets=[setting])
    assert words in str(error.value)


def test_mistake_in_the_file_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("fit:\n  epochs: many\n")
    with pytest.raises(ConfigError, match=r"fit\.epochs is 'many'.*\(from .*bad\.yaml\)"):
        train_config(path, sets=["fit.lr=0.1"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("fit: {lr: 1, lr: 2}", "the key 'lr' stands twice in line 1"),
        ("data: a\nfit: [", "is not YAML"),
        ("- data", "expected lines of `key: value`"),
        ("a: &x {b: 1}\nc: *x", "references are not read in line 2"),
        ("data: !!python/object:os.system {}", "is not YAML"),
    ],
)
def test_file_that_is_no_plain_yaml_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        train_config(path)
    assert words in str(error.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        train_config(tmp_path / "nowhere.yaml")


def test_request_carries_every_setting(file: Path) -> None:
    config = train_config(file, sets=["adapter.rank=4", "init=runs/day", "split_seed=7"])
    request, fit = request_of(config, Path("out"), resume=True)
    assert fit is config.fit
    assert request == FitRequest(
        data="roadworks:day",
        out=Path("out"),
        exits=(1, 2),
        init=Path("runs/day"),
        adapter=config.adapter,
        split_seed=7,
        resume=True,
    )
    with pytest.raises(ConfigError, match="data is missing"):
        request_of(TrainConfig(), Path("out"))


def test_only_flags_that_were_typed_hide_the_file(file: Path) -> None:
    seen: list[TrainConfig] = []

    @click.command()
    @click.option("--lr", default=1e-3)
    @click.option("--epochs", default=12)
    @click.option("--rank", default=16)
    @click.option("--init", type=click.Path(path_type=Path))
    @click.option("--out", default="x")
    @click.option("--no-augment", is_flag=True)
    @click.pass_context
    def command(context: click.Context, **_: object) -> None:
        flags = flag_values(context, {"rank": "adapter.rank"}, skip=("out", "no_augment"))
        seen.append(train_config(file, flags))

    CliRunner().invoke(command, [], catch_exceptions=False)
    CliRunner().invoke(
        command,
        ["--epochs", "12", "--rank", "4", "--init", "a", "--out", "y", "--no-augment"],
        catch_exceptions=False,
    )
    untouched, typed = seen
    assert (untouched.fit.lr, untouched.fit.epochs, untouched.adapter) == (0.002, 5, None)
    assert (typed.fit.lr, typed.fit.epochs, typed.init) == (0.002, 12, "a")
    assert typed.adapter is not None
    assert typed.adapter.rank == 4


def test_every_flag_of_fit_has_a_place_with_the_same_default() -> None:
    from cascade_train.cli import PLACES, fit

    skip = ("file", "out", "sets", "resume", "help")
    places = {
        option.name: PLACES.get(option.name or "", option.name or "")
        for option in fit.params
        if option.name not in skip
    }
    defaults: Any = msgspec.to_builtins(TrainConfig(adapter=AdapterConfig()))
    for option in fit.params:
        if option.name in skip:
            continue
        owner, path = defaults, places[option.name]
        if path not in defaults and "." not in path:
            path = f"fit.{path}"
        for name in path.split("."):
            assert name in owner, f"--{option.name} stands for {path}, which is no setting"
            owner = owner[name]
        shown = option.to_info_dict()["default"]
        if shown is not None:  # None: left to the configuration
            assert shown == owner, option.name


def test_flag_without_a_place_is_not_swallowed() -> None:
    @click.command()
    @click.option("--colour")
    @click.pass_context
    def command(context: click.Context, **_: object) -> None:
        flag_values(context, {})

    with pytest.raises(LookupError, match="colour has no place"):
        CliRunner().invoke(command, ["--colour", "red"], catch_exceptions=False)


def test_differing_names_the_settings_that_changed() -> None:
    first, second = TrainConfig(), train_config(sets=["fit.lr=0.5", "adapter.rank=4"])
    found = differing(first, second)
    assert found["fit.lr"] == (FitConfig().lr, 0.5)
    assert found["adapter.rank"] == (None, 4)
    assert "fit.epochs" not in found
    assert differing(first, TrainConfig()) == {}
