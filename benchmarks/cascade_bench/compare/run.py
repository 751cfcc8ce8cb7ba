"""`cascade-bench compare`: the order of things.

In: a bundle, the run that it was compiled from, labelled images. Out: a `Record`. Peers are made
from the run's weights, quality is counted on every image of the sample, and then the rounds are
timed, one batch size after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from cascade_bench import machine
from cascade_bench.compare import rounds, same_network, sample, speed
from cascade_bench.compare.quality import judge
from cascade_bench.compare.record import Judged, Record, SampleRecord
from cascade_bench.compare.sample import Sample
from cascade_bench.on_processor import open_on_processor
from cascade_bench.peers import gather
from cascade_bench.peers.contender import Contender, Given
from cascade_bench.peers.own import ALWAYS_FULL, CASCADE, IN_PYTHON, own
from cascade_bench.workload import SEED, Runtime, bundle_sha256, split_read
from cascade_calib.evaluate import in_the_classes_of
from cascade_calib.labelled import read_labelled
from cascade_calib.progress import Progress
from cascade_calib.provenance import made_by
from cascade_runtime.cascade import Cascade
from cascade_runtime.engines.processor import usable_cores
from cascade_runtime.errors import TargetError


@dataclass(frozen=True)
class Plan:
    """What to compare. `seconds` is for all rounds of one batch size together.

    split: of a splits.json; None takes `val_test`. images: at most so many are drawn.
    families: of `peers.FAMILIES`. threads: None takes every core.
    """

    bundle: Path
    run: Path
    data: str
    split: str | None
    families: tuple[str, ...]
    target: str = "auto"
    runtime: Runtime = "python"
    batches: tuple[int, ...] = (1, 8, 32)
    rounds: int = 12
    seconds: float = 60.0
    images: int = 1000
    threads: int | None = None


def run(plan: Plan, progress: Progress | None = None) -> Record:
    """Do all of it.

    Raises:
        BundleError, TargetError: the bundle cannot be opened or run here, or is to run on a GPU.
        ConfigError: the run is neither the one that the bundle was made from nor the one that its
            exits were chosen of.
        DataError: the labelled images cannot be used.
    """
    load_before = machine.load()
    threads = plan.threads or len(usable_cores())
    cascade = open_on_processor(plan.bundle, plan.target, threads, "peers", warm_up=True)
    split = split_read(plan.data, plan.split)
    images = in_the_classes_of(
        read_labelled(plan.data, split=split), cascade.manifest.model.classes
    )
    name = split or Path(plan.data).name
    drawn = sample.draw(cascade, images, plan.images, name, progress)
    with TemporaryDirectory(prefix="cascade-compare-") as folder, ExitStack() as open_ones:
        given = given_of(plan.run, cascade, threads, Path(folder))
        tell = _Steps(progress)
        ours = own(cascade, plan.runtime)
        blocks = [drawn.block(0, size) for size in plan.batches]
        peers, absent = gather(given, plan.families, tell.peers(len(plan.families)), blocks)
        contenders = [*ours, *peers]
        for contender in contenders:
            open_ones.callback(contender.close)
        judged = _judged(cascade, contenders, drawn, max(plan.batches), tell)
        batches = []
        for size in plan.batches:
            step = tell.rounds(size, plan.rounds)
            times = rounds.measure(
                contenders, drawn, size, rounds=plan.rounds, seconds=plan.seconds, tell=step
            )
            batches.append(speed.summarise(times))
    return Record(
        made_by=made_by(SEED),
        bundle=str(plan.bundle),
        bundle_sha256=bundle_sha256(plan.bundle),
        run=str(plan.run),
        exits=cascade.manifest.model.exits,
        peers_exit=given.network.exit_blocks[-1],
        target=cascade.target,
        runtime=plan.runtime,
        machine=machine.describe(cascade, load_before),
        sample=SampleRecord(drawn.drawn, len(drawn), drawn.mean_file_bytes()),
        contenders=judged,
        batches=tuple(batches),
        absent=tuple(absent),
        certificate=cascade.certificate,
    )


def given_of(run_folder: Path, cascade: Cascade, threads: int, folder: Path) -> Given:
    """What peers are made from: of a pair of networks the second, which answers alone as well.

    Raises:
        ConfigError: the run is neither the one that the bundle was made from nor the one that its
            exits were chosen of.
    """
    try:
        from cascade_train.checkpoint import load_network
    except ImportError as error:
        raise TargetError(
            f"{error.name} is not installed, which the peers are made with; "
            "pip install 'cascade-edge[compile]'"
        ) from error
    network, config = load_network(run_folder)
    same_network.check(run_folder, network, config, cascade)
    return Given(network.parts[-1], config.preprocess, config.classes, threads, folder)


def _judged(
    cascade: Cascade, contenders: Sequence[Contender], drawn: Sample, batch: int, tell: _Steps
) -> tuple[Judged, ...]:
    said = []
    for done, contender in enumerate(contenders):
        tell.report("deciding every image", done, len(contenders))
        said.append(contender.classify(drawn.files, batch))
    tell.report("deciding every image", len(contenders), len(contenders))
    names = [contender.name for contender in contenders]
    full = said[names.index(ALWAYS_FULL)]
    promise = cascade.certificate.status == "CERTIFIED"
    return tuple(
        Judged(
            **vars(judge(each.name, one, full, drawn)),
            note=each.note,
            certified=promise and each.name in (CASCADE, IN_PYTHON),
        )
        for each, one in zip(contenders, said, strict=True)
    )


class _Steps:
    """How far it has come, told while no clock runs."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress

    def report(self, what: str, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress(what, done, total)

    def peers(self, total: int) -> Callable[[int], None]:
        self.report("making peers", 0, total)
        return lambda done: self.report("making peers", done, total)

    def rounds(self, batch: int, total: int) -> Callable[[], None]:
        what, done = f"rounds at batch {batch}, warm-up first", -1
        self.report(what, 0, total + 1)

        def step() -> None:
            nonlocal done
            done += 1
            self.report(what, done + 1, total + 1)

        return step
