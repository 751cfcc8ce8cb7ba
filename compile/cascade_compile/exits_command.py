"""`cascade-compile exits`: the verb; `exits` does the work and `exits_page` shows it."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from cascade_compile.promise_options import promise_options, request_of
from cascade_runtime.command import INFEASIBLE_STATUS

WIDTH = 120


@click.command("exits")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The new run folder.")
@click.option(
    "--target",
    help="backend/precision/device to be fast on.  [default: the first that `bundle` builds]",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="splits.json that will certify; its val_select is read.  [default: the run's]",
)
@promise_options
@click.option(
    "--policy",
    type=click.Choice(["certified", "softmax", "gate"]),
    default="certified",
    show_default=True,
    help="As in `bundle`.",
)
@click.option(
    "--chance",
    default=0.95,
    show_default=True,
    type=click.FloatRange(min=0, max=1),
    help="Of a certificate, that a choice must have.",
)
@click.option(
    "--within",
    type=click.FloatRange(min=0, max=1),
    help="Cover at most this share less than the best choice.  [default: the floor alone counts]",
)
@click.option(
    "--most", default=3, show_default=True, type=click.IntRange(min=1), help="Exits to choose."
)
@click.option(
    "--batch",
    default=32,
    show_default=True,
    type=click.IntRange(min=1),
    help="Images that arrive at a time.",
)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    help="CPU threads of the engines.  [default: the engine's]",
)
@click.option(
    "--plot", type=click.Path(path_type=Path), help="A PNG of milliseconds against coverage."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def exits_command(
    run: Path,
    out: Path,
    target: str | None,
    data: Path | None,
    alpha: str,
    delta: str,
    coverage: str,
    fnr: str | None,
    policy: str,
    plot: Path | None,
    as_json: bool,
    **options: object,
) -> None:
    """Of RUN's exits, keep those whose cascade is the fastest on this machine, as a new run.

    Every choice is judged by measured times of its stages and by val_select; val_calib is not read,
    so that `bundle` certifies the new run as any other. Exit status 5 when none is likely enough to
    be certified, and then nothing is written.
    """
    from cascade_calib.progress import shown
    from cascade_compile import exits, exits_page, targets
    from cascade_runtime.errors import ConfigError

    if plot is not None and (plot.suffix != ".png" or not plot.parent.is_dir()):
        raise ConfigError(f"--plot {plot}: give the name of a .png in a folder that exists")
    promise = request_of(alpha, delta, coverage, fnr, policy=policy)
    request = exits.ExitsRequest(
        run=run,
        out=out,
        target=targets.parse(target) if target else targets.default_targets()[0],
        promise=promise,
        splits=data,
        **options,  # type: ignore[arg-type]
    )
    with shown() as progress:
        found = exits.choose_exits(
            request, progress=progress, say=lambda line: click.echo(line, err=as_json)
        )
    if plot is not None:
        plot.write_bytes(exits_page.picture(found))
    if as_json:
        import json

        click.echo(json.dumps(found.to_dict(), allow_nan=False))
    else:
        from rich.console import Console

        console = Console(
            highlight=False, markup=False, width=None if sys.stdout.isatty() else WIDTH
        )
        console.print(exits_page.table(found))
        click.echo(exits_page.conclusion(found))
        if found.chosen is not None:
            click.echo(f"run: {out}")
    if found.chosen is None:
        sys.exit(INFEASIBLE_STATUS)
