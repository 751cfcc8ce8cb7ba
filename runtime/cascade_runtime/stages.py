"""The cascade's stages on their engines: every exit of every image, or early exit.

In: uint8 pixels [B, H, W, 3]. Out: each exit's outputs, or a verdict an image. Certification and
the benchmark run `forward_all`, the product runs `forward`; the decision rule is
`cascade_runtime.decision` in both. A stage takes the tokens of the one before it or, where another
network begins, the pixels again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cascade_runtime import engines as registry
from cascade_runtime.decision import (
    ExitOutputs,
    Float32,
    Verdict,
    decide_exit,
    passes_on,
)
from cascade_runtime.engines import Engine
from cascade_runtime.errors import BundleError
from cascade_runtime.manifest import Decision, Manifest, StageInput, Target, stage_inputs

# What is left after an exit is a few images: every small size is there, so that they go in one run.
BATCH_SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 32)
WARM_UP_S = 1.0
OnStage = Callable[[int, int, float], None]


class Stages:
    """The engines of one target in order; holds no state between calls, so threads may share it.

    A batch is cut into pieces of `batch_sizes`, largest first: an engine with a free batch axis
    prepares itself anew for each size that it meets, and a bounded set can be warmed up.
    """

    def __init__(
        self,
        engines: Sequence[Engine],
        batch_sizes: Sequence[int] = BATCH_SIZES,
        inputs: Sequence[StageInput] | None = None,
    ) -> None:
        """Args: inputs: what each engine takes; default one network, pixels and then tokens."""
        if not engines:
            raise ValueError("engines is empty, a cascade has at least one stage")
        later: Sequence[StageInput] = ["tokens"] * (len(engines) - 1)
        self.inputs: tuple[StageInput, ...] = ("pixels", *later) if inputs is None else (*inputs,)
        if len(self.inputs) != len(engines) or self.inputs[0] != "pixels":
            raise ValueError(f"inputs is {inputs!r}, needs one an engine and pixels first")
        if 1 not in batch_sizes or min(batch_sizes) < 1:
            raise ValueError(f"batch_sizes is {batch_sizes!r}, needs 1 and nothing below it")
        self.engines = tuple(engines)
        self.batch_sizes = tuple(sorted(set(batch_sizes), reverse=True))

    def forward_all(self, pixels: npt.NDArray[np.uint8]) -> list[ExitOutputs]:
        """Every exit's outputs for every image, nothing exits early.

        Args:
            pixels: uint8 [B, H, W, 3]; B may be 0.
        """
        batch: npt.NDArray[Any] = _check(pixels)
        exits = []
        for stage, kind in enumerate(self.inputs):
            outputs, tokens = self._run(stage, pixels if kind == "pixels" else batch)
            exits.append(outputs)
            if tokens:
                batch = _rows(tokens, np.ones(len(pixels), dtype=np.bool_))
        return exits

    def forward(
        self,
        pixels: npt.NDArray[np.uint8],
        decision: Decision,
        on_stage: OnStage | None = None,
    ) -> Verdict:
        """Decide every image; only those that did not exit go on to the next stage.

        Args:
            pixels: uint8 [B, H, W, 3]; B may be 0.
            on_stage: called after each stage with its index, how many images it ran and seconds.
        """
        if len(decision.exits) != len(self.engines):
            raise ValueError(
                f"decision has {len(decision.exits)} exits, the cascade {len(self.engines)} stages"
            )
        batch: npt.NDArray[Any] = _check(pixels)
        verdict = _blank(len(pixels))
        going = np.arange(len(pixels))
        for stage in range(len(self.engines)):
            started = time.perf_counter()
            outputs, tokens = self._run(stage, batch)
            with np.errstate(invalid="ignore", over="ignore"):  # what is not finite defers
                part = decide_exit(outputs, decision, stage)
            _write(verdict, going, part)
            onward = passes_on(part)
            if on_stage is not None:
                on_stage(stage, len(going), time.perf_counter() - started)
            if stage == len(self.engines) - 1 or not onward.any():
                break
            going = going[onward]
            if tokens:
                batch = _rows(tokens, onward)
            else:  # the next stage takes pixels
                batch = pixels if len(going) == len(pixels) else pixels[going]
        return verdict

    def side_by_side(self) -> Stages | None:
        """The same stages for callers that run at the same time, each on one thread.

        None where an engine has no such form; see `engines.Divisible`.
        """
        found = []
        for engine in self.engines:
            one = engine.side_by_side() if isinstance(engine, registry.Divisible) else None
            if one is None:
                return None
            found.append(one)
        return Stages(found, self.batch_sizes, self.inputs)

    def up_to(self, batch_size: int) -> Stages:
        """The same stages, which run no more than so many images together."""
        sizes = [size for size in self.batch_sizes if size <= batch_size]
        return Stages(self.engines, sizes, self.inputs)

    def warm_up(self, height: int, width: int) -> None:
        """Run the batch sizes once, so that no later call pays for a first time.

        Smallest first and for about a second: a network so slow that this ends early does not
        feel the few milliseconds that a first time costs.
        """
        started = time.perf_counter()
        for stages in filter(None, (self, self.side_by_side())):
            for size in reversed(self.batch_sizes):
                stages.forward_all(np.zeros((size, height, width, 3), dtype=np.uint8))
                if time.perf_counter() - started > WARM_UP_S:
                    break

    def _run(self, stage: int, batch: npt.NDArray[Any]) -> tuple[ExitOutputs, list[Float32]]:
        """One stage over any number of images: its exit's outputs; each run's tokens if taken."""
        handed = self.inputs[stage + 1 : stage + 2] == ("tokens",)
        run = self.engines[stage].run
        runs = [_take(run(piece), stage, len(piece), handed) for piece in self._pieces(batch)]
        if not runs:
            empty = np.zeros((0, 1, 1), dtype=np.float32)
            return ExitOutputs(empty[:, 0, :].repeat(2, 1), empty[:, 0, 0]), []
        if len(runs) == 1:
            logits, gate, _ = runs[0]
        else:
            logits = np.concatenate([run[0] for run in runs])
            gate = np.concatenate([run[1] for run in runs])
        return ExitOutputs(logits, gate), [run[2] for run in runs if run[2] is not None]

    def _pieces(self, batch: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
        start = 0
        for size in self.batch_sizes:
            while len(batch) - start >= size:
                yield batch[start : start + size]
                start += size


def load_stages(
    manifest: Manifest,
    target_name: str,
    read: Callable[[str], bytes],
    threads: int | None = None,
) -> Stages:
    """The stages of one of the manifest's targets; `read` gives the verified bytes of a path.

    Raises:
        TargetError: the target cannot run here.
    """
    inputs = stage_inputs(manifest.stages)
    return load_target(manifest.targets[target_name], read, threads, inputs)


def load_target(
    target: Target,
    read: Callable[[str], bytes],
    threads: int | None = None,
    inputs: Sequence[StageInput] | None = None,
) -> Stages:
    """The stages of a target that need not be in a bundle yet: certification runs before one.

    Args:
        inputs: what each stage takes; default one network, pixels and then tokens.
    """
    loaded = []
    for stage in target.stages:
        files = {path: read(path) for path in stage.files}
        loaded.append(
            registry.load(
                target.backend,
                files,
                stage.files[0],
                precision=target.precision,
                device=target.device,
                threads=threads,
            )
        )
    return Stages(loaded, inputs=inputs)


def _check(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3:
        raise ValueError(f"pixels is {pixels.dtype} {pixels.shape}, expected uint8 [B, H, W, 3]")
    return pixels


def _take(
    outputs: dict[str, Float32], stage: int, size: int, handed: bool
) -> tuple[Float32, Float32, Float32 | None]:
    """The named outputs of one run, checked: a wrong engine must not pass for a right answer."""
    wanted = {"logits": (size, 2), "gate": (size,)}
    for name, shape in wanted.items():
        value = outputs.get(name)
        if value is None or value.shape != shape or value.dtype != np.float32:
            found = "missing" if value is None else f"{value.dtype} {value.shape}"
            raise BundleError(
                f"stage {stage}: output {name!r} is {found}, expected float32 {shape}; "
                "rebuild the bundle with cascade-compile bundle"
            )
    tokens = outputs.get("tokens") if handed else None
    if handed and (tokens is None or len(tokens) != size):
        raise BundleError(
            f"stage {stage}: output 'tokens' is missing or has the wrong batch; "
            "rebuild the bundle with cascade-compile bundle"
        )
    return outputs["logits"], outputs["gate"], tokens


def _rows(parts: Sequence[Float32], chosen: npt.NDArray[np.bool_]) -> Float32:
    """The chosen rows of all parts, one after the other; one part that goes whole is not copied."""
    if len(parts) == 1:
        return parts[0] if chosen.all() else parts[0][chosen]
    rows = np.empty((np.count_nonzero(chosen), *parts[0].shape[1:]), parts[0].dtype)
    start = done = 0
    for part in parts:
        index = np.flatnonzero(chosen[start : start + len(part)])
        # "clip" writes where it is told to; checking indices would take a copy.
        np.take(part, index, axis=0, out=rows[done : done + len(index)], mode="clip")
        start, done = start + len(part), done + len(index)
    return rows


def _blank(size: int) -> Verdict:
    return Verdict(
        label=np.full(size, -1, dtype=np.int8),
        stage=np.zeros(size, dtype=np.int8),
        reason=np.zeros(size, dtype=np.int8),
        in_set=np.zeros((size, 2), dtype=np.bool_),
        score_logit=np.zeros(size, dtype=np.float32),
        margin=np.zeros(size, dtype=np.float32),
    )


def _write(verdict: Verdict, rows: npt.NDArray[np.intp], part: Verdict) -> None:
    """Put the verdicts of `part` into these rows; a later stage overwrites an earlier one."""
    verdict.label[rows] = part.label
    verdict.stage[rows] = part.stage
    verdict.reason[rows] = part.reason
    verdict.in_set[rows] = part.in_set
    verdict.score_logit[rows] = part.score_logit
    verdict.margin[rows] = part.margin
