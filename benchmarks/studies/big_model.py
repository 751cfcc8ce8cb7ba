"""The whole way of a large network on a machine without a GPU: seconds and peak memory a command.

In: a preset; the backbone's weights are random, its heads are trained on rendered scenes. Out: for
`cascade-train fit`, for the export alone, for `cascade-compile bundle` of each target by itself (of
the first one with the recipes) and for `cascade-run`, each in a process of its own: seconds, peak
of resident memory, and the peak over the float32 weights; status 1 where the export's is above the
limit.

    python benchmarks/studies/big_model.py --preset vith16plus --target openvino/bf16/cpu
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import click
import msgspec

LIMIT = 2.5
INFEASIBLE = 5  # of so few images no promise is possible; the bundle is made all the same


class Row(msgspec.Struct, frozen=True):
    """One command: `ratio` is its peak over the weights in float32."""

    name: str
    seconds: float
    peak_gib: float
    ratio: float


def command(words: Sequence[str | Path], accepted: Sequence[int] = (0,)) -> tuple[float, float]:
    """Run a command of this installation; its seconds and peak in GiB."""
    started = time.perf_counter()
    whole = [str(Path(sys.executable).with_name(str(words[0]))), *map(str, words[1:])]
    process = subprocess.Popen(whole, stdout=sys.stderr)
    _, status, usage = os.wait4(process.pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code not in accepted:
        raise click.ClickException(f"{' '.join(whole)} ended with status {code}")
    return time.perf_counter() - started, usage.ru_maxrss / 2**20


EXPORT = """
import sys
from pathlib import Path
from cascade_compile.export import export_stages
from cascade_train.checkpoint import load_network
model, config = load_network(Path(sys.argv[1]))
export_stages(model, config.preprocess.height, Path(sys.argv[2]))
"""


@click.command()
@click.option("--preset", default="vith16plus", show_default=True)
@click.option("--target", "names", multiple=True, default=["openvino/bf16/cpu"], show_default=True)
@click.option("--recipe", "recipes", multiple=True, default=["tensorrt/fp16"], show_default=True)
@click.option("--images", default=60, show_default=True, help="Rendered, over all four splits.")
@click.option("--image-size", type=int, help="Side in pixels.  [default: the preset's]")
@click.option("--limit", default=LIMIT, show_default=True, help="Of the export's ratio.")
@click.option("--work", type=click.Path(path_type=Path), help="Keep the files here.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(
    preset: str,
    names: tuple[str, ...],
    recipes: tuple[str, ...],
    images: int,
    image_size: int | None,
    limit: float,
    work: Path | None,
    as_json: bool,
) -> None:
    """Train heads, export, bundle and run; say what each takes."""
    with tempfile.TemporaryDirectory() as folder:
        rows, gib = measure(preset, names, recipes, images, image_size, work or Path(folder))
    if as_json:
        click.echo(json.dumps({"weights_gib": gib, "rows": msgspec.to_builtins(rows)}))
    else:
        click.echo(f"{preset}: {gib:.2f} GiB of weights in float32")
        for row in rows:
            click.echo(
                f"{row.name:42}{row.seconds:8.1f} s   peak {row.peak_gib:6.2f} GiB   "
                f"{row.ratio:.2f} times the weights"
            )
    export = next(row for row in rows if row.name == "export")
    if export.ratio > limit:
        raise click.ClickException(
            f"the export's peak is {export.ratio:.2f} times the weights, above {limit:g}"
        )


def measure(
    preset: str,
    names: Sequence[str],
    recipes: Sequence[str],
    images: int,
    image_size: int | None,
    work: Path,
) -> tuple[list[Row], float]:
    """Every command in its order, and the size of the weights in GiB."""
    run, exported = work / "run", work / "onnx"
    exported.mkdir(parents=True)
    size = [] if image_size is None else ["--image-size", str(image_size)]
    data = f"roadworks:day?n={images}"
    fit = ["--freeze", "backbone", "--epochs", "2", "--splits", ".4,.2,.2,.2", *size]
    found = {
        "fit, heads only": command(
            ["cascade-train", "fit", "--data", data, "--preset", preset, "--out", run, *fit]
        )
    }
    gib = (run / "model.safetensors").stat().st_size / 2**30
    found["export"] = command(["python", "-c", EXPORT, run, exported])
    for index, name in enumerate(names):
        out = work / f"{name.replace('/', '-')}.cascade"
        beside = [] if index else recipes
        bundle = ["cascade-compile", "bundle", run, "--out", out, "--target", name]
        bundle += [word for recipe in beside for word in ("--recipe", recipe)]
        row = f"bundle, {', '.join([name, *beside])}"
        found[row] = command([*bundle, "--coverage", "0"], (0, INFEASIBLE))
        found[f"run, {name}"] = command(["cascade-run", "classify", out, some_image(run)])
    rows = [
        Row(name, round(seconds, 1), round(peak, 2), round(peak / gib, 2))
        for name, (seconds, peak) in found.items()
    ]
    return rows, round(gib, 3)


def some_image(run: Path) -> Path:
    """One of the images that the run was made from."""
    splits = json.loads((run / "splits.json").read_bytes())
    found: Path = run / splits["root"] / splits["entries"][0]["path"]
    return found


if __name__ == "__main__":
    main()
