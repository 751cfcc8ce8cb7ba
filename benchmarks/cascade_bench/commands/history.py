"""`cascade-bench history`: its options, what it prints, its exit status."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import click

from cascade_bench.commands import options
from cascade_bench.commands.output import check_paths, finish
from cascade_runtime.command import MISSED_STATUS


@click.command("history", short_help="Is a commit slower than a baseline? Kept over commits.")
@click.argument("bundle", type=click.Path(path_type=Path), required=False)
@click.option("--baseline", help="The commit to compare with.")
@click.option(
    "--rev", "revision", default="HEAD", show_default=True, help="The commit in question."
)
@click.option(
    "--repository",
    type=click.Path(path_type=Path),
    help="A checkout of cascade-edge.  [default: the one that this command runs from]",
)
@options.data()
@options.place()
@click.option(
    "--pairs",
    type=click.IntRange(8),
    default=20,
    show_default=True,
    help="Of fresh processes; with fewer than 8 there is no interval for all metrics at once.",
)
@click.option(
    "--seconds",
    type=options.Finite(0, 3600),
    default=1.0,
    show_default=True,
    help="Of deciding, in every process.",
)
@click.option(
    "--max-slowdown",
    type=options.Finite(0),
    default=0.05,
    show_default=True,
    help="Allowed, as a share: 0.05 is 5 percent.",
)
@click.option(
    "--state",
    type=click.Path(path_type=Path),
    default=Path("history.jsonl"),
    show_default=True,
    help="FILE.jsonl, which gains a line.",
)
@click.option("--show", is_flag=True, help="Measure nothing; show what the file has.")
@options.outputs()
def command(
    bundle: Path | None,
    baseline: str | None,
    revision: str,
    repository: Path | None,
    data: str | None,
    split: str | None,
    target: str,
    threads: int | None,
    pairs: int,
    seconds: float,
    max_slowdown: float,
    state: Path,
    show: bool,
    as_json: bool,
    plot: Path | None,
    report: Path | None,
) -> None:
    """Compare the runtime of two commits on BUNDLE, and keep the result; or --show what was kept.

    Fresh processes of both take turns. An alarm is raised when the interval of a ratio lies wholly
    beyond the allowed slowdown, so that noise widens intervals and raises none.

    Exit status: 0 no regression, 6 a regression (with --show: in the last line of the file), 1 the
    commits, the images or the file are at fault, 2 the command line, 3 the bundle, 4 it cannot run
    here.
    """
    if show == (bundle is not None) or (not show and baseline is None):
        raise click.UsageError("give BUNDLE and --baseline, or --show alone")
    from cascade_bench import journal
    from cascade_bench.history import Plan, compare, entries
    from cascade_bench.history_report import draw, render, render_all
    from cascade_calib.progress import shown
    from cascade_runtime.errors import ConfigError

    check_paths(plot, report)
    with ExitStack() as open_ones:
        keep = None
        if bundle is None or baseline is None:
            kept = entries(journal.read(state), state)
            if not kept:
                raise ConfigError(f"{state} is empty; nothing was compared yet")
        else:
            plan = Plan(
                bundle=bundle,
                baseline=baseline,
                revision=revision,
                repository=repository,
                data=data,
                split=split,
                target=target,
                threads=threads,
                pairs=pairs,
                seconds=seconds,
                max_slowdown=max_slowdown,
            )
            file = open_ones.enter_context(journal.Journal(state))
            kept = entries(file.entries, state)
            with shown() as progress:
                kept.append(compare(plan, progress))
            keep = partial(file.append, kept[-1].to_dict())
        last = kept[-1]
        finish(
            (lambda: {"entries": [x.to_dict() for x in kept]}) if show else last.to_dict,
            lambda: render_all(kept) if show else render(last),
            lambda: {"ratios and intervals over the comparisons": draw(kept)},
            f"{last.bundle}: {len(kept)} comparisons of commits",
            as_json=as_json,
            plot=plot,
            report=report,
            keep=keep,
        )
    if not last.passed:
        sys.exit(MISSED_STATUS)
