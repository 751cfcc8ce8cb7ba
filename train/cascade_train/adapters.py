"""Low-rank adapters through PEFT: put on, save, load, merge.

In: a `CascadeModel`. Out: a PEFT model in which the linear layers of the blocks carry low-rank
updates while the exits' heads, and on request the last blocks, train in full (`modules_to_save`, so
an adapter-only checkpoint includes them). With W the base weight, m a trained length a row, s the
scale and B A the update of rank r:

    lora     W + s B A,  s = alpha / r                  Hu et al., arXiv 2106.09685, equation 3
    rslora   W + s B A,  s = alpha / sqrt(r)            Kalajdzievski, arXiv 2312.03732, theorem 3.2
    dora     m (W + s B A) / |W + s B A|, row by row    Liu et al., arXiv 2402.09353, equation 5

By default B starts at zero. Two other starts take the update's first value out of W, so that the
sum is unchanged and training moves what was taken: `pissa` the r largest singular directions (Meng
et al., arXiv 2404.02948), `olora` the first r columns and rows of W = Q R (Büyükakyüz, arXiv
2406.01775). Their W depends on a decomposition that another machine rounds differently. What is
saved is therefore the difference to the start, an update of rank 2 r on the base as it was:

    (W - s B0 A0) + s B A  =  W + s [B, -B0] [A; A0]

Merging is done in float32 and cast once, by whoever needs another type.
"""

from __future__ import annotations

import copy
import math
import re
from pathlib import Path

import msgspec
import torch
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.tuners.lora import Linear as LoraLinear
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cascade_runtime.errors import ConfigError
from cascade_train.exits import CascadeModel
from cascade_train.sharding import full

KINDS = ("lora", "dora", "rslora")
TARGETS = {
    "qv": r"attention\.[qv]_proj",
    "attention": r"attention\.[qkvo]_proj",
    "all": r"(attention\.[qkvo]_proj|mlp\.(up|down|gate)_proj)",
}
INITS: dict[str, bool | str] = {  # as PEFT calls them; 16 power iterations find r directions fast
    "default": True,
    "pissa": "pissa_niter_16",
    "olora": "olora",
}


class AdapterConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to adapt, and how.

    `rank` is r. `alpha` is by default 2 r (so s = 2), for rslora 8 (the same s at rank 16), and r
    for the starts that take their update out of W (so s = 1, as in their papers). `targets` says
    which layers, `unfreeze` how many of the last blocks train in full instead.
    """

    kind: str = "lora"
    rank: int = 16
    alpha: int | None = None
    dropout: float = 0.0
    targets: str = "all"
    init: str = "default"
    unfreeze: int = 0

    def __post_init__(self) -> None:
        for name, value, known in (
            ("kind", self.kind, KINDS),
            ("targets", self.targets, TARGETS),
            ("init", self.init, INITS),
        ):
            if value not in known:
                raise ConfigError(
                    f"adapter {name} {value!r} is unknown; choose one of {', '.join(known)}"
                )
        for name, number, good, limits in (
            ("rank", self.rank, self.rank >= 1, "at least 1"),
            ("alpha", self.alpha, self.alpha is None or self.alpha >= 1, "at least 1"),
            ("dropout", self.dropout, 0 <= self.dropout < 1, "at least 0 and below 1"),
            ("unfreeze", self.unfreeze, self.unfreeze >= 0, "at least 0"),
        ):
            if not good:
                raise ConfigError(f"adapter {name} is {number}, it must be {limits}")

    def scale_numerator(self) -> int:
        """Alpha, or its default for this kind and start."""
        if self.alpha is not None:
            return self.alpha
        if self.kind == "rslora":
            return 8
        return 2 * self.rank if self.init == "default" else self.rank


def add_adapter(model: CascadeModel, config: AdapterConfig) -> PeftModel:
    """Wrap the model: base frozen; adapters, the exits' heads and the unfrozen blocks trainable.

    Blocks after the last exit are never run, so they get nothing and do not count as last.

    Raises:
        ConfigError: every block is unfrozen, or the rank is above the width and `init` is not
            the default.
    """
    return wrap(
        model,
        config,
        layers="backbone.model.layer",
        blocks=model.exit_blocks[-1],
        heads=("exits",),
    )


def wrap(
    model: nn.Module,
    config: AdapterConfig,
    *,
    layers: str,
    blocks: int,
    heads: tuple[str, ...] = (),
) -> PeftModel:
    """`add_adapter` for any module around a DINOv3 encoder.

    Args:
        layers: name of the list of blocks, as "model.layer" in a `DINOv3ViTModel`.
        blocks: how many of them are run.
        heads: names of modules outside `layers` that train in full.
    """
    adapted = blocks - config.unfreeze
    if adapted < 1:
        raise ConfigError(
            f"adapter unfreeze is {config.unfreeze} but {blocks} blocks are run; leave at least "
            "one for the adapter, or train without an adapter"
        )
    indices = "|".join(map(str, range(adapted)))
    targets = rf"{re.escape(layers)}\.({indices})\.{TARGETS[config.targets]}"
    if config.init != "default":
        _check_rank(model, config, targets)
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.scale_numerator(),
        lora_dropout=config.dropout,
        use_rslora=config.kind == "rslora",
        use_dora=config.kind == "dora",
        init_lora_weights=INITS[config.init],  # type: ignore[arg-type]
        target_modules=targets,
        modules_to_save=[*heads, *(f"{layers}.{index}" for index in range(adapted, blocks))],
    )
    if config.init == "default":
        return get_peft_model(model, lora)
    # The base changes with the random start of the power iteration: a resumed run needs the same.
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(0)
        wrapped = get_peft_model(model, lora)
    for layer in _lora_layers(wrapped).values():
        layer.register_buffer("start_A", _factor(layer.lora_A).clone(), persistent=False)
        layer.register_buffer("start_B", _factor(layer.lora_B).clone(), persistent=False)
    return wrapped


def save_adapter(model: PeftModel, folder: Path | None) -> None:
    """Write adapter_config.json and adapter_model.safetensors: adapters and heads, no base.

    With None nothing is written: of several processes only one writes, but all have to call it.
    PEFT's own conversion of `pissa` and `olora` drops `modules_to_save`; this one keeps them.
    """
    found = get_peft_model_state_dict(model).items()
    state = {key: full(value, keep=folder is not None) for key, value in found}
    if folder is None:
        return
    config = copy.deepcopy(model.peft_config["default"])
    if not isinstance(config, LoraConfig):
        raise TypeError(f"expected a LoRA adapter, got {config.peft_type}")
    if isinstance(config.init_lora_weights, str):
        scale = config.lora_alpha / (math.sqrt(config.r) if config.use_rslora else config.r)
        for name, layer in _lora_layers(model).items():
            a, b = f"{name}.lora_A.weight", f"{name}.lora_B.weight"
            state[a] = torch.cat([state[a], layer.get_buffer("start_A").to(state[a].device)])
            state[b] = torch.cat(
                [state[b], -layer.get_buffer("start_B").to(state[b].device)], dim=1
            )
        config.r *= 2
        config.lora_alpha = scale * config.r  # type: ignore[assignment]  # PEFT only divides by r
        config.use_rslora, config.init_lora_weights = False, True
    config.inference_mode = True
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    tensors = {key: value.detach().contiguous() for key, value in state.items()}
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})


def load_adapter(base: CascadeModel, folder: Path) -> PeftModel:
    """Put a saved adapter on its base, as `PeftModel.from_pretrained` does, and check all of it.

    The loader of transformers (`load_adapter` of a model) is no way to do this: it leaves DoRA's
    lengths m at their start.

    Raises:
        ConfigError: the file's keys and shapes are not exactly the adapter's (PEFT skips a key
            that does not fit with a warning, and the base would answer in the adapter's name), or
            the adapter would change its base first.
    """
    try:
        config = PeftConfig.from_pretrained(str(folder))
        saved = load_file(folder / "adapter_model.safetensors")
    except Exception as error:  # PEFT, safetensors and the hub client each raise their own kinds
        raise _unloadable(folder, error) from error
    init = getattr(config, "init_lora_weights", True)
    if isinstance(init, str):
        raise ConfigError(
            f"adapter {folder} starts by {init!r}, which changes the base before the adapter is "
            "put on it; save it as a plain LoRA, as cascade-train does"
        )
    try:
        model: PeftModel = get_peft_model(base, config)
    except Exception as error:  # what does not fit is said in many kinds as well
        raise _unloadable(folder, error) from error
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

    The wrapped model is used up. A bfloat16 merge would round the sum of two numbers of different
    size; see the parity test. To compare the answers before and after, call `eval()` first: in
    training mode the position embeddings (RoPE) are rescaled at random.
    """
    if isinstance(model, PeftModel):
        try:
            model = model.float().merge_and_unload(safe_merge=True)
        except ValueError as error:  # what a safe merge says of NaN
            raise ConfigError(f"the adapter cannot be merged: {error}; train it again") from error
    if not isinstance(model, CascadeModel):
        raise TypeError(f"expected a CascadeModel, got {type(model).__name__}")
    return model


def save_merged(model: nn.Module, path: Path) -> CascadeModel:
    """Merge, write the float32 weights as the safetensors file of a network that has no adapter.

    `checkpoint.load_exact` reads it into a `CascadeModel`. Returns the merged network.
    """
    from cascade_train.checkpoint import save_tensors  # it imports this module

    merged = merge(model).float()
    save_tensors(path, dict(merged.state_dict()))
    return merged


def trainable_share(model: nn.Module) -> tuple[int, int]:
    """(trainable, all) parameter counts; all counts the network, not the frozen originals twice."""
    total = sum(p.numel() for name, p in model.named_parameters() if "original_module" not in name)
    return sum(p.numel() for p in model.parameters() if p.requires_grad), total


def share_text(model: nn.Module) -> str:
    """For people: "training 1.23 M of 85.7 M parameters (1.4 %)"."""
    some, total = trainable_share(model)
    return f"training {_count(some)} of {_count(total)} parameters ({100 * some / total:.1f} %)"


def _count(parameters: int) -> str:
    size, unit = (parameters / 1e6, "M") if parameters >= 1e5 else (parameters / 1e3, "k")
    return f"{size:.{1 if size >= 10 else 2}f} {unit}"


def _check_rank(model: nn.Module, config: AdapterConfig, targets: str) -> None:
    """A matrix has as many directions to start from as its smaller side."""
    sides = [
        min(module.weight.shape)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and re.fullmatch(targets, name)
    ]
    if sides and config.rank > min(sides):
        raise ConfigError(
            f"adapter rank is {config.rank}, but {config.init} finds only {min(sides)} directions "
            "to start from; lower the rank, or use the default init"
        )


def _lora_layers(model: nn.Module) -> dict[str, LoraLinear]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLinear)}


def _factor(factors: nn.ModuleDict) -> Tensor:
    """A or B of PEFT's one adapter."""
    linear = factors["default"]
    assert isinstance(linear, nn.Linear)
    return linear.weight.detach()


def _unloadable(folder: Path, error: Exception) -> ConfigError:
    reason = " ".join(str(error).split())
    return ConfigError(f"adapter {folder} cannot be loaded: {reason}")
