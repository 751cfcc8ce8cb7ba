"""Does `cascade-compile exits` expect what is then measured?

In: a run with many exits, and perhaps one that was trained with those of the preset. Out: for the
choices that are expected to be the fastest, and some that are named, what was expected and, of the
certified bundle of each, what was measured: certified coverage, and milliseconds an image of
`val_test` as ratios to the first that is named, all of them in turn.

    python benchmarks/studies/exit_placement.py RUN --alpha 0.03 --exits 2,6 --beside OTHER
"""

from __future__ import annotations

import tempfile
from fractions import Fraction
from pathlib import Path

import click

from cascade_calib.labelled import load_split_pixels
from cascade_calib.path import Request
from cascade_compile import targets
from cascade_compile.build_target import spread
from cascade_compile.bundle import BundleRequest, build
from cascade_compile.exits import ExitsRequest, choose_exits
from cascade_compile.speed import MOST_IMAGES, measure_speed
from cascade_runtime.cascade import Cascade
from cascade_runtime.decision import decide
from cascade_train.checkpoint import read_config
from cascade_train.keep_exits import keep_exits

Blocks = tuple[int, ...]


def blocks_of(text: str) -> Blocks:
    return tuple(int(part) for part in text.split(","))


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--exits", "named", multiple=True, required=True, help="The first is the reference.")
@click.option(
    "--beside", "others", multiple=True, type=click.Path(path_type=Path), help="Trained otherwise."
)
@click.option("--target", default=str(targets.default_targets()[0]), show_default=True)
@click.option("--alpha", default="0.03", show_default=True)
@click.option("--coverage", default="0.7", show_default=True)
@click.option("--batch", default=32, show_default=True)
@click.option("--best", default=4, show_default=True, help="How many of the fastest expected.")
@click.option("--rounds", default=15, show_default=True)
@click.option("--threads", default=1, show_default=True)
def main(
    run: Path,
    named: tuple[str, ...],
    others: tuple[Path, ...],
    target: str,
    alpha: str,
    coverage: str,
    batch: int,
    best: int,
    rounds: int,
    threads: int,
) -> None:
    """Expect, build, certify, and measure."""
    promise = Request(Fraction(alpha), Fraction("0.05"), Fraction(coverage))
    name = targets.parse(target)
    every = len(read_config(run).exits)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        request = ExitsRequest(
            run, work / "chosen", name, promise, most=every, batch=batch, threads=threads
        )
        found = choose_exits(request, say=lambda line: None)
        expected = {p.exits: p for p in found.placements}
        good = [p.exits for p in found.placements if found.likely(p)][:best]
        asked = list(dict.fromkeys([*map(blocks_of, named), *good]))
        runs = {",".join(map(str, blocks)): work / f"run{i}" for i, blocks in enumerate(asked)}
        for place, blocks in zip(runs.values(), asked, strict=True):
            keep_exits(run, blocks, place)
        for other in others:
            exits = ",".join(map(str, read_config(other).exits))
            runs[f"{exits}, trained so"] = other
        made = {}
        for label, place in runs.items():
            bundle = work / f"{len(made)}.cascade"
            asking = BundleRequest(
                place, bundle, (name,), promise, threads=threads, thumbnails=False
            )
            made[label] = (
                build(asking, say=lambda line: None),
                Cascade.open(bundle, threads=threads),
            )
        test = load_split_pixels(run, "val_test", read_config(run).preprocess)
        cascades = {label: (c.stages, c.decision) for label, (_, c) in made.items()}
        timed = measure_speed(cascades, spread(test.pixels, MOST_IMAGES), batch, rounds=rounds)
        reference = timed.speeds[next(iter(made))].images_per_s
        click.echo(
            "exits | expected ms | coverage | chance | reached | certified, coverage | reached on "
            f"{len(test)} of val_test | acted on | ms (slowest, fastest round) | times as fast"
        )
        for label, (manifest, cascade) in made.items():
            [certificate] = manifest.certificates.values()
            verdict = decide(cascade.stages.forward_all(test.pixels), cascade.decision)
            wrong = verdict.acted & (verdict.label != test.labels)
            stages = range(len(cascade.stages.engines))
            reached = "/".join(f"{100 * (verdict.stage >= s).mean():.0f}" for s in stages)
            p = None if "trained" in label else expected.get(blocks_of(label))
            speed = timed.speeds[label]
            click.echo(
                " | ".join(
                    [
                        label,
                        "-" if p is None else f"{p.ms:.3f}",
                        "-" if p is None else f"{100 * p.coverage:.1f} %",
                        "-" if p is None else f"{100 * p.chance:.0f} %",
                        "-" if p is None else "/".join(f"{100 * r:.0f}" for r in p.reach),
                        f"{certificate.status} {100 * certificate.coverage:.1f} %",
                        reached,
                        f"{100 * verdict.acted.mean():.1f} %, {int(wrong.sum())} wrong",
                        f"{1e3 / speed.images_per_s:.3f} ({1e3 / speed.slowest:.3f}, "
                        f"{1e3 / speed.fastest:.3f})",
                        f"{speed.images_per_s / reference:.2f}",
                    ]
                )
            )


if __name__ == "__main__":
    main()
