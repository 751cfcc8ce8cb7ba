"""Names that people can read for the nodes of an exported stage.

In: an ONNX graph, whose nodes are called `node_MatMul_17` by the exporter and differently by its
next version. Out: for every node a name made of the layer it belongs to and its operation,
`blocks.3.mlp.down_proj/MatMul`. Layers are known by the weights that kept their names; what has
none of its own belongs to the part around it, `blocks.3.attention/Softmax`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

PROJECTIONS = ("q_proj", "k_proj", "v_proj")  # of which k has no bias to be known by


def layer_names(graph: Any) -> dict[str, str]:
    """Node name to readable name, both unique.

    Args:
        graph: an `onnx.GraphProto` in topological order, every node named.
    """
    weights = {weight.name for weight in graph.initializer}
    layers = _layers(graph, weights)
    part, used, names = "input", Counter[str](), {}
    for node in graph.node:
        layer = layers.get(node.name)
        if layer is not None:
            part = layer.rpartition(".")[0] or layer
        name = f"{layer or part}/{node.op_type}"
        used[name] += 1
        names[node.name] = name if used[name] == 1 else f"{name}#{used[name]}"
    return names


def _layers(graph: Any, weights: set[str]) -> dict[str, str]:
    """The nodes that use a named weight, and matrix products whose bias is added next."""
    layers = {}
    for node in graph.node:
        own = next((name for name in node.input if name in weights and "." in name), None)
        if own is not None:
            layers[node.name] = own.rpartition(".")[0]
    readers = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
    products = [
        node
        for node in graph.node
        if node.op_type == "MatMul" and node.name not in layers and set(node.input) & weights
    ]
    for node in products:
        following = readers[node.output[0]]
        if len(following) == 1 and following[0].op_type == "Add":
            layer = layers.get(following[0].name)
            if layer is not None:
                layers[node.name] = layer
    _name_keys(products, layers)
    return layers


def _name_keys(products: Iterable[Any], layers: dict[str, str]) -> None:
    """Of three products of the same input, q, k and v in this order, the one without a bias."""
    groups = defaultdict(list)
    for node in products:
        groups[node.input[0]].append(node)
    for group in groups.values():
        known = [layers[node.name] for node in group if node.name in layers]
        if len(group) == len(PROJECTIONS) and known and known[0].endswith(PROJECTIONS):
            parent = known[0].rpartition(".")[0]
            for node, name in zip(group, PROJECTIONS, strict=True):
                layers.setdefault(node.name, f"{parent}.{name}")
