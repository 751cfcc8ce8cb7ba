"""`cascade-compile`: a run folder to a certified bundle."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from cascade_runtime.command import INFEASIBLE_STATUS, run_command
from cascade_runtime.manifest import POLICIES, Policy
from cascade_train.threads import spin_briefly


@click.group()
def cli() -> None:
    """Compile a trained cascade and certify the engines that ship."""


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="NAME.cascade or NAME.zip."
)
@click.option(
    "--target",
    "names",
    multiple=True,
    help="backend/precision/device; repeat for several.  [default: openvino/bf16/cpu (fp32 where "
    "the processor has no bf16) and onnxruntime/fp32/cpu]",
)
@click.option(
    "--recipe",
    "recipes",
    multiple=True,
    help="backend/precision: also write what `engines` finishes on its device; repeat for several. "
    "A --target whose device is not here, such as tensorrt/fp16, becomes one.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="splits.json to certify on.  [default: the run's]",
)
@click.option("--alpha", default="0.01", show_default=True, help="The risk to promise.")
@click.option("--delta", default="0.05", show_default=True, help="How often the promise may fail.")
@click.option(
    "--coverage", default="0.7", show_default=True, help="Least share of images acted on."
)
@click.option("--fnr", help="Also promise this share of missed positives.")
@click.option(
    "--policy",
    type=click.Choice(POLICIES),
    default="certified",
    show_default=True,
    help="certified, softmax, gate: the risk of single answers, by each exit's better score or by "
    "that score. scrc-i, scrc-t: the risk of prediction sets, for all but delta of the calibration "
    "sets or on average.",
)
@click.option("--name", help="The model's name in the manifest.  [default: from --out]")
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    help="CPU threads of the engines.  [default: the engine's]",
)
@click.option(
    "--thumbnails/--no-thumbnails",
    default=True,
    show_default=True,
    help="Show the worst selection images in the report.",
)
@click.option("--overwrite", is_flag=True, help="Replace a bundle of the same name.")
@click.option("--force", is_flag=True, help="Write a bundle whose engines differ from the network.")
def bundle(
    run: Path,
    out: Path,
    names: tuple[str, ...],
    recipes: tuple[str, ...],
    data: Path | None,
    alpha: str,
    delta: str,
    coverage: str,
    fnr: str | None,
    policy: Policy,
    **options: object,
) -> None:
    """Merge, export, certify and seal RUN; exit status 3 when the promise is INFEASIBLE."""
    from cascade_calib.bounds import as_fraction
    from cascade_calib.certify import Request
    from cascade_calib.progress import shown
    from cascade_compile import targets
    from cascade_compile.bundle import BundleRequest, build

    asked, later = targets.sort_out(names, recipes)
    chosen = asked or targets.default_targets()
    promise = Request(
        as_fraction(alpha, "--alpha"),
        as_fraction(delta, "--delta"),
        as_fraction(coverage, "--coverage", closed=True),
        claims=len(chosen),
        fnr=None if fnr is None else as_fraction(fnr, "--fnr"),
        policy=policy,
    )
    request = BundleRequest(
        run=run,
        out=out,
        targets=chosen,
        promise=promise,
        splits=data,
        recipes=later,
        **options,  # type: ignore[arg-type]
    )
    with shown() as progress:
        manifest = build(request, progress=progress, say=lambda line: click.echo(line))
    click.echo(f"bundle: {out} (report: {out / 'report.html' if out.is_dir() else 'inside'})")
    if any(c.status == "INFEASIBLE" for c in manifest.certificates.values()):
        sys.exit(INFEASIBLE_STATUS)


@cli.command("targets")
def list_targets() -> None:
    """The targets that can be built, and whether this machine can run them."""
    from cascade_compile import targets
    from cascade_runtime.engines import backend

    for name in targets.every_target():
        reason = backend(name.backend).unavailable(name.precision, name.device)
        click.echo(f"{name}  {'runs here' if reason is None else reason}")


@cli.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--target", required=True, help="backend/precision of a recipe in BUNDLE.")
@click.option("--data", required=True, help="splits.json, or labelled images with --select.")
@click.option("--select", help="Where thresholds are proposed.  [default: --data, another split]")
@click.option(
    "--out", type=click.Path(path_type=Path), help="The new bundle.  [default: replaces BUNDLE]"
)
@click.option("--alpha", help="The risk to promise.  [default: as before]")
@click.option("--delta", help="How often the promise may fail.  [default: as before]")
@click.option("--coverage", help="Least share of images acted on.  [default: as before]")
@click.option("--only", is_flag=True, help="Leave every other target out.")
@click.option("--drop-others", is_flag=True, help="Leave out targets that cannot run here.")
@click.option("--force", is_flag=True, help="Also if the engines differ from the network.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads of the engines.")
def engines(
    bundle: Path,
    target: str,
    alpha: str | None,
    delta: str | None,
    coverage: str | None,
    force: bool,
    **options: object,
) -> None:
    """Finish a target of BUNDLE on the device it is for, from its build recipe, and certify it.

    The other targets that run here are certified anew beside it, all sharing delta; those that do
    not are left out of --out, and refused without it unless --drop-others says so.
    """
    from cascade_calib.bounds import as_fraction
    from cascade_calib.progress import shown
    from cascade_calib.recertify import RecertifyRequest
    from cascade_compile.engines import EnginesRequest, finish

    certify = RecertifyRequest(
        bundle,
        alpha=None if alpha is None else as_fraction(alpha, "--alpha"),
        delta=None if delta is None else as_fraction(delta, "--delta"),
        coverage=None if coverage is None else as_fraction(coverage, "--coverage", closed=True),
        **options,  # type: ignore[arg-type]
    )
    request = EnginesRequest(target, certify, force)
    with shown() as progress:
        manifest = finish(request, progress=progress, say=lambda line: click.echo(line))
    click.echo(f"bundle: {certify.out or bundle}")
    if any(c.status == "INFEASIBLE" for c in manifest.certificates.values()):
        sys.exit(INFEASIBLE_STATUS)


def main() -> None:
    """The console script."""
    spin_briefly()
    run_command(cli)
