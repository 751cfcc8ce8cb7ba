"""The verbs of `cascade-compile` about a finished bundle, and about the machine it is for.

Each is a thin function: it calls the module that does the work and shows what came out, as tables
for people or, with --json, as one object for machines.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.table import Table

WIDTH = 120

_bundle = click.argument("bundle", type=click.Path(path_type=Path))
_json = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
_public_key = click.option(
    "--public-key",
    type=click.Path(path_type=Path),
    help="Refuse a bundle that the holder of this key (PEM) has not signed.",
)
_threads = click.option(
    "--threads", type=click.IntRange(1), help="CPU threads; default every core."
)


@click.command("inspect")
@_bundle
@_public_key
@_json
def inspect_command(bundle: Path, public_key: Path | None, as_json: bool) -> None:
    """What is in BUNDLE: model, stages, targets, sizes, certificates, and what runs here."""
    from cascade_compile import inspect_bundle as verb

    _show(verb, verb.inspect(bundle, public_key), as_json)


@click.command("verify")
@_bundle
@_public_key
@click.option("--target", help="Fail where this one cannot run here.  [default: all that can]")
@_threads
@_json
def verify_command(
    bundle: Path,
    public_key: Path | None,
    target: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Check BUNDLE: signature, hashes, manifest, certificates, and golden vectors on this machine.

    What cannot be checked here is said, with the reason. Exit status 3: the bundle is invalid or
    was tampered with. 4: the target asked for cannot run here, or an engine answers otherwise than
    recorded.
    """
    from cascade_runtime.command import status_of
    from cascade_runtime.errors import BundleError
    from cascade_runtime.verification import verify

    try:
        done = verify(bundle, public_key=public_key, target=target, threads=threads)
    except BundleError as error:
        if not as_json:
            raise
        _print_json({"bundle": str(bundle), "valid": False, "ok": False, "error": str(error)})
        sys.exit(status_of(error))
    if as_json:
        _print_json(done.to_dict())
    else:
        from rich.table import Table

        table = Table("check", "outcome", "")
        for check in done.checks:
            table.add_row(check.what, check.outcome, check.why)
        _print_tables([table])
        unchecked = sum(check.outcome == "not checked" for check in done.checks)
        click.echo(
            f"{'valid' if done.error is None else 'FAILED'}: {len(done.checks)} checks, "
            f"{unchecked} of them could not be made"
        )
    if done.error is not None:
        sys.exit(status_of(done.error))


@click.command("doctor")
@_json
def doctor_command(as_json: bool) -> None:
    """What this machine can build and run, and the install line of each missing piece."""
    from cascade_compile import doctor as verb

    _show(verb, verb.diagnose(), as_json)


@click.command("keygen")
@click.argument("out", type=click.Path(path_type=Path))
@_json
def keygen_command(out: Path, as_json: bool) -> None:
    """Make an Ed25519 key: OUT, private (mode 0600), and OUT.pub, which readers get.

    An existing file is never overwritten. Keep OUT off the devices, and off the network.
    """
    from cascade_runtime.signature import make_keys

    public, fingerprint = make_keys(out)
    if as_json:
        _print_json({"private": str(out), "public": str(public), "key": fingerprint})
    else:
        click.echo(f"private key: {out} (keep it secret)")
        click.echo(f"public key:  {public} ({fingerprint})")


@click.command("sign")
@_bundle
@click.option(
    "--key", required=True, type=click.Path(path_type=Path), help="The private key, of keygen."
)
@_json
def sign_command(bundle: Path, key: Path, as_json: bool) -> None:
    """Sign BUNDLE, folder or zip, in place: SHA256SUMS.sig, over the list of all hashes.

    The bundle is verified first. Whatever changes it later drops the signature or breaks it.
    """
    from cascade_runtime.bundle import sign

    fingerprint = sign(bundle, key)
    if as_json:
        _print_json({"bundle": str(bundle), "key": fingerprint})
    else:
        click.echo(f"{bundle} is signed by {fingerprint}")


@click.command("diff")
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option("--data", help="Also decide these images: a folder, a table of paths, splits.json.")
@click.option("--split", help="Which split, if --data is a splits.json.")
@_threads
@_json
def diff_command(
    first: str,
    second: str,
    data: str | None,
    split: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """What is different between the bundles A and B, each X.cascade or X.cascade#TARGET.

    Fields of the manifests; with --data the decisions too, the gravest differences first. Exit
    status 0 whether they differ or not.
    """
    if split is not None and data is None:
        raise click.UsageError("--split is about --data, which is not given")
    from cascade_calib.progress import shown
    from cascade_compile import diff_bundles as verb

    with shown() as progress:
        result = verb.diff(
            first, second, data=data, split=split, threads=threads, progress=progress
        )
    _show(verb, result, as_json)


COMMANDS = (
    inspect_command,
    verify_command,
    diff_command,
    keygen_command,
    sign_command,
    doctor_command,
)


def _show(verb: Any, result: Any, as_json: bool) -> None:
    """The verb's own tables and sentence, or its one object."""
    if as_json:
        _print_json(result.to_dict())
        return
    _print_tables(verb.tables(result))
    click.echo(verb.conclusion(result))


def _print_tables(tables: list[Table]) -> None:
    from rich.console import Console

    # A log file has no width of its own; the widest table needs this much.
    width = None if sys.stdout.isatty() else WIDTH
    console = Console(highlight=False, markup=False, width=width)
    for table in tables:
        console.print(table)


def _print_json(value: object) -> None:
    import json

    click.echo(json.dumps(value, allow_nan=False))
