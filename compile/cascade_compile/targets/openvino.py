"""openvino: intermediate representation (xml and bin) from the ONNX file.

fp32 and bf16: weights stay float32 in the file; the precision is what the runtime asks the plugin
to compute in (`INFERENCE_PRECISION_HINT`), so that the two differ in one recorded property.
int8: every layer with weights that sees tokens in 8 bits, calibrated by NNCF on images of
val_select; the products inside attention, the heads and all else are left to bf16. How each choice
was measured, and what was worse: docs/decisions/0011-int8.md.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cascade_compile.targets import Built, StageSource
from cascade_runtime.errors import TargetError

if TYPE_CHECKING:
    from cascade_compile.sensitivity import Layer

TARGETS = (("fp32", "cpu"), ("bf16", "cpu"), ("int8", "cpu"))
_COUNTED = re.compile(r"[A-Za-z]+_[0-9]+")


def build(source: StageSource, folder: Path, precision: str, device: str) -> Built:
    """Convert and write `stageN.xml` and `stageN.bin`."""
    from cascade_runtime.engines.openvino import import_quietly

    openvino = import_quietly()
    model = openvino.convert_model(source.onnx_file)
    steady_names(model)  # the quantiser names its own nodes after these
    path = folder / f"stage{source.index}.xml"
    files = (path.name, path.with_suffix(".bin").name)
    if precision != "int8":
        openvino.save_model(model, path, compress_to_fp16=False)
        return Built(files)
    from cascade_compile.sensitivity import quantise

    def write(samples: npt.NDArray[np.generic], layers: Sequence[Layer]) -> tuple[str, ...]:
        quantised = _int8(model, samples, layers)
        steady_names(quantised)
        openvino.save_model(quantised, path, compress_to_fp16=False)
        return files

    return quantise(source, folder, "openvino", write)


def steady_names(model: Any) -> None:
    """Number the nodes that the library named itself by their place in the graph.

    Its own numbers count every node that the process has made so far, so that one stage built
    twice would not be the same bytes.
    """
    for index, node in enumerate(model.get_ordered_ops()):
        if _COUNTED.fullmatch(node.get_friendly_name()):
            node.set_friendly_name(f"{node.get_type_name()}_{index}")


def _int8(model: Any, samples: npt.NDArray[np.generic], layers: Sequence[Layer]) -> Any:
    """A copy of the model with these layers quantised."""
    with _quiet_nncf() as nncf:
        advanced = nncf.AdvancedQuantizationParameters(
            # The widest range seen, not the average one: what is cut off here is gone.
            activations_range_estimator_params=_min_to_max(),
            smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=0.5),
            disable_bias_correction=True,
            # Half of the weights' range is for processors that saturate; the engine refuses them.
            overflow_fix=nncf.OverflowFix.DISABLE,
        )
        return nncf.quantize(
            model.clone(),
            nncf.Dataset([sample[None] for sample in samples]),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(samples),
            ignored_scope=nncf.IgnoredScope(names=_float_products(model, layers)),
            advanced_parameters=advanced,
        )


def _min_to_max() -> Any:
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    return RangeEstimatorParametersSet.MINMAX


def _float_products(model: Any, layers: Sequence[Layer]) -> list[str]:
    """Names of all products but these layers: those inside attention, in the heads, left out.

    Attention that the library has fused is one: else its query and key are rounded to 8 bits on the
    way into products that are not.
    """
    nodes = {layer.node for layer in layers}
    products = [
        product.get_friendly_name()
        for product in model.get_ordered_ops()
        if product.get_type_name() in ("MatMul", "Convolution", "ScaledDotProductAttention")
    ]
    # A node with a bias becomes two: the product is the one whose name says "without".
    return [name for name in products if name.removesuffix("/WithoutBiases") not in nodes]


@contextlib.contextmanager
def _quiet_nncf() -> Iterator[Any]:
    """nncf without its telemetry, its log lines and its bars.

    Like openvino, it reports over the network wherever `openvino_telemetry` can be imported.
    """
    name = "openvino_telemetry"
    before = {name: sys.modules[name]} if name in sys.modules else {}
    with contextlib.redirect_stdout(io.StringIO()):
        sys.modules[name] = None  # type: ignore[assignment]
        try:
            import nncf
        except ImportError as error:
            raise TargetError(
                "int8 needs nncf, which is not installed; pip install 'cascade-edge[compile]'"
            ) from error
        finally:
            del sys.modules[name]
            sys.modules.update(before)
        nncf.set_log_level(40)  # logging.ERROR
        yield nncf
