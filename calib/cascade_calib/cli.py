"""`cascade-calibrate`: certify, measure and compare bundles and scores, and watch for drift.

Exit status: 0 done, 1 the input or the machine is at fault, 2 the command line is, 3 the bundle is,
4 a target cannot run here, 5 nothing could be certified (INFEASIBLE), 7 an alarm of `drift`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cascade_runtime.command import ALARM_STATUS, INFEASIBLE_STATUS, run_command
from cascade_runtime.manifest import POLICIES

if TYPE_CHECKING:
    from cascade_calib.path import Request

_bundle = click.argument("bundle", type=click.Path())
_target = click.option(
    "--target", default="auto", show_default=True, help="Target to run, as in the bundle."
)
_data = click.option(
    "--data", required=True, help="Class folders, a CSV or Parquet file, or splits.json."
)
_split = click.option("--split", help="Which split of a splits.json, val_test for one.")
_batch_size = click.option("--batch-size", default=32, show_default=True, type=click.IntRange(1))
_threads = click.option("--threads", type=click.IntRange(1), help="CPU threads of the engines.")
_json = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")


@click.group()
def cli() -> None:
    """Certify bundles and scores, measure and compare them, and watch for drift."""


@cli.command()
@_bundle
@_data
@_split
@_target
@_batch_size
@_json
def evaluate(
    bundle: str, data: str, split: str | None, target: str, batch_size: int, as_json: bool
) -> None:
    """Coverage, risk, FNR and FPR of BUNDLE on labelled images, against its promise."""
    from cascade_calib import evaluate as verb
    from cascade_calib.labelled import read_labelled
    from cascade_calib.progress import shown
    from cascade_runtime.cascade import Cascade

    cascade = Cascade.open(bundle, target)
    images = read_labelled(data, split=split)
    with shown() as progress:
        result = verb.evaluate(cascade, images, batch_size=batch_size, progress=progress)
    _print_result(verb, result, as_json)


@cli.command()
@_bundle
@_data
@click.option("--select", help="Where thresholds are proposed.  [default: --data, another split]")
@click.option("--split", default="val_calib", show_default=True, help="Split of --data to test on.")
@click.option(
    "--select-split",
    default="val_select",
    show_default=True,
    help="Split to propose thresholds on.",
)
@click.option("--alpha", help="The risk to promise.  [default: as before]")
@click.option("--delta", help="How often the promise may fail.  [default: as before]")
@click.option("--coverage", help="Least share of images acted on.  [default: as before]")
@click.option("--fnr", help="Also promise this share of missed positives.  [default: as before]")
@click.option(
    "--policy",
    type=click.Choice(POLICIES),
    help="What is promised, and by which score.  [default: as before]",
)
@click.option("--drop-others", is_flag=True, help="Leave out targets that cannot run here.")
@click.option(
    "--thumbnails/--no-thumbnails",
    default=True,
    show_default=True,
    help="Show the worst selection images in the report.",
)
@_threads
def certify(
    bundle: str,
    data: str,
    alpha: str | None,
    delta: str | None,
    coverage: str | None,
    fnr: str | None,
    **options: object,
) -> None:
    """Certify BUNDLE anew, in place, on this machine with the engines it will run.

    Thresholds are proposed on one set of labelled images and proven on another. The old bundle is
    replaced in one step when the new one is whole. Targets that cannot run here are refused, or
    left out with --drop-others.

    Exit status 5 when the promise is INFEASIBLE; the bundle then defers every image.
    """
    from cascade_calib.bounds import as_fraction
    from cascade_calib.progress import shown
    from cascade_calib.recertify import RecertifyRequest, recertify

    request = RecertifyRequest(
        Path(bundle),
        data,
        alpha=None if alpha is None else as_fraction(alpha, "--alpha"),
        delta=None if delta is None else as_fraction(delta, "--delta"),
        coverage=None if coverage is None else as_fraction(coverage, "--coverage", closed=True),
        fnr=None if fnr is None else as_fraction(fnr, "--fnr"),
        **options,  # type: ignore[arg-type]
    )
    with shown() as progress:
        manifest = recertify(request, progress=progress, say=lambda line: click.echo(line))
    if any(c.status == "INFEASIBLE" for c in manifest.certificates.values()):
        sys.exit(INFEASIBLE_STATUS)


@cli.command()
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@_data
@_split
@_threads
@_batch_size
@_json
def compare(
    first: str,
    second: str,
    data: str,
    split: str | None,
    threads: int | None,
    batch_size: int,
    as_json: bool,
) -> None:
    """Set A and B, each BUNDLE or BUNDLE#TARGET, side by side on the same labelled images.

    Intervals are of the paired difference: what makes an image hard for both cancels.
    """
    from cascade_calib import compare as verb
    from cascade_calib.labelled import read_labelled
    from cascade_calib.progress import shown
    from cascade_runtime.cascade import Cascade

    places = [verb.parse_side(text) for text in (first, second)]
    one, two = (Cascade.open(*place, threads=threads, warm_up=False) for place in places)
    images = read_labelled(data, split=split)
    with shown() as progress:
        result = verb.compare(one, two, images, batch_size=batch_size, progress=progress)
    _print_result(verb, result, as_json)


@cli.group()
def scores() -> None:
    """Scores as a table: out of a bundle, and certificates for models that were never ours."""


@scores.command()
@_bundle
@_data
@_split
@_target
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="FILE.parquet or FILE.csv."
)
@_threads
@_batch_size
def export(
    bundle: str,
    data: str,
    split: str | None,
    target: str,
    out: Path,
    threads: int | None,
    batch_size: int,
) -> None:
    """Run every exit of BUNDLE over labelled images and write what each of them said.

    Columns: name, label, group where there is one, per exit exit0_logit0, exit0_logit1 and
    exit0_gate, then the decision (-1 deferred), the stage that was final, and the reason.
    """
    from cascade_calib import scores as verb
    from cascade_calib.labelled import read_labelled
    from cascade_calib.progress import shown
    from cascade_calib.score_table import check_writable
    from cascade_runtime.cascade import Cascade

    check_writable(out)
    cascade = Cascade.open(bundle, target, threads=threads, warm_up=False)
    images = read_labelled(data, split=split)
    with shown() as progress:
        loaded = verb.export(cascade, images, out, batch_size=batch_size, progress=progress)
    click.echo(f"{out}: scores of {cascade.target}; {loaded.summary()}")


@scores.command("certify")
@click.argument("table", metavar="FILE", type=click.Path())
@click.option("--alpha", required=True, help="The risk to promise, such as 0.01.")
@click.option("--delta", default="0.05", show_default=True, help="How often it may fail.")
@click.option("--coverage", default="0.7", show_default=True, help="Least share acted on.")
@click.option("--fnr", help="Also promise this share of missed positives.")
@click.option("--select", type=click.Path(), help="Another table, to propose thresholds on.")
@click.option("--select-share", type=float, help="Or this share of FILE.  [default: 0.3]")
@click.option("--seed", default=0, show_default=True, help="Of drawing that share.")
@click.option("--cost", "costs", multiple=True, type=float, help="Of each exit, if several.")
@_json
def certify_table(
    table: str,
    alpha: str,
    delta: str,
    coverage: str,
    fnr: str | None,
    select: str | None,
    select_share: float | None,
    seed: int,
    costs: tuple[float, ...],
    as_json: bool,
) -> None:
    """Thresholds with a certificate for the scores in FILE, .csv or .parquet, of any model.

    Columns: label (0 or 1) with logit0, logit1 and perhaps gate; or label, score (higher is more
    trusted) and prediction (0 or 1); or what `scores export` writes. With a column group, groups
    stay together. Exit status 5 when the promise is INFEASIBLE.
    """
    from cascade_calib import scores as verb
    from cascade_calib.score_table import read_scores

    if select is not None and select_share is not None:
        raise click.UsageError("--select and --select-share exclude each other")
    calib = read_scores(table)
    if select is not None:
        proposing = read_scores(select)
    else:
        share = 0.3 if select_share is None else select_share
        proposing, calib = verb.split_table(calib, share, seed)
    request = _request(alpha, delta, coverage, fnr)
    result = verb.certify_scores(proposing, calib, request, costs or None)
    if as_json:
        _print_json(result.to_dict())
    else:
        click.echo(verb.as_text(result))
    if result.certificate.status == "INFEASIBLE":
        sys.exit(INFEASIBLE_STATUS)


@cli.command()
@_bundle
@click.option("--reference", help="Images drawn as the calibration images were.")
@click.option("--reference-split", default="val_calib", show_default=True, help="If splits.json.")
@click.option("--reference-scores", help="Instead: a table from `scores export`.")
@click.option("--new", help="New images, labels not needed: a folder, a table of paths, a split.")
@click.option("--new-split", help="Which split, if --new is a splits.json.")
@click.option("--new-scores", help="Instead: a table from `scores export`, labels not needed.")
@click.option("--stream", is_flag=True, help="Test one after another, in order of names or rows.")
@click.option("--false-alarm", default=0.01, show_default=True, help="Rate of false alarms.")
@click.option("--seed", default=0, show_default=True, help="Of permutations and tie breaking.")
@_target
@_threads
@_json
def drift(
    bundle: str,
    reference: str | None,
    reference_split: str,
    reference_scores: str | None,
    new: str | None,
    new_split: str | None,
    new_scores: str | None,
    as_json: bool,
    **options: object,
) -> None:
    """Test whether new images may be drawn as the calibration images of BUNDLE were.

    Where they are not, its certificate says nothing about them. By default the new images are one
    batch; with --stream they come one after another and the alarm says at which one.

    Exit status 7 on an alarm, 0 on none. Where nothing has changed, at most a share --false-alarm
    of such tests alarms.
    """
    from cascade_calib import drift as verb
    from cascade_calib.progress import shown

    def source(name: str, images: str | None, table: str | None, split: str | None) -> verb.Source:
        if (images is None) == (table is None):
            raise click.UsageError(f"give either --{name} or --{name}-scores")
        if table is not None:
            return verb.Source(table, is_table=True)
        place = str(images)
        return verb.Source(place, split=split if place.lower().endswith(".json") else None)

    before = source("reference", reference, reference_scores, reference_split)
    after = source("new", new, new_scores, new_split)
    with shown() as progress:
        result = verb.drift(bundle, before, after, progress=progress, **options)  # type: ignore[arg-type]
    if as_json:
        _print_json(result.to_dict())
    else:
        click.echo(verb.as_text(result))
    if result.alarm:
        sys.exit(ALARM_STATUS)


@cli.command()
@click.option("--alpha", required=True, help="The risk to promise, such as 0.01.")
@click.option("--delta", default="0.05", show_default=True, help="How often it may fail.")
@click.option("--coverage", required=True, help="Expected share of images acted on.")
@click.option("--error", required=True, help="Expected error rate among those.")
@_json
def plan(alpha: str, delta: str, coverage: str, error: str, as_json: bool) -> None:
    """How many labelled calibration images a certificate takes, with 90 % probability."""
    from cascade_calib.bounds import as_fraction, images_needed

    result = images_needed(
        as_fraction(alpha, "--alpha"),
        as_fraction(delta, "--delta"),
        as_fraction(coverage, "--coverage", closed=True),
        as_fraction(error, "--error", closed=True),
    )
    if as_json:
        _print_json(result.to_dict())
        return
    click.echo(
        f"{result.images:,} labelled calibration images: about {result.accepted:,} of them are "
        f"acted on, and up to {result.allowed_errors:,} of those may be wrong. The certificate "
        f"then comes out with {100 * result.probability:.1f} % probability. (With no error at "
        f"all, {result.least_accepted:,} acted on are enough.)"
    )


def _request(alpha: str, delta: str, coverage: str, fnr: str | None) -> Request:
    from cascade_calib.bounds import as_fraction
    from cascade_calib.path import Request

    return Request(
        as_fraction(alpha, "--alpha"),
        as_fraction(delta, "--delta"),
        as_fraction(coverage, "--coverage", closed=True),
        fnr=None if fnr is None else as_fraction(fnr, "--fnr"),
    )


def _print_result(verb: Any, result: Any, as_json: bool) -> None:
    """One JSON object for machines, or the verb's own tables and sentence for people."""
    if as_json:
        _print_json(result.to_dict())
        return
    from rich.console import Console

    console = Console(highlight=False)
    for table in verb.tables(result):
        console.print(table)
    click.echo(verb.conclusion(result))


def _print_json(value: object) -> None:
    import json

    click.echo(json.dumps(value, allow_nan=False))


def main() -> None:
    """The console script."""
    run_command(cli)


if __name__ == "__main__":
    main()
