"""`cascade-bench targets`: its options, what it prints, its exit status."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cascade_bench.commands import options
from cascade_bench.commands.output import show
from cascade_runtime.command import MISSED_STATUS

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from cascade_bench.gates import Gates


@click.command("targets", short_help="The four targets alone, quickly, for CI.")
@click.argument("bundle", type=click.Path(path_type=Path), required=False)
@click.option(
    "--from",
    "earlier",
    type=click.Path(path_type=Path),
    help="Judge what an earlier `run --json` measured; nothing is measured.",
)
@options.data()
@options.place()
@click.option(
    "--batch",
    type=click.IntRange(1, 1024),
    default=32,
    show_default=True,
    help="Files at a time, for throughput.",
)
@click.option(
    "--seconds",
    type=options.Finite(0, 3600),
    default=2.0,
    show_default=True,
    help="For latency, and again for throughput.",
)
@options.limits()
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout, no table.")
def command(
    bundle: Path | None,
    earlier: Path | None,
    data: str | None,
    split: str | None,
    target: str,
    threads: int | None,
    batch: int,
    seconds: float,
    max_ms: float,
    min_rate: float,
    min_coverage: float,
    max_error: float,
    as_json: bool,
) -> None:
    """PASS or FAIL of BUNDLE, or of a record, for each target, and nothing else.

    Without --data the bundle's golden images are timed, and coverage and exit error are those of
    its certificate.

    Exit status: 0 every target met, 6 a target missed, 1 the data or the record is at fault, 2 the
    command line, 3 the bundle, 4 the target cannot run here.
    """
    if (bundle is None) == (earlier is None):
        raise click.UsageError("give BUNDLE or --from RECORD.json, one of the two")
    if split and not data:
        raise click.UsageError("--split is about --data, which is not given")
    if data and earlier:
        raise click.UsageError("--data is about BUNDLE; --from has its quality in the record")
    from cascade_bench import gates
    from cascade_bench.limits import Limits
    from cascade_bench.run import Plan
    from cascade_calib.progress import shown

    limits = Limits(max_ms, min_rate, min_coverage, max_error)
    if earlier is not None:
        found = gates.read(earlier, limits)
    else:
        assert bundle is not None
        plan = Plan(bundle, target, threads, data, split, seconds, limits=limits)
        with shown() as progress:
            found = gates.measure(plan, batch, progress)
    show(found.to_dict, lambda: _render(found), as_json=as_json)
    if not found.passed:
        sys.exit(MISSED_STATUS)


def _render(found: Gates) -> Iterator[Table | Text]:
    from rich.text import Text

    from cascade_bench.tables import checks_table, verdict_line

    yield Text(f"{found.bundle} on {found.target}")
    yield checks_table(found.checks, found.quality)
    yield verdict_line(found.checks)
