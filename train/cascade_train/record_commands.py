"""The verbs of `cascade-train` about runs that exist, or are to be compared: list, show, ab."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

_json = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")


@click.command("list")
@click.argument("folder", default=".", type=click.Path(path_type=Path))
@_json
def list_command(folder: Path, as_json: bool) -> None:
    """Every run in FOLDER and below, what it was and how far it came."""
    from cascade_train.record import list_runs

    runs = list_runs(folder)
    if as_json:
        _print_json({"runs": [run.to_dict() for run in runs]})
        return
    from cascade_train.record_tables import list_tables

    if runs:
        _print_tables(list_tables(runs))
    else:
        click.echo(f"no runs in {folder}; make one with cascade-train fit")


@click.command("show")
@click.argument("run", type=click.Path(path_type=Path))
@_json
def show_command(run: Path, as_json: bool) -> None:
    """One RUN in full: its settings, where it was made, every epoch."""
    from cascade_train.record import show_run

    detail = show_run(run)
    if as_json:
        _print_json(detail.to_dict())
        return
    from cascade_train.record_tables import show_tables

    _print_tables(show_tables(detail))


@click.command("ab")
@click.argument("config_a", type=click.Path(path_type=Path))
@click.argument("config_b", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of all runs.")
@click.option(
    "--seeds", default=5, show_default=True, type=click.IntRange(min=1), help="Trainings an arm."
)
@click.option("--set", "sets", multiple=True, help="key=value in both, such as fit.epochs=3.")
@_json
def ab_command(
    config_a: Path, config_b: Path, out: Path, seeds: int, sets: tuple[str, ...], as_json: bool
) -> None:
    """Train CONFIG_A and CONFIG_B with the same seeds on one split, and compare them.

    Goes on with a comparison that was stopped; finished runs are kept. AUGRC on val_test decides,
    and only where its interval does. Exit status 1 when no seed came to its end in both arms.
    """
    from cascade_train.ab import run_ab
    from cascade_train.ab_report import conclusion, tables, write_plot
    from cascade_train.config import train_config

    names = (config_a.stem, config_b.stem) if config_a.stem != config_b.stem else ("A", "B")
    result = run_ab(
        train_config(config_a, sets=sets),
        train_config(config_b, sets=sets),
        out,
        seeds=seeds,
        names=names,
        say=lambda line: click.echo(line, err=True),
    )
    if result.figures:
        write_plot(result, out / "ab.png")
    if as_json:
        _print_json(result.to_dict())
    else:
        _print_tables(tables(result))
        click.echo(conclusion(result))
        if result.figures:
            click.echo(f"wrote {out / 'result.json'} and {out / 'ab.png'}")
    if not result.seeds:
        sys.exit(1)


def _print_tables(tables: Sequence[Any]) -> None:
    from rich.console import Console

    # A terminal's width where there is one; a file or a pipe gets whole lines.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 180)
    for table in tables:
        console.print(table)


def _print_json(value: object) -> None:
    click.echo(json.dumps(value, allow_nan=False))
