"""What TensorRT made of a stage: how much of it is half precision, and how much attention is fused.

In: the engine inspector's JSON, at detailed verbosity. Out: shares, which the manifest records. An
engine that computes in float32 answers rightly and five times too slowly, so that it is found here
and nowhere else.
"""

from __future__ import annotations

import json
import re
from typing import Any

from cascade_runtime.errors import TargetError

# As the versions since 10.0 write a tensor's type: "Row major linear FP16 format", "Half".
_HALF = re.compile(r"\b(fp16|half|float16|bf16|bfloat16)\b", re.IGNORECASE)
_SINGLE = re.compile(r"\b(fp32|float|float32|tf32)\b", re.IGNORECASE)
_FUSED = re.compile(r"mha|flash_?att|fused_?att|attention_?v\d", re.IGNORECASE)
_DISGUISE = 0.5  # of the share that the file asks for; fusions change what a layer is


def figures(report: str, attentions: int) -> dict[str, float]:
    """The shares of an engine's layers.

    Args:
        report: of `nvinfer_builder.Plan.layers`.
        attentions: how many attentions the stage has.

    Returns:
        `layers` with floating-point outputs, `half_layers` their share in half precision,
        `fused_attention` the share of attentions that one kernel computes, at most 1.

    Raises:
        TargetError: not a report at detailed verbosity.
    """
    try:
        layers: list[Any] = json.loads(report)["Layers"]
    except (ValueError, KeyError, TypeError) as error:
        raise TargetError(f"the engine inspector's report cannot be read ({error})") from error
    if not layers or not all(isinstance(layer, dict) for layer in layers):
        raise TargetError("the engine inspector names layers without saying more of them")
    half, floating, fused = 0, 0, 0
    for layer in layers:
        kinds = " ".join(_types(layer.get("Outputs", ())))
        is_half = bool(_HALF.search(kinds))
        floating += is_half or bool(_SINGLE.search(kinds))
        half += is_half
        words = (str(layer.get(key, "")) for key in ("Name", "LayerType", "TacticName"))
        fused += bool(_FUSED.search(" ".join(words)))
    return {
        "layers": float(floating),
        "half_layers": round(half / max(floating, 1), 4),
        "fused_attention": round(min(1.0, fused / max(attentions, 1)), 4),
    }


def check(found: dict[str, float], half_asked: float, what: str) -> None:
    """An engine that is not the precision that its file asks for is refused.

    Args:
        half_asked: share of the file's products in half precision.

    Raises:
        TargetError: float32 in disguise.
    """
    if found["half_layers"] < _DISGUISE * half_asked:
        raise TargetError(
            f"{what}: {100 * found['half_layers']:.0f} % of the engine's {found['layers']:.0f} "
            f"layers are half precision where the file asks for {100 * half_asked:.0f} % of its "
            "products; this is a float32 engine under another name, see docs/targets.md"
        )


def _types(tensors: Any) -> list[str]:
    """What the report says about the types of some tensors, whatever the key is called."""
    return [
        str(value)
        for tensor in tensors
        if isinstance(tensor, dict)
        for key, value in tensor.items()
        if "type" in key.lower() or "format" in key.lower()
    ]
