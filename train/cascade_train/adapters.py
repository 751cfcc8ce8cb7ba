"""Low-rank adapters through PEFT: put on, save, load, merge.

In: a `CascadeModel`. Out: a PEFT model in which the backbone's linear layers carry LoRA (Hu et al.,
arXiv 2106.09685) and the exits' heads train in full (`modules_to_save`, so an adapter-only
checkpoint includes them). Merging is done in float32 and cast once, by whoever needs another type.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file
from torch import nn

from cascade_runtime.errors import ConfigError
from cascade_train.exits import CascadeModel

TARGETS = {
    "qv": r"backbone\.model\.layer\.\d+\.attention\.[qv]_proj",
    "attention": r"backbone\.model\.layer\.\d+\.attention\.[qkvo]_proj",
    "all": r"backbone\.model\.layer\.\d+\.(attention\.[qkvo]_proj|mlp\.(up|down|gate)_proj)",
}


@dataclass(frozen=True)
class AdapterConfig:
    """LoRA of rank `rank`; the update is scaled by alpha / rank, alpha = 2 rank unless given."""

    kind: str = "lora"
    rank: int = 16
    alpha: int | None = None
    dropout: float = 0.0
    targets: str = "all"

    def __post_init__(self) -> None:
        if self.kind != "lora":
            raise ConfigError(f"adapter {self.kind!r} is unknown; choose lora")
        if self.targets not in TARGETS:
            raise ConfigError(
                f"adapter targets {self.targets!r} are unknown; choose one of {', '.join(TARGETS)}"
            )
        if self.rank < 1:
            raise ConfigError(f"adapter rank is {self.rank}, it must be at least 1")


def add_adapter(model: CascadeModel, config: AdapterConfig) -> PeftModel:
    """Wrap the model: base frozen, adapters and the exits' heads trainable."""
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha or 2 * config.rank,
        lora_dropout=config.dropout,
        target_modules=TARGETS[config.targets],
        modules_to_save=["exits"],
    )
    return get_peft_model(model, lora)


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Write adapter_config.json and adapter_model.safetensors: adapters and heads, no base."""
    model.save_pretrained(folder, safe_serialization=True)


def load_adapter(base: CascadeModel, folder: Path) -> PeftModel:
    """Put a saved adapter on its base.

    Raises:
        ConfigError: the file's keys and shapes are not exactly the adapter's (PEFT skips a key
            that does not fit with a warning, and the base would answer in the adapter's name).
    """
    try:
        config = PeftConfig.from_pretrained(str(folder))
        saved = load_file(folder / "adapter_model.safetensors")
        model = get_peft_model(base, config)
    except Exception as error:  # PEFT, safetensors and the hub client each raise their own kinds
        reason = " ".join(str(error).split())
        raise ConfigError(f"adapter {folder} cannot be loaded: {reason}") from error
    wanted = get_peft_model_state_dict(model)
    other = {key for key in wanted.keys() & saved.keys() if wanted[key].shape != saved[key].shape}
    for kind, keys in (
        ("lacks", wanted.keys() - saved.keys()),
        ("has unknown", saved.keys() - wanted.keys()),
        ("has other shapes for", other),
    ):
        if keys:
            raise ConfigError(
                f"adapter {folder} {kind} {len(keys)} keys, first {min(keys)!r}; it was made for "
                "another network or by another version"
            )
    set_peft_model_state_dict(model, saved)
    return model


def merge(model: nn.Module) -> CascadeModel:
    """Fold the adapters into the base weights, in float32, and return the plain network.

    A bfloat16 merge would round the sum of two numbers of different size; see the parity test.
    """
    if isinstance(model, PeftModel):
        try:
            model = model.float().merge_and_unload(safe_merge=True)
        except ValueError as error:  # what a safe merge says of NaN
            raise ConfigError(f"the adapter cannot be merged: {error}; train it again") from error
    if not isinstance(model, CascadeModel):
        raise TypeError(f"expected a CascadeModel, got {type(model).__name__}")
    return model


def trainable_share(model: nn.Module) -> tuple[int, int]:
    """(trainable, all) parameter counts; all counts the network, not the frozen originals twice."""
    total = sum(p.numel() for name, p in model.named_parameters() if "original_module" not in name)
    return sum(p.numel() for p in model.parameters() if p.requires_grad), total
