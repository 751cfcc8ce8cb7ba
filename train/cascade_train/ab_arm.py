"""One training of a comparison, in a process of its own: `python -m cascade_train.ab_arm YAML RUN`.

In: a config file and the run folder to make, or to go on with. Out: the finished run and in it
`outcome.json` (what it cost) and `val_test.safetensors` (what the torch model said of every image
of val_test). A process of its own, so that its peak memory is that of this training, and so that
one that dies takes nothing with it.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import numpy.typing as npt

from cascade_calib.metrics import augrc
from cascade_runtime.errors import CascadeError, ConfigError
from cascade_train.paired import Outputs

if TYPE_CHECKING:
    from cascade_train.scale import Amp

OUTCOME, OUTPUTS = "outcome.json", "val_test.safetensors"


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What a training gave. Seconds are those of its epochs; memory in bytes, None: unknown.

    `scores` names each exit's score: `shipped`, `softmax` or `gate`, see `measure`.
    """

    blocks: tuple[int, ...]
    scores: tuple[str, ...]
    trainable: int
    parameters: int
    seconds: float
    peak_memory: int | None
    content_sha256: str


def train_and_measure(file: Path, run: Path) -> None:
    """Train as the file says, or go on with what is in `run`, then measure on val_test.

    Raises:
        ConfigError, DataError: as `run_fit`.
    """
    from cascade_train.config import request_of, train_config
    from cascade_train.data.splits import read_splits
    from cascade_train.fit import run_fit
    from cascade_train.recorder import peak_memory, read_environment

    resume = (run / "config.json").exists()
    request, config = request_of(train_config(file), run, resume=resume)
    result = run_fit(request, config, say=lambda line: print(line, flush=True))
    environment = read_environment(run)
    sessions = environment.sessions if environment else []
    peaks = [peak_memory(), *(session.peak_memory for session in sessions)]
    outputs, scores = measure(run, config.amp)
    save_outputs(run, outputs)
    outcome = Outcome(
        blocks=outputs.blocks,
        scores=scores,
        trainable=result.trainable,
        parameters=result.parameters,
        seconds=sum(epoch.seconds for epoch in result.log),
        peak_memory=max((peak for peak in peaks if peak is not None), default=None),
        content_sha256=read_splits(run / "splits.json").content_sha256["val_test"],
    )
    from cascade_train.checkpoint import write_atomic

    write_atomic(run / OUTCOME, msgspec.json.encode(outcome))


def measure(run: Path, amp: Amp) -> tuple[Outputs, tuple[str, ...]]:
    """The run's selected network on val_test, and the name of each exit's score.

    An exit whose score training has chosen is read by it ("shipped"); else the better one of
    softmax and gate on val_select is taken.
    """
    from cascade_train.checkpoint import load_trained
    from cascade_train.data.sources import load_split_pixels
    from cascade_train.loop import predict
    from cascade_train.scale import Machine, ScaleConfig

    model, shape = load_trained(run)
    machine = Machine(ScaleConfig(), amp)
    model.to(machine.device)
    seen = {}
    for split in ("val_select", "val_test"):
        loaded = load_split_pixels(run / "splits.json", split, shape.preprocess)
        logits, gates = predict(model, loaded.pixels, machine)
        seen[split] = Outputs(tuple(shape.exits), logits, gates, loaded.labels)
    shipped = [heads.score is not None for heads in model.exits.heads]
    names = tuple(
        "shipped" if done else _better_score(seen["val_select"], exit_)
        for exit_, done in enumerate(shipped)
    )
    tested = seen["val_test"]
    score = [
        _margin(tested, exit_) if name == "softmax" else tested.score[exit_]
        for exit_, name in enumerate(names)
    ]
    return replace(tested, score=np.stack(score)), names


def _better_score(outputs: Outputs, exit_: int) -> str:
    """Softmax unless the gate, here in `score`, has the lower AUGRC."""
    wrong = outputs.logits[exit_].argmax(axis=1) != outputs.labels
    softmax, gate = augrc(_margin(outputs, exit_), wrong), augrc(outputs.score[exit_], wrong)
    return "gate" if gate < softmax else "softmax"


def _margin(outputs: Outputs, exit_: int) -> npt.NDArray[np.float32]:
    return np.asarray(np.abs(outputs.logits[exit_, :, 1] - outputs.logits[exit_, :, 0]))


def save_outputs(run: Path, outputs: Outputs) -> None:
    """Write val_test.safetensors."""
    from safetensors.numpy import save

    from cascade_train.checkpoint import write_atomic

    arrays = {"logits": outputs.logits, "score": outputs.score, "labels": outputs.labels}
    write_atomic(run / OUTPUTS, save({k: np.ascontiguousarray(v) for k, v in arrays.items()}))


def read_outcome(run: Path) -> tuple[Outcome, Outputs] | None:
    """What an earlier `train_and_measure` wrote; None where it did not come to its end.

    Raises:
        ConfigError: it is there, but damaged.
    """
    if not (run / OUTCOME).exists():
        return None
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        outcome = msgspec.json.decode((run / OUTCOME).read_bytes(), type=Outcome)
        arrays = load_file(run / OUTPUTS)
        outputs = Outputs(outcome.blocks, arrays["logits"], arrays["score"], arrays["labels"])
    except (OSError, KeyError, msgspec.DecodeError, SafetensorError) as error:
        raise ConfigError(f"{run}: its outcome is damaged ({error}); delete {OUTCOME}") from error
    return outcome, outputs


def main() -> None:
    """The child's entry: errors of the input are one line on stderr and exit status 1."""
    from cascade_train.threads import spin_briefly

    spin_briefly()
    try:
        train_and_measure(Path(sys.argv[1]), Path(sys.argv[2]))
    except (CascadeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
