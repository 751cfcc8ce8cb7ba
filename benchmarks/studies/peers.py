"""The target that `--precision auto` chooses, run to its last exit, beside the field's own engines.

In: a preset at its image size; the backbone's weights are random and its heads are trained on
rendered scenes, so that there is a promise to certify. Out: milliseconds an image at each batch
size, as the median over interleaved rounds, of the chosen target with its early exits shut and of
the peers of `cascade-bench compare`: the same network, un-split, in torch (eager and compiled,
float32 and bfloat16), and one plain ONNX export of it in ONNX Runtime and in OpenVINO. Ratios are
of the same round; status 1 where one is below its limit.

    python benchmarks/studies/peers.py --preset vits16 --work build/peers
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import click
import numpy as np
import torch

from cascade_bench.comparison import always_full
from cascade_bench.peers import gather
from cascade_bench.peers.contender import Forward, Given
from cascade_bench.peers.onnxruntime import NAME as BASE
from cascade_runtime.cascade import Cascade
from cascade_runtime.command import INFEASIBLE_STATUS
from cascade_runtime.preprocess import Pixels
from cascade_train.checkpoint import load_network
from cascade_train.exits import CascadeModel

FAMILIES = ("torch", "torch.compile", "onnxruntime", "openvino")
LIMITS = {1: 2.2, 8: 3.0}  # over BASE, by batch size
PEER_LIMIT = 1.15


def made(preset: str, images: int, alpha: str, work: Path, *more: str) -> tuple[Path, Path]:
    """The run and its bundle, made by the commands if they are not there.

    Args:
        more: options of `cascade-compile bundle`.
    """
    run, bundle = work / preset, work / f"{preset}.cascade"
    if not trained(run):
        fit = ["cascade-train", "fit", "--preset", preset, "--data", f"roadworks:day?n={images}"]
        fit += ["--freeze", "backbone", "--epochs", "60", "--max-fnr", "1"]
        fit += ["--splits", ".5,.15,.3,.05"]
        command([*fit, "--out", str(run)])
    if not bundle.exists():
        build = ["cascade-compile", "bundle", str(run), "--precision", "auto", "--alpha", alpha]
        command([*build, "--out", str(bundle), *more])
    return run, bundle


def trained(run: Path) -> bool:
    """Whether a run is there and done."""
    return (run / "scores.json").exists()


def command(words: list[str]) -> None:
    """Run a console script of this interpreter; a promise that does not hold is a result.

    Raises:
        click.ClickException: it failed.
    """
    program = Path(sys.executable).with_name(words[0])
    done = subprocess.run([program, *words[1:]], stdout=sys.stderr, check=False)
    if done.returncode not in (0, INFEASIBLE_STATUS):
        raise click.ClickException(f"{' '.join(words)} ended with status {done.returncode}")


def ours(bundle: Path, threads: int) -> tuple[str, str, Forward]:
    """The certified target with its early exits shut, its name and the certificate's status."""
    cascade = Cascade.open(bundle, threads=threads)
    shut = always_full(cascade.decision)
    status = cascade.manifest.certificates[cascade.target].status
    return cascade.target, status, lambda pixels: cascade.stages.forward(pixels, shut)


def peers(given: Given) -> dict[str, Forward]:
    """Every peer that this machine can run."""
    here, absent = gather(given, FAMILIES)
    for one in absent:
        click.echo(f"not here: {one.name}: {one.reason}", err=True)
    return {peer.name: peer.forward for peer in here if peer.forward is not None}


def rounds(runs: dict[str, Forward], pixels: Pixels, count: int) -> dict[str, list[float]]:
    """Milliseconds an image of every run, in turns."""
    for run in runs.values():
        run(pixels)
        run(pixels)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(count):
        for name, run in runs.items():
            started = time.perf_counter()
            run(pixels)
            times[name].append(1e3 * (time.perf_counter() - started) / len(pixels))
    return times


def ratio(times: dict[str, list[float]], name: str, mine: str) -> tuple[float, float, float]:
    """How many times as fast `mine` is, median over the rounds with the lowest and the highest."""
    each = sorted(a / b for a, b in zip(times[name], times[mine], strict=True))
    return statistics.median(each), each[0], each[-1]


@click.command()
@click.option("--preset", default="vits16", show_default=True)
@click.option("--images", default=2000, show_default=True, help="Rendered, over all splits.")
@click.option("--alpha", default="0.4", show_default=True, help="The risk to promise.")
@click.option("--threads", default=2, show_default=True, type=click.IntRange(1))
@click.option("--rounds", "count", default=15, show_default=True, type=click.IntRange(1))
@click.option("--work", required=True, type=click.Path(path_type=Path), help="Folder of the run.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(
    preset: str, images: int, alpha: str, threads: int, count: int, work: Path, as_json: bool
) -> None:
    """Train heads, let the search choose, and measure the choice beside its peers."""
    work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(threads)
    run, bundle = made(preset, images, alpha, work)
    model, config = load_network(run)
    if not isinstance(model, CascadeModel):
        raise click.ClickException(f"{run} is no single network")
    name, status, mine = ours(bundle, threads)
    side = config.preprocess.height
    images_of = {
        batch: np.random.default_rng(batch).integers(0, 256, (batch, side, side, 3), np.uint8)
        for batch in LIMITS
    }
    given = Given(model, config.preprocess, config.classes, threads, work)
    runs = {name: mine, **peers(given)}
    found, low = {}, []
    for batch, limit in LIMITS.items():
        times = rounds(runs, images_of[batch], count)
        ratios = {peer: ratio(times, peer, name) for peer in runs if peer != name}
        best = min((peer for peer in ratios if peer != BASE), key=lambda peer: ratios[peer][0])
        found[batch] = {
            "ms_per_image": {peer: statistics.median(values) for peer, values in times.items()},
            "ratios": ratios,
            "best_peer": best,
        }
        low += [f"{ratios[BASE][0]:.2f} over {BASE}"] if ratios[BASE][0] < limit else []
        low += [f"{ratios[best][0]:.2f} over {best}"] if ratios[best][0] < PEER_LIMIT else []
    if as_json:
        click.echo(json.dumps({"preset": preset, "chosen": name, "status": status, **found}))
    else:
        click.echo(f"{preset} at {side} px, {threads} threads: {name}, {status} at alpha {alpha}")
        for batch, part in found.items():
            for peer, value in sorted(part["ms_per_image"].items(), key=lambda pair: pair[1]):
                times_of = part["ratios"].get(peer)
                said = "" if times_of is None else "  {:.2f} ({:.2f} to {:.2f})".format(*times_of)
                click.echo(f"batch {batch}  {peer:24}{value:8.1f} ms an image{said}")
    if low:
        raise click.ClickException("below the limit: " + "; ".join(low))


if __name__ == "__main__":
    main()
