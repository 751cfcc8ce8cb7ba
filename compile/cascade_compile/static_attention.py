"""Attention without shape arithmetic, so that an engine builder knows it for what it is.

In: an exported stage. Out: the same function, in which keys are transposed by one Transpose. The
exporter flattens heads, transposes, and unflattens, and computes the shapes for that on the way
from the tensor itself; a builder that looks for attention to fuse does not find it behind that.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from cascade_compile.ranges import inferred


def static_attention(model: Any) -> Any:
    """A model with one Transpose for each such triple, and without what only it needed.

    The model given is changed.
    """
    graph = model.graph
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in inferred(model).value_info
    }
    makers = {name: node for node in graph.node for name in node.output}
    for last in graph.node:
        triple = _triple(last, makers)
        if triple is None:
            continue
        first, middle = triple
        before, flat = shapes.get(first.input[0], []), shapes.get(first.output[0], [])
        after = shapes.get(last.output[0], [])
        if _is_transposed(before, flat, after):
            del last.input[:], last.attribute[:]
            last.op_type = "Transpose"
            last.input.append(first.input[0])
            last.attribute.extend(middle.attribute)
            [perm] = [item for item in last.attribute if item.name == "perm"]
            perm.ints[:] = [0, 1, 3, 2]
    _drop_unused(graph)
    return model


def _triple(last: Any, makers: dict[str, Any]) -> tuple[Any, Any] | None:
    """The Reshape and the Transpose of its last two axes in front of a Reshape."""
    if last.op_type != "Reshape":
        return None
    middle = makers.get(last.input[0])
    if middle is None or middle.op_type != "Transpose":
        return None
    first = makers.get(middle.input[0])
    if first is None or first.op_type != "Reshape":
        return None
    perm = [list(item.ints) for item in middle.attribute if item.name == "perm"]
    return (first, middle) if perm == [[0, 2, 1]] else None


def _is_transposed(before: list[int], flat: list[int], after: list[int]) -> bool:
    """[B, H, N, D] by way of [B*H, N, D] to [B, H, D, N]; a free batch has the size 0 here."""
    if (len(before), len(flat), len(after)) != (4, 3, 4):
        return False
    _, heads, tokens, width = before
    known = 0 not in (heads, tokens, width)
    return known and flat[1:] == [tokens, width] and after[1:] == [heads, width, tokens]


def _drop_unused(graph: Any) -> None:
    """Without nodes that nobody reads, and then without weights that nobody does."""
    outputs = {value.name for value in graph.output}
    while True:
        read = Counter(name for node in graph.node for name in node.input)
        dead = [n for n in graph.node if not any(read[o] or o in outputs for o in n.output)]
        if not dead:
            break
        for node in dead:
            graph.node.remove(node)
    for weight in [weight for weight in graph.initializer if not read[weight.name]]:
        graph.initializer.remove(weight)
