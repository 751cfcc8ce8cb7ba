"""Which of the backbone's weights move, and how the adapters end up inside it again.

In: a backbone. Out: the same one with adapters, the chosen blocks and norms trainable, the rest
frozen; later the plain backbone. ExPLoRA (arXiv 2406.10973, section 4): the set U of blocks is
unfrozen whole, every other block gets LoRA, and the norms train everywhere. Embeddings stay.
"""

from __future__ import annotations

import copy
import warnings
from typing import TypeVar

from peft import PeftModel
from torch import nn
from transformers import DINOv3ViTModel

from cascade_runtime.errors import ConfigError
from cascade_train.adapters import AdapterConfig, wrap
from cascade_train.explora.config import ExploraConfig

Network = TypeVar("Network", bound=nn.Module)


def adapt(backbone: DINOv3ViTModel, config: ExploraConfig) -> PeftModel:
    """Put adapters on and unfreeze, in place; the backbone stays usable under its own name.

    Raises:
        ConfigError: no block would be left for the adapters.
    """
    adapter = AdapterConfig(
        kind=config.kind,
        rank=config.rank,
        alpha=config.alpha,
        targets=config.targets,
        unfreeze=config.unfreeze,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of one library about another
        wrapped = wrap(backbone, adapter, layers="model.layer", blocks=len(backbone.model.layer))
    for name, module in backbone.named_modules():
        if config.norms and isinstance(module, nn.LayerNorm) and "original_module" not in name:
            module.requires_grad_(True)
    return wrapped


def inner(wrapped: PeftModel) -> DINOv3ViTModel:
    """The backbone inside, adapters in its layers."""
    backbone = wrapped.base_model.model
    assert isinstance(backbone, DINOv3ViTModel)
    return backbone


def shadow_of(model: Network) -> Network:
    """A copy with weights of its own where `model` trains, and the very same ones elsewhere."""
    frozen = {id(p): p for p in model.parameters() if not p.requires_grad}
    return copy.deepcopy(model, memo=frozen)


def merged(wrapped: PeftModel) -> DINOv3ViTModel:
    """The plain backbone in float32 and eval mode, adapters folded in; `wrapped` is used up.

    Raises:
        ConfigError: a weight is not a number.
    """
    try:
        backbone = wrapped.float().merge_and_unload(safe_merge=True)
    except ValueError as error:  # what a safe merge says of NaN
        raise ConfigError(f"the adapters cannot be merged: {error}; train again") from error
    return backbone.requires_grad_(True).eval()
