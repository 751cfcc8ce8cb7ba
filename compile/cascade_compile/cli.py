"""`cascade-compile`: a run folder to a certified bundle, and what one does with a bundle after."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cascade_compile.bundle_commands import COMMANDS
from cascade_compile.exits_command import exits_command
from cascade_compile.promise_options import promise_options, request_of
from cascade_runtime.command import INFEASIBLE_STATUS, run_command
from cascade_runtime.manifest import POLICIES, Policy, Search
from cascade_train.threads import spin_briefly

if TYPE_CHECKING:
    from cascade_compile.search import SearchRequest
    from cascade_compile.targets import TargetName
    from cascade_runtime.manifest import Manifest

TABLE_WIDTH = 160  # where there is no terminal to ask


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
@promise_options
@click.option(
    "--policy",
    type=click.Choice(POLICIES),
    default="certified",
    show_default=True,
    help="certified, softmax, gate: the risk of single answers, by each exit's better score or by "
    "that score. scrc-i, scrc-t: the risk of prediction sets, for all but delta of the calibration "
    "sets or on average.",
)
@click.option(
    "--precision",
    type=click.Choice(["auto"]),
    help="auto: build every candidate, measure, and ship the fastest whose certificate holds.",
)
@click.option(
    "--candidate",
    "candidates",
    multiple=True,
    help="With --precision auto: backend/precision/device; repeat.  [default: all that run here "
    "without torch]",
)
@click.option(
    "--batch", type=click.IntRange(min=1), help="Images at a time when timing it.  [default: 8]"
)
@click.option("--keep-all", is_flag=True, help="Keep the candidates that do not ship, too.")
@click.option(
    "--jpeg",
    type=click.Choice(["full", "reduced"]),
    default="full",
    show_default=True,
    help="reduced: decode a JPEG much larger than the network's input at 1/2, 1/4 or 1/8, in "
    "certification as in service.",
)
@click.option(
    "--merge-tokens",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Merge so many patches that look alike in every block, and certify that.",
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
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
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
    precision: str | None,
    candidates: tuple[str, ...],
    batch: int | None,
    keep_all: bool,
    as_json: bool,
    **options: object,
) -> None:
    """Merge, export, certify and seal RUN; exit status 5 when the promise is INFEASIBLE."""
    from cascade_calib.progress import shown
    from cascade_compile import targets
    from cascade_compile.bundle import BundleRequest, build

    search = None
    asked, later = targets.sort_out(names, recipes)
    if precision == "auto":
        chosen, search = _searched(candidates, batch, keep_all, bool(asked or options["force"]))
    elif candidates or batch or keep_all:
        raise click.UsageError("--candidate, --batch and --keep-all go with --precision auto")
    else:
        chosen = asked or targets.default_targets()
    claims = 1 if search else len(chosen)
    promise = request_of(alpha, delta, coverage, fnr, claims=claims, policy=policy)
    request = BundleRequest(
        run=run,
        out=out,
        targets=chosen,
        promise=promise,
        splits=data,
        search=search,
        recipes=later,
        **options,  # type: ignore[arg-type]
    )
    with shown() as progress:
        manifest = build(request, progress=progress, say=lambda line: click.echo(line, err=as_json))
    if as_json:
        _print_summary(out, manifest)
    else:
        if manifest.search is not None:
            _show_search(manifest.search)
        click.echo(f"bundle: {out} (report: {out / 'report.html' if out.is_dir() else 'inside'})")
    if manifest.search is not None:  # what is kept beside the one that ships promises nothing
        proven = any(candidate.outcome == "shipped" for candidate in manifest.search.candidates)
    else:
        proven = all(c.status == "CERTIFIED" for c in manifest.certificates.values())
    if not proven:
        sys.exit(INFEASIBLE_STATUS)


def _print_summary(out: Path, manifest: Manifest) -> None:
    import json

    import msgspec

    from cascade_calib.certify_engines import outcome

    targets = {
        name: {
            "status": certificate.status,
            "outcome": outcome(certificate),
            "images_per_s": manifest.targets[name].images_per_s,
        }
        for name, certificate in manifest.certificates.items()
    }
    found: dict[str, object] = {"bundle": str(out), "targets": targets}
    if manifest.search is not None:
        found["search"] = msgspec.to_builtins(manifest.search)
    click.echo(json.dumps(found, allow_nan=False))


def _searched(
    candidates: tuple[str, ...], batch: int | None, keep_all: bool, named: bool
) -> tuple[tuple[TargetName, ...], SearchRequest]:
    """Candidates and settings of `--precision auto`."""
    from cascade_compile import targets
    from cascade_compile.search import BATCH, SearchRequest, default_candidates

    if named:
        raise click.UsageError(
            "--precision auto chooses among --candidate by what is proven: --target and --force "
            "do not go with it"
        )
    asked = tuple(targets.parse(name) for name in dict.fromkeys(candidates))
    return asked or default_candidates(), SearchRequest(batch or BATCH, keep_all)


def _show_search(search: Search) -> None:
    from rich.console import Console

    from cascade_compile.search_table import render

    console = Console(
        highlight=False, markup=False, width=None if sys.stdout.isatty() else TABLE_WIDTH
    )
    for part in render(search):
        console.print(part)


@cli.command("targets")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def list_targets(as_json: bool) -> None:
    """The targets that can be built, and whether this machine can run them."""
    from cascade_compile import targets
    from cascade_runtime.engines import backend

    found = {
        str(name): backend(name.backend).unavailable(name.precision, name.device)
        for name in targets.every_target()
    }
    if as_json:
        import json

        click.echo(json.dumps({"targets": found}))
        return
    width = max(map(len, found))
    for name, reason in found.items():
        click.echo(f"{name:{width}}  {'runs here' if reason is None else reason}")


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


for _command in (exits_command, *COMMANDS):
    cli.add_command(_command)


def main() -> None:
    """The console script."""
    spin_briefly()
    run_command(cli)
