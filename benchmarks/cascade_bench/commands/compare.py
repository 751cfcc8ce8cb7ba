"""`cascade-bench compare`: its options, what it prints, its exit status."""

from __future__ import annotations

import sys
from pathlib import Path

import click

WIDTH = 120


class Batches(click.ParamType):  # type: ignore[type-arg]
    """Batch sizes, `1,8,32`."""

    name = "sizes"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        words = str(value).split(",")
        if not all(word.strip().isdigit() and int(word) > 0 for word in words):
            self.fail(f"{value!r} is no list of batch sizes such as 1,8,32", param, ctx)
        return tuple(dict.fromkeys(int(word) for word in words))


@click.command("compare", short_help="The bundle and its peers on the same images and weights.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--run",
    "run_folder",
    required=True,
    type=click.Path(path_type=Path),
    help="The run that BUNDLE was compiled from: the weights of its peers.",
)
@click.option("--data", required=True, help="Class folders, a CSV or Parquet, or splits.json.")
@click.option("--split", help="Which split of a splits.json.  [default: val_test]")
@click.option("--images", default=1000, show_default=True, type=click.IntRange(1), help="At most.")
@click.option("--target", default="auto", show_default=True, help="A target of the bundle.")
@click.option("--batch", type=Batches(), default="1,8,32", show_default=True, help="Batch sizes.")
@click.option("--rounds", default=12, show_default=True, type=click.IntRange(1))
@click.option(
    "--seconds",
    type=click.FloatRange(0, 36000),
    default=60.0,
    show_default=True,
    help="For all rounds of a batch size; a round is at least one batch each.",
)
@click.option("--threads", type=click.IntRange(1), help="CPU threads.  [default: every core]")
@click.option(
    "--peers",
    help="Of transformers, torch, torch.compile, onnxruntime, openvino, litserve, triton.  "
    "[default: all]",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout, no tables.")
@click.option("--plot", type=click.Path(path_type=Path), help="Also draw FILE.png.")
@click.option("--report", type=click.Path(path_type=Path), help="Also write FILE.html.")
def command(
    bundle: Path,
    run_folder: Path,
    data: str,
    split: str | None,
    images: int,
    target: str,
    batch: tuple[int, ...],
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
    from cascade_bench import plot as pictures
    from cascade_bench.compare.run import Plan
    from cascade_bench.compare.run import run as measure
    from cascade_bench.peers import chosen
    from cascade_calib.progress import shown

    pictures.check_path(plot, "--plot", ".png")
    pictures.check_path(report, "--report", ".html")
    plan = Plan(
        bundle=bundle,
        run=run_folder,
        data=data,
        split=split,
        families=chosen(peers),
        target=target,
        batches=batch,
        rounds=rounds,
        seconds=seconds,
        images=images,
        threads=threads,
    )
    with shown() as progress:
        record = measure(plan, progress)
    if plot is not None:
        from cascade_bench.compare.plot import write

        write(record, plot)
    if report is not None:
        from cascade_bench.compare.page import write as write_page

        write_page(record, report)
    if as_json:
        import json

        click.echo(json.dumps(record.to_dict(), allow_nan=False))
        return
    from rich.console import Console

    from cascade_bench.compare.tables import render

    # A log file has no width of its own; the widest table needs this much.
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else WIDTH)
    for part in render(record):
        console.print(part)
