"""Options that several verbs have, with one name, one default and one sentence each.

In: nothing. Out: decorators for click commands.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

MOST_IMAGES = 1024
F = TypeVar("F", bound=Callable[..., Any])


def _together(*options: Callable[[F], F]) -> Callable[[F], F]:
    def decorate(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def data() -> Callable[[F], F]:
    """`--data` and `--split`: the labelled images."""
    return _together(
        click.option("--data", help="Labelled images: class folders, a CSV or Parquet, or splits."),
        click.option("--split", help="Which split of a splits.json.  [default: val_test]"),
    )


def place() -> Callable[[F], F]:
    """`--target` and `--threads`: what runs."""
    return _together(
        click.option("--target", default="auto", show_default=True, help="A target of the bundle."),
        threads(),
    )


def threads() -> Callable[[F], F]:
    """`--threads`."""
    return click.option("--threads", type=click.IntRange(1), help="CPU threads.  [default: all]")


def runtime(help: str) -> Callable[[F], F]:
    """`--runtime`: who decides; `help` says what follows from it."""
    return click.option(
        "--runtime",
        type=click.Choice(["python", "native"]),
        default="python",
        show_default=True,
        help=help,
    )


def limits() -> Callable[[F], F]:
    """`--max-ms`, `--min-rate`, `--min-coverage`, `--max-error`: the toolkit's four targets."""
    return _together(
        click.option(
            "--max-ms", type=Finite(), default=50.0, show_default=True, help="Latency target."
        ),
        click.option(
            "--min-rate",
            type=Finite(),
            default=100.0,
            show_default=True,
            help="Throughput target, images/s.",
        ),
        click.option(
            "--min-coverage",
            type=Finite(),
            default=0.70,
            show_default=True,
            help="Coverage target.",
        ),
        click.option(
            "--max-error", type=Finite(), default=0.01, show_default=True, help="Exit error target."
        ),
    )


def outputs() -> Callable[[F], F]:
    """`--json`, `--plot` and `--report`: where what was found goes, as `output.finish` has it."""
    return _together(
        click.option("--json", "as_json", is_flag=True, help="One JSON object, no tables."),
        click.option("--plot", type=click.Path(path_type=Path), help="Also draw FILE.png."),
        click.option("--report", type=click.Path(path_type=Path), help="Also write FILE.html."),
    )


def batches(default: str) -> Callable[[F], F]:
    """`--batch 1,8`: batch sizes, as a tuple of numbers, smallest first."""
    return click.option(
        "--batch",
        "batches",
        callback=_sizes,
        default=default,
        show_default=True,
        help="Batch sizes, with commas.",
    )


class Finite(click.FloatRange):
    """A number within its bounds: not `inf`, and not `nan`, which no bound keeps out."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} must be a finite number", param, ctx)
        return number


def _sizes(_: click.Context, __: click.Parameter, value: str) -> tuple[int, ...]:
    try:
        sizes = sorted({int(part) for part in value.split(",")})
    except ValueError:
        sizes = [0]
    if sizes[0] < 1 or sizes[-1] > MOST_IMAGES:
        raise click.BadParameter(f"{value!r} must be numbers from 1 to {MOST_IMAGES}, with commas")
    return tuple(sizes)


def numbers(kind: type[int] | type[float]) -> Callable[..., Any]:
    """A callback that reads numbers with commas between; None where the option is not given."""

    def read(_: click.Context, __: click.Parameter, value: str | None) -> Any:
        if value is None:
            return None
        try:
            return tuple(kind(part) for part in value.split(","))
        except ValueError:
            raise click.BadParameter(f"{value!r} must be numbers with commas between") from None

    return read
