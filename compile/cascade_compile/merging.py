"""Token merging (ToMe, arXiv 2210.09461): patches that look alike go on as one, without training.

In: a merged float32 network and how many patches to merge behind the attention of each block. Out:
the same network with blocks that do it, so that whatever runs, exports or compares the network runs
the merging one. In each block every other patch is offered to its nearest among the rest, by the
angle between keys averaged over heads, and the nearest pairs become their average, weighted by how
many patches each side stands for. Attention counts a token as often as it has patches (log size is
added to its scores), and exits average patches likewise. The class token and registers are never
merged.

Everything is dense and of a fixed shape: which token goes where is a matrix of zeros and ones, and
tokens are multiplied by it. Ties go to the first, so that equal numbers merge equally everywhere.
A merged token stands at the average place of its patches, and is turned by that (RoPE). Sizes and
places cross an exit as three more numbers a token, behind its D. What it costs and saves, and why
RoPE is spelled out here: docs/decisions/0019-token-merging.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.dinov3_vit.modeling_dinov3_vit import get_patches_center_coordinates

from cascade_runtime.errors import ConfigError
from cascade_train.exits import CascadeModel, ExitHeads, Network
from cascade_train.explora.masking import patch_side

STATE = 3  # a token's size, y and x


class State(NamedTuple):
    """Between blocks: tokens [B, N, D], how many patches each stands for, [B, N, 1], and where.

    places: y and x in -1 to 1, [B, N, 2]. Class token and registers count as one patch at 0, 0,
    which RoPE leaves as it is. Where nothing is merged yet, B is 1 in all but the tokens.
    """

    tokens: Tensor
    sizes: Tensor
    places: Tensor

    def pack(self) -> Tensor:
        """One tensor [B, N, D + 3], as it crosses an exit."""
        return torch.cat(self, dim=2)


def unpack(packed: Tensor) -> State:
    """What `State.pack` packed."""
    tokens, sizes, places = packed.split([packed.shape[2] - STATE, 1, STATE - 1], dim=2)
    return State(tokens, sizes, places)


class MergingBlock(nn.Module):
    """A DINOv3 block that merges `merge` patches between its attention and its MLP.

    Its parts keep their names. forward: tokens [B, N, D] of an image of which nothing was merged,
    packed tokens of an exit, or a State, to a State or, before an exit, packed tokens. Where they
    stand is in the State.
    """

    places: Tensor
    frequencies: Tensor

    def __init__(self, block: Any, merge: int, backbone: Any, image_size: int, exits: bool) -> None:
        super().__init__()
        config = backbone.config
        self.merge, self.exits, self.heads = merge, exits, config.num_attention_heads
        self.width, self.prefix = config.hidden_size, 1 + config.num_register_tokens
        for name in ("norm1", "attention", "layer_scale1", "norm2", "mlp", "layer_scale2"):
            self.add_module(name, getattr(block, name))
        side = image_size // patch_side(config)
        places = get_patches_center_coordinates(side, side, torch.float32, torch.device("cpu"))
        self.register_buffer("places", F.pad(places, (0, 0, self.prefix, 0))[None].clone())
        self.register_buffer("frequencies", 2 * math.pi * backbone.rope_embeddings.inv_freq.clone())

    def forward(
        self, tokens: Tensor | State, position_embeddings: tuple[Tensor, Tensor] | None = None
    ) -> Tensor | State:
        if isinstance(tokens, State):
            state = tokens
        elif tokens.shape[2] == self.width:
            state = State(tokens, torch.ones_like(self.places[:, :, :1]), self.places)
        else:
            state = unpack(tokens)
        attended, keys = self.attend(self.norm1(state.tokens), state)
        state = state._replace(tokens=state.tokens + self.layer_scale1(attended))
        state = merge(state, keys, self.merge)
        update = self.layer_scale2(self.mlp(self.norm2(state.tokens)))
        state = state._replace(tokens=state.tokens + update)
        return state.pack() if self.exits else state

    def attend(self, x: Tensor, state: State) -> tuple[Tensor, Tensor]:
        """Attention's output [B, N, D], and each patch's key, averaged over heads, [B, P, D/H]."""
        project = self.attention
        q, k, v = (
            layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for layer in (project.q_proj, project.k_proj, project.v_proj)
        )
        angles = (state.places[:, :, :, None] * self.frequencies).flatten(2)[:, None]
        cos, sin = angles.cos(), angles.sin()
        cos, sin = torch.cat([cos, cos], dim=3), torch.cat([-sin, sin], dim=3)
        merged = state.sizes.shape[1] < self.places.shape[1]
        mask = state.sizes[:, None, None, :, 0].log() if merged else None
        q, k_turned = turn(q, cos, sin), turn(k, cos, sin)
        attended = F.scaled_dot_product_attention(q, k_turned, v, mask, scale=project.scaling)
        return project.o_proj(attended.transpose(1, 2).flatten(2)), k[:, :, self.prefix :].mean(1)


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE: tokens [B, H, N, D/H] turned by the angles of their places."""
    first, second = x.chunk(2, dim=3)
    return x * cos + torch.cat([second, first], dim=3) * sin


def merge(state: State, keys: Tensor, count: int) -> State:
    """The state with `count` patches fewer; keys [B, P, K] say which are alike."""
    tokens, sizes, places = state
    rows = targets(keys, count, tokens.shape[1] - keys.shape[1])
    left = torch.arange(tokens.shape[1] - count, device=rows.device)
    shares = (rows[:, None] == left[:, None]) * sizes.transpose(1, 2)
    sizes = shares.sum(2, keepdim=True)
    shares = shares / sizes
    return State(shares @ tokens, sizes, shares @ places)


def targets(keys: Tensor, count: int, prefix: int) -> Tensor:
    """Where each of N tokens goes among the N - count that are left, [B, N].

    In the order: the prefix; the offered that stay, which are the least alike; the rest.
    """
    keys = F.normalize(keys, dim=2)
    likeness = keys[:, ::2] @ keys[:, 1::2].transpose(1, 2)
    best, nearest = likeness.amax(2), likeness.argmax(2)
    offered, rest = likeness.shape[1:]
    first = torch.ones(offered, offered, device=keys.device).tril(-1).bool()
    mine, others = best[:, :, None], best[:, None]
    rank = ((others > mine) | ((others == mine) & first)).sum(2)
    stay = prefix + offered - count
    moved = torch.where(rank < count, stay + nearest, prefix - count + rank)
    fixed = torch.arange(stay, stay + offered, device=keys.device).expand_as(moved)
    rows = torch.stack([moved, fixed], dim=2).flatten(1)[:, : offered + rest]
    staying = torch.arange(prefix, device=keys.device).expand(rows.shape[0], -1)  # no len(): traced
    return torch.cat([staying, rows], dim=1)


class MergedHeads(ExitHeads):
    """An exit's heads on packed tokens: patches are averaged by what they stand for."""

    def __init__(self, heads: ExitHeads) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(heads.__dict__)

    def features(self, tokens: Tensor) -> Tensor:
        """Class token and mean patch, [B, 2 D], of packed tokens [B, N, D + 3]."""
        tokens, sizes, _ = unpack(tokens)
        tokens, sizes = self.norm(tokens), sizes[:, self.prefix_tokens :]
        mean = (tokens[:, self.prefix_tokens :] * sizes).sum(1) / sizes.sum(1)
        return torch.cat([tokens[:, 0], mean], dim=1)


def merge_tokens(model: Network, count: int, image_size: int) -> None:
    """Make every block of the network merge `count` patches; 0 leaves it as it is.

    Raises:
        ConfigError: a block has fewer patches to offer.
    """
    if not count:
        return
    for part in model.parts:
        _merge_part(part, count, image_size)


def _merge_part(model: CascadeModel, count: int, image_size: int) -> None:
    backbone, blocks = model.backbone, model.exit_blocks[-1]
    patches = (image_size // patch_side(backbone.config)) ** 2
    most = patches // (blocks + 1)  # so that the last block, too, can offer as many
    if count > most:
        raise ConfigError(
            f"--merge-tokens {count}: with {patches} patches and {blocks} blocks it is at most "
            f"{most} a block"
        )
    layers = backbone.model.layer
    for index in range(blocks):
        exits = index + 1 in model.exit_blocks
        layers[index] = MergingBlock(layers[index], count, backbone, image_size, exits)
    heads = model.exits.heads
    for index, head in enumerate(heads):
        heads[index] = MergedHeads(head)


def merges(model: Network) -> bool:
    """Whether any of its blocks does."""
    return any(isinstance(part, MergingBlock) for part in model.modules())


@contextmanager
def unmerged(model: Network) -> Iterator[None]:
    """Meanwhile its blocks merge nothing, and it answers as it did before `merge_tokens`."""
    blocks = [part for part in model.modules() if isinstance(part, MergingBlock)]
    counts = [block.merge for block in blocks]
    try:
        for block in blocks:
            block.merge = 0
        yield
    finally:
        for block, count in zip(blocks, counts, strict=True):
            block.merge = count
