"""A stage in half precision, with float32 only where the numbers of real images demand it.

In: the float32 ONNX model of a stage and its measured `Ranges`. Out: the same stage strongly typed,
nodes and weights in float16 with a Cast wherever a tensor changes its type, and the list of nodes
left in float32, the islands. Pixels or tokens go in, and logits, gate and tokens come out, as
before: what an engine does inside is its own affair. docs/decisions/0009-fp16-islands.md says why
these limits.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cascade_compile.layer_names import layer_names
from cascade_compile.ranges import Ranges, float_tensors, inferred

FLOAT16_MAX = 65504.0
MARGIN = 8.0  # for images that nobody measured
ACTIVATION_LIMIT = FLOAT16_MAX / MARGIN
ROUNDING_LIMIT = 2e-3  # of a weight tensor's norm; normal numbers lose 2.9e-4, subnormal ones more
PRODUCTS = ("MatMul", "Gemm", "Conv")


@dataclass(frozen=True)
class Half:
    """A typed model; `islands` maps the readable name of each float32 node to the reason."""

    model: Any
    islands: dict[str, str]
    figures: dict[str, float]


def demanded(model: Any, ranges: Ranges) -> dict[str, str]:
    """The nodes that float16 cannot hold, by node name, each with its reason."""
    floats = float_tensors(model)
    losses = {w.name: _weight_loss(w) for w in model.graph.initializer if w.name in floats}
    reasons = {}
    for node in model.graph.node:
        names = [name for name in (*node.input, *node.output) if name in floats]
        if node.op_type == "Shape" or not names:
            continue
        largest = max((ranges.values.get(name, 0.0) for name in names), default=0.0)
        terms = ranges.sums.get(node.name, 0.0)
        bad = [losses[name] for name in node.input if losses.get(name)]
        if largest > ACTIVATION_LIMIT:
            reasons[node.name] = f"values up to {largest:.3g}"
        elif terms > ACTIVATION_LIMIT:
            reasons[node.name] = f"sums up to {terms:.3g}"
        elif bad:
            reasons[node.name] = str(bad[0])
    return reasons


def by_kind(model: Any, kinds: tuple[str, ...], why: str) -> dict[str, str]:
    """All nodes of some kinds as islands, for precisions that are wider by definition."""
    return {node.name: why for node in model.graph.node if node.op_type in kinds}


def to_half(model: Any, islands: dict[str, str]) -> Half:
    """The model in float16 but for the nodes of `islands` (by node name).

    The model given is not changed.
    """
    readable = layer_names(model.graph)
    typed = _Typing(model, set(islands)).run()
    named = {readable[name]: reason for name, reason in islands.items()}
    return Half(typed, named, shares(typed))


def shares(model: Any) -> dict[str, float]:
    """Which part of a typed model computes in float16: of all floating nodes, and of products."""
    from onnx import TensorProto

    types = _types(model)
    half, products, count, all_products = 0, 0, 0, 0
    for node in model.graph.node:
        kinds = {types.get(name) for name in (*node.input, *node.output)}
        floating = kinds & {TensorProto.FLOAT, TensorProto.FLOAT16}
        if not floating or node.op_type in ("Cast", "Shape"):
            continue
        is_half = floating == {TensorProto.FLOAT16}
        count, half = count + 1, half + is_half
        if node.op_type in PRODUCTS:
            all_products, products = all_products + 1, products + is_half
    return {
        "half_nodes": round(half / max(count, 1), 4),
        "half_products": round(products / max(all_products, 1), 4),
    }


class _Typing:
    """Rewrites a graph node by node; tensors exist in one type, and in the other once asked for."""

    def __init__(self, model: Any, wide: set[str]) -> None:
        import onnx

        self.source, self.wide = model, wide
        self.single, self.half = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
        self.floats = float_tensors(model)
        self.weights = {weight.name for weight in model.graph.initializer}
        self.done: set[str] = set()  # nodes that are written already
        self.made: dict[str, int] = {}  # tensor to the type it is produced in
        self.names: dict[tuple[str, int], str] = {}  # tensor in a type to its name
        self.kept: dict[str, set[int]] = defaultdict(set)  # weight to the types it is used in
        self.pixels: dict[str, str] = {}  # uint8 input to its floating form
        self.nodes: list[Any] = []

    def run(self) -> Any:
        import onnx

        graph = self.source.graph
        self.outputs = {value.name for value in graph.output}
        for value in graph.input:
            self.made[value.name] = value.type.tensor_type.elem_type
        for node in graph.node:
            self._node(node)
        typed = onnx.ModelProto()
        typed.ir_version, typed.producer_name = self.source.ir_version, self.source.producer_name
        typed.opset_import.extend(self.source.opset_import)
        typed.graph.name = graph.name
        typed.graph.node.extend(self.nodes)
        typed.graph.input.extend(graph.input)
        typed.graph.output.extend(graph.output)
        for weight in graph.initializer:
            typed.graph.initializer.extend(self._typed_weights(weight))
        return typed

    def _node(self, node: Any) -> None:
        """One node with its inputs in the type that it computes in."""
        import onnx

        if node.name in self.done:
            return
        self.done.add(node.name)
        want = self.single if node.name in self.wide else self.half
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        inputs = [self._input(node, name, want) for name in node.input]
        del copy.input[:], copy.output[:]
        copy.input.extend(inputs)
        for attribute in copy.attribute:
            if node.op_type == "Cast" and attribute.i == self.single:
                attribute.i = want
            elif attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == 1:
                self._retype(attribute.t, want)
        casts = []
        for name in node.output:
            if name not in self.floats:
                copy.output.append(name)
                continue
            self.made[name] = want
            if name in self.outputs and want == self.half:  # leaves the stage in float32
                copy.output.append(f"{name}.half")
                self.names[name, self.half] = f"{name}.half"
                casts.append(self._cast(f"{name}.half", name, self.single))
                self.names[name, self.single] = name
            else:
                copy.output.append(name)
                self.names[name, want] = name
        self.nodes += [copy, *casts]
        if node.op_type == "Cast" and node.input[0] in self.made:
            self.pixels.setdefault(node.input[0], copy.output[0])

    def _input(self, node: Any, name: str, want: int) -> str:
        if node.op_type == "Shape":
            # A uint8 input may do nothing but be cast (TensorRT), so its shape is read behind that.
            return self._first_float(name)
        if name not in self.floats:
            return name
        if name in self.weights:
            self.kept[name].add(want)
            return self._weight_name(name, want)
        return self._in_type(name, want)

    def _in_type(self, name: str, want: int) -> str:
        made = self.made[name]
        self.names.setdefault((name, made), name)
        if (name, want) not in self.names:
            other = f"{name}.{'half' if want == self.half else 'single'}"
            self.nodes.append(self._cast(self.names[name, made], other, want))
            self.names[name, want] = other
        return self.names[name, want]

    def _first_float(self, name: str) -> str:
        if name in self.pixels:
            return self.pixels[name]
        if name in self.floats:
            return self.names.get((name, self.made.get(name, self.single)), name)
        readers = [n for n in self.source.graph.node if name in n.input and n.op_type == "Cast"]
        if name not in {value.name for value in self.source.graph.input} or not readers:
            return name
        self._node(readers[0])  # ahead of its place; its place finds the tensor made
        return self.pixels[name]

    def _weight_name(self, name: str, want: int) -> str:
        return name if want == self.single else f"{name}.half"

    def _typed_weights(self, weight: Any) -> list[Any]:
        """A weight in each type that somebody reads."""
        from onnx import numpy_helper

        if weight.name not in self.floats:
            return [weight]
        return [
            weight
            if kind == self.single
            else numpy_helper.from_array(
                _rounded(numpy_helper.to_array(weight)), self._weight_name(weight.name, kind)
            )
            for kind in sorted(self.kept[weight.name])
        ]

    def _retype(self, tensor: Any, want: int) -> None:
        from onnx import numpy_helper

        if want == self.half:
            tensor.CopyFrom(numpy_helper.from_array(_rounded(numpy_helper.to_array(tensor))))

    def _cast(self, source: str, target: str, to: int) -> Any:
        from onnx import helper

        return helper.make_node("Cast", [source], [target], name=f"cast/{target}/{to}", to=to)


def _rounded(value: npt.NDArray[np.floating]) -> npt.NDArray[np.float16]:
    with np.errstate(over="ignore"):  # what overflows is an island, or was asked for
        return value.astype(np.float16)


def _weight_loss(tensor: Any) -> str:
    """What float16 would do to a weight, in words; empty where it is harmless."""
    from onnx import numpy_helper

    weight = numpy_helper.to_array(tensor)
    largest = float(np.abs(weight).max(initial=0.0))
    if largest > FLOAT16_MAX:
        return f"weights up to {largest:.3g}"
    whole = weight.astype(np.float64)
    norm = float(np.linalg.norm(whole))
    lost = float(np.linalg.norm(_rounded(weight).astype(np.float64) - whole))
    if lost > ROUNDING_LIMIT * norm:
        return f"weights too small for float16, {100 * lost / norm:.2g} % of them lost"
    return ""


def _types(model: Any) -> dict[str, int]:
    graph = inferred(model)
    values = (*graph.input, *graph.output, *graph.value_info)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {weight.name: weight.data_type for weight in graph.initializer}
