"""What TensorRT's report says is counted, and float32 in disguise is refused."""

from __future__ import annotations

import json

import pytest

from cascade_compile import inspector
from cascade_runtime.errors import TargetError


def layer(name: str, kind: str, *outputs: str, key: str = "Format/Datatype") -> dict[str, object]:
    return {
        "Name": name,
        "LayerType": kind,
        "Outputs": [{"Name": f"out{i}", key: text} for i, text in enumerate(outputs)],
    }


def report(*layers: dict[str, object]) -> str:
    return json.dumps({"Layers": list(layers), "Bindings": ["pixels", "logits"]})


HALF = layer("__myl_FcAdd_myl0_3", "gemm", "Row major linear FP16 format")
SINGLE = layer("__myl_Fc_myl0_9", "gemm", "Row major linear FP32")
FUSED = layer("_gemm_mha_v2_myl0_5", "kgen", "Half", key="Datatype")
SHAPE = layer("shape_call", "shape_call", "Int64")


def test_shares_are_those_of_the_floating_layers() -> None:
    found = inspector.figures(report(HALF, HALF, FUSED, SINGLE, SHAPE), attentions=2)
    assert found == {"layers": 4.0, "half_layers": 0.75, "fused_attention": 0.5}


def test_more_kernels_than_attentions_are_no_more_than_all() -> None:
    assert inspector.figures(report(FUSED, FUSED, FUSED), 2)["fused_attention"] == 1.0
    assert inspector.figures(report(HALF), 0)["fused_attention"] == 0.0


def test_float32_in_disguise_is_refused() -> None:
    disguised = inspector.figures(report(SINGLE, SINGLE, SINGLE, HALF), attentions=2)
    with pytest.raises(TargetError, match=r"stage 1: 25 % of the engine's 4 .* asks for 100 %"):
        inspector.check(disguised, 1.0, "stage 1")
    inspector.check(disguised, 0.4, "a file with islands as wide as that")
    inspector.check(inspector.figures(report(HALF, SINGLE), 1), 1.0, "half of the layers")


@pytest.mark.parametrize("text", ["", "[]", '{"Layers": []}', '{"Layers": ["a name only"]}'])
def test_report_without_details_is_an_error(text: str) -> None:
    with pytest.raises(TargetError, match="inspector"):
        inspector.figures(text, 1)
