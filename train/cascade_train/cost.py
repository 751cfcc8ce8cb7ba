"""What a ViT costs, in multiply-adds an image, counted from its dimensions.

In: tokens, widths, sides. Out: multiply-adds. Layers with weights and products inside attention are
counted; normalisation, activations and heads, which are small beside them, are not.
"""

from __future__ import annotations


def block(tokens: int, width: int, feed_forward: int, gated: bool) -> tuple[int, int]:
    """One block: its layers with weights, and its attention (queries by keys, those by values)."""
    projections = 3 if gated else 2
    layers = tokens * width * (4 * width + projections * feed_forward)
    return layers, attention(tokens, width)


def attention(tokens: int, width: int) -> int:
    """The two products of one block's attention, over all its heads."""
    return 2 * tokens * tokens * width


def merging(before: int, after: int, width: int, feed_forward: int, gated: bool) -> int:
    """What a block costs more that merges its tokens before its MLP; less than 0 where it saves."""
    projections = 3 if gated else 2
    return after * before * width - (before - after) * width * projections * feed_forward


def embedding(image_size: int, patch: int, width: int) -> int:
    """From pixels to the tokens of the patches."""
    return (image_size // patch) ** 2 * patch**2 * 3 * width
