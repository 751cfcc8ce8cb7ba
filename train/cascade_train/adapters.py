"""Low-rank adapters through PEFT: put on, save, load, merge.

In: a `CascadeModel`. Out: a PEFT model in which the backbone's linear layers carry LoRA (Hu et al.,
arXiv 2106.09685) and the exits' heads train in full (`modules_to_save`, so an adapter-only
checkpoint includes them). Merging is done in float32 and cast once, by whoever needs another type.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
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
        ConfigError: the file's keys are not exactly the adapter's (a key that does not fit would
            otherwise be skipped in silence, and the base would answer in the adapter's name).
    """
    try:
        model = PeftModel.from_pretrained(base, folder)
        with safe_open(folder / "adapter_model.safetensors", "pt") as file:
            saved = set(file.keys())
    except Exception as error:  # PEFT, safetensors and torch each raise their own kinds
        raise ConfigError(f"adapter {folder} cannot be loaded: {error}") from error
    wanted = {
        name.replace(".default", "")
        for name, _ in model.named_parameters()
        if "lora_" in name or "modules_to_save" in name
    }
    saved_names = {key.replace(".exits.", ".exits.modules_to_save.") for key in saved}
    for kind, keys in (("lacks", wanted - saved_names), ("has unknown", saved_names - wanted)):
        if keys:
            raise ConfigError(
                f"adapter {folder} {kind} {len(keys)} keys, first {min(keys)!r}; it was made for "
                "another network or by another version"
            )
    return model


def merge(model: nn.Module) -> CascadeModel:
    """Fold the adapters into the base weights, in float32, and return the plain network.

    A bfloat16 merge would round the sum of two numbers of different size; see the parity test.
    """
    if isinstance(model, PeftModel):
        model = model.float().merge_and_unload(safe_merge=True)
    if not isinstance(model, CascadeModel):
        raise TypeError(f"expected a CascadeModel, got {type(model).__name__}")
    return model


def trainable_share(model: nn.Module) -> tuple[int, int]:
    """(trainable, all) parameter counts; all counts the network, not the frozen originals twice."""
    total = sum(p.numel() for name, p in model.named_parameters() if "original_module" not in name)
    return sum(p.numel() for p in model.parameters() if p.requires_grad), total
