"""docs/performance.md from nothing: make the networks, measure them, write the page.

In: a folder to work in. Out: one record a measurement, exactly what a verb of `cascade-bench`
prints with `--json`, in WORK/records; and from these alone, the page with its pictures. What is
there is neither made nor measured again, so a stopped one goes on; a record of a bundle that has
been made anew since is. The networks are those of `performance_networks.py`.

    python benchmarks/studies/performance.py                         # all of it
    python benchmarks/studies/performance.py measure --only vits16 --again
    python benchmarks/studies/performance.py page
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
from performance_networks import DEFAULT, NETWORKS, Network, made

from cascade_bench.pictures import write
from cascade_bench.workload import bundle_sha256
from cascade_runtime.command import MISSED_STATUS
from cascade_runtime.errors import CascadeError

PAGE = Path("docs/performance.md")
PROFILED = ("openvino", "onnxruntime")  # what `roofline` reads a profile of
ROOFLINE_SECONDS = 5  # of these times --seconds
COMPARE_SECONDS = 10


@dataclass(frozen=True)
class Settings:
    """How long to measure, and on how many threads."""

    seconds: float
    rounds: int
    threads: int | None
    peers: str | None


def commands(
    network: Network, run: Path, bundle: Path, settings: Settings
) -> Iterator[tuple[str, list[str]]]:
    """Every measurement's name, and the words of `cascade-bench` that make its record."""
    threads = [] if settings.threads is None else ["--threads", str(settings.threads)]
    data = ["--data", str(run / "splits.json")]
    for runtime in ("python", "native") if _native_is_built() else ("python",):
        words = ["run", str(bundle), *data, "--runtime", runtime]
        yield f"{network.name}-run-{runtime}", [*words, *_seconds(settings, 1), *threads]
    for target in _targets(bundle):
        words = ["roofline", str(bundle), "--target", target, "--batch", network.roofline]
        name = f"{network.name}-roofline-{target.replace('/', '-')}"
        yield name, [*words, *_seconds(settings, ROOFLINE_SECONDS), *threads]
    words = ["compare", str(bundle), "--run", str(run), *data, "--batch", network.compare]
    words += ["--runtime", "native" if _native_is_built() else "python"]
    words += ["--rounds", str(settings.rounds), *_seconds(settings, COMPARE_SECONDS), *threads]
    words += [] if settings.peers is None else ["--peers", settings.peers]
    yield f"{network.name}-compare", words


def _seconds(settings: Settings, times: float) -> list[str]:
    return ["--seconds", f"{times * settings.seconds:g}"]


def _native_is_built() -> bool:
    from cascade_bench.native import COMMAND
    from cascade_runtime.native_abi import library_path

    try:
        return Path(library_path()).with_name(COMMAND).exists()
    except CascadeError:
        return False


def _targets(bundle: Path) -> list[str]:
    """The processor's targets of a bundle that can run here and have a profile."""
    from cascade_runtime import engines
    from cascade_runtime.bundle import Bundle

    found = Bundle.open(bundle).manifest.targets
    return [
        name
        for name, target in found.items()
        if target.backend in PROFILED
        and target.device == "cpu"
        and engines.unavailable(target) is None
    ]


def measure(records: Path, name: str, words: Sequence[str], sha256: str, again: bool) -> None:
    """One record, unless it is there and of this very bundle.

    Raises:
        click.ClickException: the verb failed; a limit that is missed is a result.
    """
    record = records / f"{name}.json"
    if record.exists() and not again:
        if measured_of(record) == sha256:
            click.echo(f"{name}: is there", err=True)
            return
        click.echo(f"{name}: is of another bundle and measured again", err=True)
    started = time.monotonic()
    write(record, _record(["cascade-bench", *words, "--json"]))
    click.echo(f"{name}: {time.monotonic() - started:.0f} s", err=True)


def measured_of(record: Path) -> str | None:
    """The hash of the bundle that a record is of; None where it has none or is no record."""
    try:
        found = json.loads(record.read_bytes())
    except ValueError:
        return None
    return found.get("bundle_sha256") if isinstance(found, dict) else None


def _record(words: Sequence[str]) -> bytes:
    """What a console script of this interpreter prints."""
    program = str(Path(sys.executable).with_name(words[0]))
    done = subprocess.run([program, *words[1:]], stdout=subprocess.PIPE, check=False)
    if done.returncode not in (0, MISSED_STATUS):
        raise click.ClickException(f"{shlex.join(words)} ended with status {done.returncode}")
    return done.stdout


def _networks(_: click.Context, __: click.Parameter, value: str) -> list[Network]:
    by_name = {network.name: network for network in NETWORKS}
    wanted = [name.strip() for name in value.split(",")]
    for name in wanted:
        if name not in by_name:
            raise click.BadParameter(f"{name!r} is unknown; choose of {', '.join(by_name)}")
    return [by_name[name] for name in wanted]


_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("step", type=click.Choice(["all", "measure", "page"]), default="all")
@click.option("--work", default=Path("build/performance"), show_default=True, type=_PATH)
@click.option(
    "--only",
    "networks",
    callback=_networks,
    default=DEFAULT,
    show_default=True,
    help="What to measure, of tiny, vits16, vitb16; the page has every record that is there.",
)
@click.option("--again", is_flag=True, help="Measure what is there, too.")
@click.option(
    "--seconds",
    default=4.0,
    show_default=True,
    type=click.FloatRange(0, 600),
    help="Of each part of run; 5 times as long for a roofline, 10 for a batch size of compare.",
)
@click.option(
    "--rounds",
    default=5,
    show_default=True,
    type=click.IntRange(1),
    help="Of compare; what a ViT takes most of its time for.",
)
@click.option("--threads", type=click.IntRange(1), help="CPU threads.  [default: all]")
@click.option("--peers", help="As of cascade-bench compare.  [default: all]")
@click.option("--write", "page", default=PAGE, show_default=True, type=_PATH)
def main(
    step: str,
    work: Path,
    networks: list[Network],
    again: bool,
    seconds: float,
    rounds: int,
    threads: int | None,
    peers: str | None,
    page: Path,
) -> None:
    """Make, measure and write; `measure` and `page` are the two halves.

    With the defaults, on two cores where nothing else runs, making takes about 50 minutes, most of
    them for ViT-S, and measuring 25; --only tiny makes and measures in 15.
    """
    records = work / "records"
    records.mkdir(parents=True, exist_ok=True)
    try:
        if step != "page":
            settings = Settings(seconds, rounds, threads, peers)
            for network in networks:
                run, bundle = made(network, work)
                sha256 = bundle_sha256(bundle)
                for name, words in commands(network, run, bundle, settings):
                    measure(records, name, words, sha256, again)
        if step != "measure":
            from performance_page import write_page

            write_page(records, page)
            click.echo(f"wrote {page}")
    except CascadeError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
