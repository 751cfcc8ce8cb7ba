"""The golden vectors: images with the outputs and decisions that every reader must give.

In: the bytes of `golden.safetensors`. Out: `Golden`, checked; `record` makes its tensors and
`self_test` runs them. The reader is strict and needs numpy alone. Specs: docs/bundle-format.md,
"Golden vectors", and the format text of github.com/huggingface/safetensors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cascade_runtime import strict_json
from cascade_runtime.bundle import GOLDEN
from cascade_runtime.decision import ExitOutputs, decide, score_logit
from cascade_runtime.decision import margin as class_margin
from cascade_runtime.errors import BundleError, TargetError
from cascade_runtime.manifest import Decision, Preprocess
from cascade_runtime.manifest_limits import MAX_STAGES
from cascade_runtime.stages import Stages

Tensors = dict[str, npt.NDArray[Any]]

# Largest absolute difference of an output from the recorded one, by the target's precision:
# other processors of the same kind round and order sums differently; in 8 bits what falls to the
# other side of a step is a whole step away.
TOLERANCES = {"fp32": 1e-3, "bf16": 0.1, "fp16": 0.1, "mixed": 0.1, "int8": 0.2}
_DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
}
_MAX_HEADER = 100_000_000
_MAX_AXES = 8
_MAX_SIZE = (1 << 63) - 1  # also of an empty tensor, its axes of length 0 left out
_AGAIN = "rebuild with cascade-compile bundle"


@dataclass(frozen=True)
class Golden:
    """`images` uint8 [G, H, W, 3] and, per target, what they must give."""

    images: npt.NDArray[np.uint8]
    exits: dict[str, list[ExitOutputs]]  # by target, one entry a stage
    label: dict[str, npt.NDArray[np.int8]]
    stage: dict[str, npt.NDArray[np.int8]]


def record(
    stages: Stages, decision: Decision, images: npt.NDArray[np.uint8], target: str
) -> Tensors:
    """The tensors of one target (and `images`), named as in the file; writers merge and save them.

    Args:
        images: uint8 [G, H, W, 3], already preprocessed.
    """
    exits = stages.forward_all(images)
    verdict = decide(exits, decision)
    return {
        "images": images,
        f"{target}/logits": np.stack([outputs.logits for outputs in exits]),
        f"{target}/gate": np.stack([outputs.gate for outputs in exits]),
        f"{target}/label": verdict.label,
        f"{target}/stage": verdict.stage,
    }


def load_golden(data: bytes, preprocess: Preprocess | None = None) -> Golden:
    """Read the golden file and check that its tensors fit together.

    Args:
        preprocess: the bundle's, whose size the images must have; None takes any.

    Raises:
        BundleError: not a safetensors file, or a tensor is missing or has another shape.
    """
    tensors = read_safetensors(data, GOLDEN)
    size = (None, None) if preprocess is None else (preprocess.height, preprocess.width)
    images = _tensor(tensors, "images", np.uint8, (None, *size, 3))
    count = len(images)
    golden = Golden(images, {}, {}, {})
    for name in sorted(tensors):
        target, _, kind = name.rpartition("/")
        if kind != "logits":
            continue
        logits = _tensor(tensors, name, np.float32, (None, count, 2))
        if len(logits) > MAX_STAGES:  # of no images, a small file may claim any number
            found = f"{name!r} has {len(logits)} stages"
            raise BundleError(f"{GOLDEN}: {found}, more than {MAX_STAGES}")
        gate = _tensor(tensors, f"{target}/gate", np.float32, (len(logits), count))
        golden.exits[target] = [ExitOutputs(*pair) for pair in zip(logits, gate, strict=True)]
        golden.label[target] = _tensor(tensors, f"{target}/label", np.int8, (count,))
        golden.stage[target] = _tensor(tensors, f"{target}/stage", np.int8, (count,))
    return golden


def self_test(stages: Stages, decision: Decision, golden: Golden, target: str) -> None:
    """Run the golden images on this machine and compare.

    Outputs may differ by the tolerance of the target's precision. Decisions must be equal, but
    where a recorded score or margin lies within that tolerance of its threshold.

    Raises:
        BundleError: the vectors are not about this target or this decision.
        TargetError: this machine does not answer as the certified one did.
    """
    recorded = check_recorded(decision, golden, target)
    precision = target.split("/")[1]
    if precision not in TOLERANCES:
        raise TargetError(f"{target!r}: this version does not know how far {precision} may differ")
    tolerance = TOLERANCES[precision]
    for index, (now, then) in enumerate(
        zip(stages.forward_all(golden.images), recorded, strict=True)
    ):
        for kind in ("logits", "gate"):
            _check_close(getattr(now, kind), getattr(then, kind), tolerance, target, index, kind)
    verdict = stages.forward(golden.images, decision)
    differs = (verdict.label != golden.label[target]) | (verdict.stage != golden.stage[target])
    wrong = np.flatnonzero(differs & ~_near_a_threshold(recorded, decision, tolerance))
    if len(wrong):
        image = int(wrong[0])
        raise TargetError(
            f"{GOLDEN}: image {image} of {target!r} gives label {verdict.label[image]} at stage "
            f"{verdict.stage[image]}, recorded is {golden.label[target][image]} at "
            f"{golden.stage[target][image]}; this machine does not run the certified cascade"
        )


def check_recorded(decision: Decision, golden: Golden, target: str) -> list[ExitOutputs]:
    """The outputs recorded of `target`, which must decide as recorded, to the bit.

    That needs no engine, so it holds for targets of other machines as well.

    Raises:
        BundleError: they do not, or there are none.
    """
    if target not in golden.exits:
        raise BundleError(f"{GOLDEN}: holds no vectors of {target!r}; {_AGAIN}")
    recorded = golden.exits[target]
    if len(recorded) != len(decision.exits):
        raise BundleError(
            f"{GOLDEN}: {target!r} has {len(recorded)} stages, the decision "
            f"{len(decision.exits)}; {_AGAIN}"
        )
    verdict = decide(recorded, decision)
    same = (verdict.label == golden.label[target]) & (verdict.stage == golden.stage[target])
    if not same.all():
        image = int(np.flatnonzero(~same)[0])
        raise BundleError(
            f"{GOLDEN}: the outputs recorded for image {image} of {target!r} do not decide as "
            f"recorded; {_AGAIN}"
        )
    return recorded


def _check_close(
    now: npt.NDArray[np.float32],
    then: npt.NDArray[np.float32],
    tolerance: float,
    target: str,
    stage: int,
    kind: str,
) -> None:
    if np.allclose(now, then, rtol=0.0, atol=tolerance, equal_nan=True):
        return
    difference = float(np.max(np.abs(now - then)))
    raise TargetError(
        f"{GOLDEN}: {kind} of stage {stage} of {target!r} differ by {difference:.3g} from the "
        f"recorded ones (tolerance {tolerance:g}); this machine does not run the certified cascade"
    )


def _near_a_threshold(
    exits: list[ExitOutputs], decision: Decision, tolerance: float
) -> npt.NDArray[np.bool_]:
    """bool [G]: where a difference within the tolerance may flip a comparison of some exit."""
    near = np.zeros(len(exits[0].gate), dtype=np.bool_)
    for outputs, rule in zip(exits, decision.exits, strict=True):
        m = class_margin(outputs, rule)
        margin_slack = abs(2.0 * tolerance / rule.temperature)  # two logits, each off by it
        gate_slack = abs(rule.platt_a) * tolerance
        slack = gate_slack if rule.score == "gate" else margin_slack
        taus, bars = [rule.tau_logit], [decision.set_logit]
        if decision.accept is not None:
            taus.append(decision.accept.tau_logit)
            bars.append(decision.accept.set_logit_at)
        for tau in taus:
            if tau is not None:
                near |= np.abs(score_logit(outputs, rule) - tau) <= slack
        for bar in bars:
            near |= np.abs(np.abs(m) - abs(bar)) <= margin_slack
    return near


def read_safetensors(data: bytes, name: str) -> Tensors:
    """Every tensor of a safetensors file as read-only arrays; `name` is for messages.

    Raises:
        BundleError: the header, a dtype (F32, U8, I8 are known), a shape or an offset is wrong,
            or bytes are left over between or after the tensors.
    """
    header, body = _header(data, name)
    spans = []
    tensors: Tensors = {}
    for key, entry in header.items():
        if key == "__metadata__":
            continue
        dtype, shape, begin, end = _entry(entry, key, name)
        if not 0 <= begin <= end <= len(body):
            raise BundleError(f"{name}: tensor {key!r} lies outside the file; it is damaged")
        if end - begin != math.prod(shape) * dtype.itemsize:
            raise BundleError(f"{name}: tensor {key!r} has {end - begin} bytes for shape {shape}")
        spans.append((begin, end))
        if math.prod(filter(None, shape)) * dtype.itemsize > _MAX_SIZE or len(shape) > _MAX_AXES:
            raise BundleError(f"{name}: tensor {key!r} has a shape beyond what an array can have")
        tensors[key] = np.frombuffer(body[begin:end], dtype=dtype).reshape(shape)
    position = 0
    for begin, end in sorted(spans):
        if begin != position:
            raise BundleError(f"{name}: tensors overlap or leave a hole at byte {position}")
        position = end
    if position != len(body):
        raise BundleError(f"{name}: {len(body) - position} bytes after the last tensor")
    return tensors


def _header(data: bytes, name: str) -> tuple[dict[str, Any], memoryview]:
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(_MAX_HEADER, len(data) - 8):
        raise BundleError(f"{name}: header length {length} does not fit {len(data)} bytes")
    if data[8:9] != b"{":
        raise BundleError(f"{name}: the header is not a JSON object")
    header = strict_json.parse(data[8 : 8 + length], f"{name}: the header")
    return header, memoryview(data)[8 + length :]


def _entry(entry: Any, key: str, name: str) -> tuple[np.dtype[Any], tuple[int, ...], int, int]:
    try:
        dtype: np.dtype[Any] = _DTYPES[entry["dtype"]]
        shape = tuple(_list(entry["shape"]))
        begin, end = _list(entry["data_offsets"])
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(
            f"{name}: tensor {key!r} needs dtype (one of {', '.join(_DTYPES)}), shape and "
            f"data_offsets, has {entry!r}"
        ) from error
    numbers = (*shape, begin, end)
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise BundleError(f"{name}: tensor {key!r} has a size or an offset that is no count")
    return dtype, shape, begin, end


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is no array")
    return value


def _tensor(
    tensors: Tensors, key: str, dtype: type[np.generic], shape: tuple[int | None, ...]
) -> npt.NDArray[Any]:
    value = tensors.get(key)
    if value is None:
        raise BundleError(f"{GOLDEN}: tensor {key!r} is missing; {_AGAIN}")
    fits = value.ndim == len(shape) and all(
        want in (None, have) for want, have in zip(shape, value.shape, strict=True)
    )
    if not fits or value.dtype != dtype:
        raise BundleError(
            f"{GOLDEN}: tensor {key!r} is {value.dtype} {value.shape}, expected "
            f"{np.dtype(dtype)} {shape}; {_AGAIN}"
        )
    return value
