"""libcascade beside the Python runtime on images of every kind: same decisions, same pixels?

In: a bundle and a number of images (mixed_images.py). Out: how many images' pixels differ, and by
how many levels; and for each CPU target the images on which the two differ in decision, stage,
reason or set, and the largest difference of p and score. The first target is given the images as
they came; then every target is given each runtime's own pixels, at the bundle's own decision and at
every policy with thresholds in the middle of what these images score. Status 1 where a decision
differs, an image is readable to one runtime only, or a pixel is off by more than 1. `--only-own`
leaves the other policies out, for bundles that were certified with them.

    cmake -S runtime/native -B build/native -DCASCADE_TESTS=ON && cmake --build build/native
    python benchmarks/studies/native_identity.py BUNDLE --images 10000
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path

import click
import msgspec
import numpy as np
from mixed_images import Mixed, mixed_images

from cascade_runtime import bundle as bundles
from cascade_runtime import manifest as manifests
from cascade_runtime.cascade import Cascade, Result
from cascade_runtime.decision import ExitOutputs, score_logit
from cascade_runtime.errors import ImageError
from cascade_runtime.manifest import AcceptRule, Decision, Manifest, Preprocess
from cascade_runtime.preprocess import ImageLike, load_image

BLOCK = 500  # images that are in memory at once
NATIVE = ("onnxruntime", "openvino")
FRAMES = {1: "grey", 3: "rgb", 4: "rgba"}
BUILD = Path(__file__).parents[2] / "build" / "native"


@dataclass
class Tally:
    """Where two runtimes were asked the same, and how often they said something else."""

    target: str
    policy: str
    images: int = 0
    differ: int = 0
    max_p: float = 0.0
    max_score: float = 0.0
    verdicts: set[tuple[int, int, str]] = field(default_factory=set)
    first: list[str] = field(default_factory=list)

    def add(self, wanted: Sequence[Result], found: Sequence[Result]) -> None:
        for one, other in zip(wanted, found, strict=True):
            self.images += 1
            self.verdicts.add((one.label, one.stage, one.reason))
            if said(one) != said(other):
                self.differ += 1
                self.first += [f"{one}; native {other}"] if len(self.first) < 3 else []
            elif not math.isnan(one.p):
                self.max_p = max(self.max_p, abs(one.p - other.p))
                self.max_score = max(self.max_score, abs(one.score - other.score))

    def row(self) -> dict[str, object]:
        return {**asdict(self), "verdicts": len(self.verdicts)}

    def line(self) -> str:
        return (
            f"{self.target:22} {self.policy:22} {self.images:6} images, {self.differ} differ; "
            f"p {self.max_p:.1e}, score {self.max_score:.1e}; {len(self.verdicts)} kinds of verdict"
        )


def said(result: Result) -> tuple[object, ...]:
    reason = "unreadable" if result.stage < 0 else result.reason
    return result.label, result.stage, reason, result.set


@dataclass
class PixelTally:
    """Pixels of both decoders, and how far apart they are."""

    images: int = 0
    unreadable: int = 0  # to both
    one_sided: int = 0
    images_off: int = 0
    max_levels: int = 0
    by_kind: dict[str, int] = field(default_factory=dict)

    def add(self, kind: str, python: np.ndarray | None, native: np.ndarray | None) -> bool:
        self.images += 1
        self.by_kind[kind] = self.by_kind.get(kind, 0) + 1
        if python is None or native is None:
            both = python is None and native is None
            self.unreadable += both
            self.one_sided += not both
            return False
        levels = int(np.abs(python.astype(np.int16) - native).max())
        self.images_off += levels > 0
        self.max_levels = max(self.max_levels, levels)
        return True

    def line(self) -> str:
        kinds = ", ".join(f"{number} {kind}" for kind, number in self.by_kind.items())
        return (
            f"pixels: {self.images} images ({kinds}); {self.images_off} differ, at most by "
            f"{self.max_levels} of 255; {self.unreadable} unreadable to both, "
            f"{self.one_sided} to one"
        )


class Pixels:
    """libcascade's pixels: `pixels_probe` behind a pipe."""

    def __init__(self, program: Path, spec: Preprocess, folder: Path) -> None:
        if not program.exists():
            raise click.ClickException(f"{program} is missing; build with -DCASCADE_TESTS=ON")
        pipe = subprocess.PIPE
        self.process = subprocess.Popen([program], stdin=pipe, stdout=pipe)
        self.spec, self.file = spec, folder / "image"

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def __call__(self, data: bytes | np.ndarray) -> np.ndarray | None:
        spec, (to, out) = self.spec, (self.process.stdin, self.process.stdout)
        assert to is not None and out is not None
        words: list[object] = ["image", self.file]
        if isinstance(data, np.ndarray):
            kind = FRAMES[1 if data.ndim == 2 else data.shape[2]]
            words = ["frame", self.file, kind, data.shape[1], data.shape[0], data[0].nbytes, 0]
        words += [spec.height, spec.width, spec.resize, spec.crop, spec.max_pixels, spec.jpeg]
        self.file.write_bytes(data if isinstance(data, bytes) else data.tobytes())
        to.write("\t".join(map(str, words)).encode() + b"\n")
        to.flush()
        answer = out.readline().split(b" ", 2)
        if answer[0] != b"ok":
            return None
        values = np.frombuffer(out.read(int(answer[1])), np.uint8)
        return values.reshape(spec.height, spec.width, 3)


def python_pixels(data: bytes | np.ndarray, spec: Preprocess) -> np.ndarray | None:
    try:
        return load_image(data, spec)
    except ImageError:
        return None


def middle_policies(own: Decision, exits: Sequence[ExitOutputs]) -> dict[str, Decision]:
    """A decision a policy whose thresholds halve what the images score at each exit."""

    def rules(kind: manifests.ScoreKind) -> list[manifests.ExitRule]:
        found = []
        for rule, outputs in zip(own.exits, exits, strict=True):
            asked = msgspec.structs.replace(rule, score=kind)
            tau = float(np.float32(np.median(score_logit(outputs, asked))))
            found.append(msgspec.structs.replace(asked, tau_logit=tau))
        return found

    gate, softmax = rules("gate"), rules("softmax")
    last = msgspec.structs.replace(softmax[-1], tau_logit=-manifests.FLOAT32_MAX)
    open_end = (*softmax[:-1], last)
    accept = AcceptRule(tau_logit=softmax[-1].tau_logit or 0.0, set_logit_at=-1.0)
    mixed = tuple((gate, softmax)[stage % 2][stage] for stage in range(len(gate)))
    return {
        "certified": Decision(policy="certified", exits=mixed, set_logit=0.25),
        "softmax": Decision(policy="softmax", exits=tuple(softmax), set_logit=0.5),
        "gate": Decision(policy="gate", exits=tuple(gate), set_logit=0.0),
        "scrc-i": Decision(policy="scrc-i", exits=open_end, set_logit=-0.5, accept=accept),
        "scrc-t": Decision(policy="scrc-t", exits=open_end, set_logit=1.0, accept=accept),
    }


def rewritten(source: Path, made: Manifest, decisions: dict[str, Decision], out: Path) -> Path:
    """The bundle with other decisions, as if they had been certified; for this study only."""
    shutil.copytree(source, out)
    inputs = manifests.stage_inputs(made.stages)
    certificates = {}
    for name, certificate in made.certificates.items():
        decision = decisions.get(name, made.decision[name])
        binding = manifests.binding(made.preprocess, decision, certificate.engines, inputs)
        status = "CERTIFIED" if name in decisions else certificate.status
        certificates[name] = msgspec.structs.replace(certificate, binding=binding, status=status)
    changed = msgspec.structs.replace(
        made, decision={**made.decision, **decisions}, certificates=certificates
    )
    (out / bundles.SIGNATURE).unlink(missing_ok=True)
    (out / bundles.MANIFEST).write_bytes(manifests.encode(changed))
    bundles.seal(out)
    return out


def both(path: Path, target: str, threads: int) -> tuple[Cascade, Cascade]:
    return (
        Cascade.open(path, target, threads=threads, warm_up=False),
        Cascade.open(path, target, threads=threads, warm_up=False, engine="native"),
    )


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--images", "count", default=10_000, show_default=True, type=click.IntRange(1))
@click.option("--seed", default=0, show_default=True)
@click.option("--target", "asked", multiple=True, help="Only these.  [default: every CPU target]")
@click.option("--batch-size", default=32, show_default=True, type=click.IntRange(1, 32))
@click.option("--threads", default=1, show_default=True, type=click.IntRange(1))
@click.option("--only-own", is_flag=True, help="Only the decision that the bundle has.")
@click.option("--probe", default=BUILD / "pixels_probe", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(
    bundle: Path,
    count: int,
    seed: int,
    asked: tuple[str, ...],
    batch_size: int,
    threads: int,
    only_own: bool,
    probe: Path,
    as_json: bool,
) -> None:
    """Compare the two runtimes, target by target and policy by policy."""
    with tempfile.TemporaryDirectory() as scratch:
        study = Study(bundle, asked, batch_size, threads, Path(scratch))
        study.say = (lambda line: None) if as_json else click.echo
        study.from_files(count, seed, probe)
        study.from_pixels(only_own)
    pixels = study.levels
    if as_json:
        rows = [tally.row() for tally in study.tallies]
        click.echo(json.dumps({"pixels": asdict(pixels), "decisions": rows}))
    wrong = [line for tally in study.tallies for line in tally.first]
    if wrong or pixels.one_sided or pixels.max_levels > 1:
        raise click.ClickException("\n".join(["the runtimes differ", *wrong]))


class Study:
    """One bundle, its CPU targets, and what has been compared so far."""

    def __init__(
        self, path: Path, asked: Sequence[str], batch_size: int, threads: int, scratch: Path
    ) -> None:
        self.path, self.batch_size, self.threads, self.scratch = path, batch_size, threads, scratch
        self.manifest = bundles.Bundle.open(path).manifest
        runs = {
            name
            for name, target in self.manifest.targets.items()
            if target.backend in NATIVE and target.device == "cpu"
        }
        self.targets = [name for name in self.manifest.targets if name in (set(asked) or runs)]
        self.say: Callable[[str], None] = click.echo
        self.levels = PixelTally()
        self.tallies: list[Tally] = []
        self.python: list[np.ndarray] = []  # the pixels of each image that both could read
        self.native: list[np.ndarray] = []

    def from_files(self, count: int, seed: int, probe: Path) -> None:
        """Every image as it came, to both runtimes, on the first target."""
        name = self.targets[0]
        python, native = both(self.path, name, self.threads)
        tally = Tally(name, f"{self.manifest.decision[name].policy}, from files")
        self.tallies.append(tally)
        read = Pixels(probe, self.manifest.preprocess, self.scratch)
        images = mixed_images(count, seed)
        while block := list(islice(images, BLOCK)):
            self.compare_pixels(block, read)
            data: list[ImageLike] = [image.data for image in block]
            self.compare(tally, (python, data), (native, data))
        read.close()
        self.say(self.levels.line())
        self.say(tally.line())

    def compare_pixels(self, block: Sequence[Mixed], read: Pixels) -> None:
        for image in block:
            python, native = python_pixels(image.data, self.manifest.preprocess), read(image.data)
            if self.levels.add(image.kind, python, native) and python is not None:
                assert native is not None
                self.python.append(python)
                self.native.append(native)

    def from_pixels(self, only_own: bool) -> None:
        """Each runtime's own pixels, on every target."""
        own = {name: f"{self.manifest.decision[name].policy}, its own" for name in self.targets}
        self.compare_targets(self.path, own)
        if only_own:
            return
        some = np.stack(self.python[:BLOCK])
        decisions: dict[str, dict[str, Decision]] = {}
        for name in self.targets:
            cascade = Cascade.open(self.path, name, threads=self.threads, warm_up=False)
            exits = cascade.stages.forward_all(some)
            for policy, decision in middle_policies(cascade.decision, exits).items():
                decisions.setdefault(policy, {})[name] = decision
        for policy, by_target in decisions.items():
            folder = self.scratch / f"{policy}.cascade"
            path = rewritten(self.path, self.manifest, by_target, folder)
            self.compare_targets(path, dict.fromkeys(self.targets, policy))

    def compare_targets(self, path: Path, policies: dict[str, str]) -> None:
        for name, policy in policies.items():
            python, native = both(path, name, self.threads)
            tally = Tally(name, policy)
            self.tallies.append(tally)
            self.compare(tally, (python, self.python), (native, self.native))
            self.say(tally.line())

    def compare(
        self,
        tally: Tally,
        python: tuple[Cascade, Sequence[ImageLike]],
        native: tuple[Cascade, Sequence[ImageLike]],
    ) -> None:
        """Both in the same batches: an engine may give other last bits in another batch."""
        wanted, found = (
            cascade.classify(images, batch_size=self.batch_size)
            for cascade, images in (python, native)
        )
        tally.add(wanted, found)


if __name__ == "__main__":
    main()
