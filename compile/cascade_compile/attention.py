"""Attention in ONNX: two products, a softmax, and keys transposed by one Transpose.

In: a call of torch's `scaled_dot_product_attention`, while a stage is exported. Out: its nodes. The
exporter's own flatten heads, transpose and unflatten, with the shapes for that computed from the
tensor itself, and scale queries and keys; engines that look for attention to fuse do not find it
behind that (docs/decisions/0016-smaller-graph.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """What `torch.onnx.export` takes as `custom_translation_table`."""
    return {torch.ops.aten.scaled_dot_product_attention.default: _attention}


def _attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """softmax(scale * query key' + mask) value of [B, H, N, D/H] each, as `Stage` calls it.

    Raises:
        NotImplementedError: dropout, a causal mask, fewer heads of keys, or no stated scale.
    """
    from onnxscript import opset20 as op

    if dropout_p or is_causal or enable_gqa or scale is None:
        raise NotImplementedError("attention of another kind than a stage's")
    scaled = query if scale == 1 else op.Mul(query, op.CastLike(scale, query))
    scores = op.MatMul(scaled, op.Transpose(key, perm=[0, 1, 3, 2]))
    if attn_mask is not None:
        scores = op.Add(scores, attn_mask)
    return op.MatMul(op.Softmax(scores, axis=-1), value)
