"""`cascade-bench compare`: its options, what it prints, its exit status."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cascade_bench.commands import options
from cascade_bench.commands.output import check_paths, show

if TYPE_CHECKING:
    from cascade_bench.workload import Runtime

WIDTH = 120  # of the widest table


@click.command("compare", short_help="The bundle and its peers on the same images and weights.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--run",
    "run_folder",
    required=True,
    type=click.Path(path_type=Path),
    help="What BUNDLE was compiled from, or its exits chosen of: the weights of its peers.",
)
@click.option("--data", required=True, help="Class folders, a CSV or Parquet, or splits.json.")
@click.option("--split", help="Which split of a splits.json.  [default: val_test]")
@click.option("--images", default=1000, show_default=True, type=click.IntRange(1), help="At most.")
@options.place()
@options.runtime("Who decides for BUNDLE: cascade_runtime, or libcascade, with Python beside it.")
@options.batches("1,8,32")
@click.option("--rounds", default=12, show_default=True, type=click.IntRange(1))
@click.option(
    "--seconds",
    type=options.Finite(0, 36000),
    default=60.0,
    show_default=True,
    help="For all rounds of a batch size; a round is at least one batch each.",
)
@click.option(
    "--peers",
    help="Of transformers, torch, torch.compile, onnxruntime, openvino, litserve, triton.  "
    "[default: all]",
)
@options.outputs()
def command(
    bundle: Path,
    run_folder: Path,
    data: str,
    split: str | None,
    images: int,
    target: str,
    runtime: Runtime,
    batches: tuple[int, ...],
    rounds: int,
    seconds: float,
    threads: int | None,
    peers: str | None,
    as_json: bool,
    plot: Path | None,
    report: Path | None,
) -> None:
    """BUNDLE beside what else would run its network: speed, accuracy, coverage, promise.

    Everybody classifies the same files with the same trained weights, in interleaved rounds, on as
    many threads. Peers are the transformers pipeline, PyTorch, torch.compile, plain exports in
    ONNX Runtime and OpenVINO, LitServe and Triton where they are installed, and always the bundle's
    own engines run to the end. Who is missing is listed with what installs it.
    """
    from cascade_train.threads import spin_briefly

    spin_briefly()  # before torch is imported
    from cascade_bench import pictures
    from cascade_bench.compare import page
    from cascade_bench.compare.plot import draw
    from cascade_bench.compare.run import Plan
    from cascade_bench.compare.run import run as measure
    from cascade_bench.compare.tables import render
    from cascade_bench.peers import chosen
    from cascade_calib.progress import shown

    check_paths(plot, report)
    plan = Plan(
        bundle=bundle,
        run=run_folder,
        data=data,
        split=split,
        families=chosen(peers),
        target=target,
        runtime=runtime,
        batches=batches,
        rounds=rounds,
        seconds=seconds,
        images=images,
        threads=threads,
    )
    with shown() as progress:
        record = measure(plan, progress)
    show(record.to_dict, lambda: render(record), as_json=as_json, width=WIDTH)
    if plot is not None:  # behind what is printed, which a full disk is not to lose
        pictures.write(plot, draw(record, pictures.PNG, abreast=len(record.batches)))
    if report is not None:
        page.write(record, report)
