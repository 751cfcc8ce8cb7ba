"""Whole tensors out of shards and back, where a network is spread over processes (FSDP2).

In and out: tensors. Where nothing is sharded, both are plain reading and copying.
"""

from __future__ import annotations

from torch import Tensor


def full(tensor: Tensor, *, keep: bool = True) -> Tensor:
    """The whole tensor, where this process holds a shard of it; every process has to ask.

    It is put into host memory: with `keep` alone, as a process that does not write needs none.
    """
    if not hasattr(tensor, "full_tensor"):
        return tensor
    whole: Tensor = tensor.full_tensor()
    return whole.cpu() if keep else whole.new_empty(0)


def like(value: Tensor, tensor: Tensor) -> Tensor:
    """A whole value, cut as `tensor` is."""
    if not hasattr(tensor, "full_tensor"):
        return value
    from torch.distributed.tensor import distribute_tensor

    placed = value.to(tensor.device)
    return distribute_tensor(placed, tensor.device_mesh, tensor.placements)  # type: ignore[attr-defined]
