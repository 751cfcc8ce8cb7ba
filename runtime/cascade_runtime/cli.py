"""`cascade-run`: classify images with a bundle, look into it, verify it.

Results go to stdout, everything else to stderr. Exit status: 0 done (deferred images are answers),
1 the input or the machine is at fault, 2 the command line is, 3 the bundle is invalid, 4 its target
cannot run here.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cascade_runtime.command import run_command
from cascade_runtime.errors import ConfigError, TargetError

if TYPE_CHECKING:
    from cascade_runtime.cascade import Result
    from cascade_runtime.manifest import Certificate, Manifest

_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
)
_bundle = click.argument("bundle", type=click.Path(path_type=Path))
_public_key = click.option(
    "--public-key",
    type=click.Path(path_type=Path),
    help="Refuse a bundle that the holder of this key (PEM) has not signed.",
)
_json = click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")


def main() -> None:
    """The console script."""
    run_command(cli)


@click.group()
@click.version_option(package_name="cascade-edge")
def cli() -> None:
    """Answer from a certified bundle: act on an image, or defer it."""


@cli.command()
@_bundle
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--target", default="auto", show_default=True, help="A target of the bundle.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads; default every core.")
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True)
@_public_key
@_json
def classify(
    bundle: Path,
    images: tuple[Path, ...],
    target: str,
    threads: int | None,
    batch_size: int,
    public_key: Path | None,
    as_json: bool,
) -> None:
    """Classify IMAGES, files or folders of them, one line an image.

    An image that cannot be read, or that the cascade is not sure of, is deferred and says why.
    """
    from cascade_runtime.cascade import Cascade, rate

    paths = list(_image_files(images))
    cascade = Cascade.open(bundle, target, public_key=public_key, threads=threads, warm_up=False)
    width = max(len(str(path)) for path in paths)
    acted = unreadable = 0
    started = time.perf_counter()
    step = batch_size * cascade.workers  # a batch for each thread
    for start in range(0, len(paths), step):
        for result in cascade.classify(paths[start : start + step], batch_size):
            click.echo(_as_json(result) if as_json else _as_text(result, width))
            acted += result.decision is not None
            unreadable += result.stage < 0
    seconds = time.perf_counter() - started
    click.echo(
        f"{len(paths)} images: {acted} acted on ({acted / len(paths):.1%}), "
        f"{len(paths) - acted - unreadable} deferred, {unreadable} unreadable; "
        f"{rate(len(paths) / seconds)}; {cascade.why}",
        err=True,
    )


@cli.command()
@_bundle
@_public_key
@_json
def info(bundle: Path, public_key: Path | None, as_json: bool) -> None:
    """Say what BUNDLE holds, what is promised, and which target would run here."""
    from cascade_runtime import engines
    from cascade_runtime.bundle import Bundle
    from cascade_runtime.cascade import choose_target, rate

    manifest = Bundle.open(bundle, public_key=public_key).manifest
    blocked = {name: engines.unavailable(target) for name, target in manifest.targets.items()}
    try:
        chosen, why = choose_target(manifest)
    except TargetError as error:
        chosen, why = None, str(error)
    if as_json:
        from cascade_runtime.manifest import encode

        here = {"auto": chosen, "why": why, "unavailable": blocked}
        click.echo(json.dumps({"manifest": json.loads(encode(manifest)), "here": here}))
        return
    _print_model(manifest)
    for name, target in manifest.targets.items():
        state = "runs here" if blocked[name] is None else f"cannot run here: {blocked[name]}"
        click.echo(f"\n{name}  {rate(target.images_per_s)} when built; {state}")
        for line in certificate_in_words(manifest.certificates[name]):
            click.echo(f"  {line}")
    click.echo(f"\nauto: {why}")


@cli.command()
@_bundle
@click.option("--golden", is_flag=True, help="Also run the golden vectors on every target.")
@click.option("--target", help="With --golden: run this target's alone, and fail where it cannot.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads; default every core.")
@_public_key
@_json
def verify(
    bundle: Path,
    golden: bool,
    target: str | None,
    threads: int | None,
    public_key: Path | None,
    as_json: bool,
) -> None:
    """Check every byte of BUNDLE and that each certificate is about the engines in it."""
    if target is not None and not golden:
        raise click.UsageError("--target is about --golden, which is not given")
    from cascade_runtime.verification import verify as check

    done = check(bundle, public_key=public_key, golden=golden, target=target, threads=threads)
    if as_json:
        click.echo(json.dumps(done.to_dict()))
    else:
        for part in done.checks:
            click.echo(part.sentence)
    if done.error is not None:
        raise done.error
    if golden and not done.ran:
        raise TargetError(f"{bundle}: no target can run here, the golden vectors were not checked")


@cli.command()
@_json
def targets(as_json: bool) -> None:
    """List what this machine can run, and how to get what it cannot."""
    from cascade_runtime import engines

    found: dict[str, str | None] = {}
    for name in engines.BACKENDS:
        module = engines.backend(name)
        for precision, device in module.TARGETS:
            reason = module.unavailable(precision, device)
            found[f"{name}/{precision}/{device}"] = reason
    if as_json:
        click.echo(json.dumps({"targets": found}))
        return
    width = max(map(len, found))
    for name, reason in found.items():
        version = engines.backend(name.split("/")[0]).version() if reason is None else ""
        click.echo(f"{name:{width}}  " + (f"yes, {version}" if reason is None else f"no: {reason}"))


def certificate_in_words(certificate: Certificate) -> Iterator[str]:
    """What was proven of a target, as lines for a person."""
    c = certificate
    yield f"{c.status}: {c.promise}"
    if c.advice:
        yield c.advice
    delta = "" if c.delta is None else f", delta {c.delta:g}"
    how = f"(alpha {c.alpha:g}{delta}, {c.method})"
    if c.sets is None:
        yield (
            f"measured on {c.n} images: acted on {c.accepted} ({c.coverage:.1%}, at least "
            f"{c.coverage_lower:.1%}), {c.errors} errors, risk at most {c.risk_upper:.2%} {how}"
        )
        return
    s = c.sets
    yield (
        f"measured on {c.n} images: accepted {s.accepted} ({s.coverage:.1%}, at least "
        f"{s.coverage_lower:.1%}), {s.misses} sets without the true class, set risk at most "
        f"{s.risk_upper:.2%} {how}"
    )
    yield (
        f"of the accepted, {s.ambiguous} have both classes in their set and are deferred; "
        f"{c.accepted} are acted on, {c.errors} of them wrong, which is not bounded"
    )


def _print_model(manifest: Manifest) -> None:
    model, size = manifest.model, manifest.preprocess
    click.echo(
        f"{model.name}: {' or '.join(model.classes)}; {model.preset}, "
        f"{model.parameters / 1e6:.1f} M parameters, {len(manifest.stages)} stages, "
        f"{size.width} x {size.height} pixels"
    )
    made = manifest.made_by
    click.echo(f"made {made.created} by cascade-edge {made.version}: {made.command}")


def _image_files(places: Iterable[Path]) -> Iterator[Path]:
    """Each file as given, and every image below a folder in name order."""
    for place in places:
        if not place.is_dir():
            yield place
            continue
        inside = [path for path in sorted(place.rglob("*")) if path.suffix.lower() in _SUFFIXES]
        if not inside:
            raise ConfigError(f"{place}: no images in this folder ({' '.join(sorted(_SUFFIXES))})")
        yield from inside


def _as_json(result: Result) -> str:
    values = result.to_dict()
    return json.dumps({"path": values.pop("name"), **values})


def _as_text(result: Result, width: int) -> str:
    from cascade_runtime.preprocess import printable

    name = printable(result.name)
    answer = result.decision if result.decision is not None else f"deferred: {result.reason}"
    if result.stage < 0:
        return f"{name:{width}}  {answer}"
    return f"{name:{width}}  {answer:26}  p {result.p:.4f}  stage {result.stage}"


if __name__ == "__main__":
    main()
