"""Where and how a step is computed: device, processes, precision, memory.

In: a `ScaleConfig` and the environment that `torchrun` or `accelerate launch` sets. Out: a
`Machine`, through which the loop places its model, steps its optimiser and gathers what the
processes know; alone on a CPU it is almost nothing. Device, process group and copies that keep in
step (DDP) come from `accelerate`, sharding from torch's FSDP2. Only the first process writes.

A step's batch is `batch_size` images over all processes and accumulated parts, so the same
settings train the same network on one process or many (Goyal et al., arXiv 1706.02677, section 3,
without the rescaling that a growing batch would need).
"""

from __future__ import annotations

import contextlib
import datetime
import math
import re
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import msgspec
import torch
from torch import Tensor, nn

from cascade_runtime.errors import ConfigError
from cascade_train.data.loader import Shard

Amp = Literal["auto", "bf16", "fp16", "none"]
PREPARATION = datetime.timedelta(hours=12)  # that others wait while the first one decodes images
_BLOCK = re.compile(r"(?:^|\.)backbone\.model\.layer\.(\d+)\.")


class ScaleConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to fit a large network.

    accumulate: parts in which a process computes its share of a step.
    checkpointing: keep only what enters each block, and compute its inside again for the gradient.
    layer_decay: factor on the learning rate for each block away from the end; 1: all alike.
    sharded: spread weights, gradients and moments over the processes (FSDP2) instead of copying.
    compile: torch.compile the blocks; pays where a step is long and a C++ compiler is at hand.
    """

    accumulate: int = 1
    checkpointing: bool = False
    layer_decay: float = 1.0
    sharded: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        if self.accumulate < 1:
            raise ConfigError(f"scale.accumulate is {self.accumulate}, expected 1 or more")
        if not 0 < self.layer_decay <= 1:
            raise ConfigError(
                f"scale.layer_decay is {self.layer_decay}, expected above 0 and at most 1"
            )


class Machine:
    """This process among all that train together.

    Raises:
        ConfigError: fp16 without a GPU, or sharding without several processes.
    """

    def __init__(self, config: ScaleConfig, amp: Amp = "auto") -> None:
        from accelerate import Accelerator
        from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

        self.config = config
        # Blocks behind the last exit and tokens for masks get no gradient; DDP must expect that.
        unused = DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)
        cpu = not torch.cuda.is_available()
        patient = InitProcessGroupKwargs(timeout=PREPARATION)
        self._accelerator = Accelerator(kwargs_handlers=[unused, patient], cpu=cpu)
        self.device = self._accelerator.device
        self.rank, self.world = self._accelerator.process_index, self._accelerator.num_processes
        if config.sharded and self.world == 1:
            raise ConfigError(
                "scale.sharded spreads the network over several processes, and this is one; start "
                "with `torchrun --nproc-per-node N -m cascade_train.cli fit …`"
            )
        self.dtype = precision(amp, self.device)
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        self.shard = Shard(self.rank, self.world, config.accumulate)

    @property
    def is_first(self) -> bool:
        """Whether this process writes and talks."""
        return self.rank == 0

    def place(self, model: nn.Module) -> nn.Module:
        """The model on its device, wrapped for several processes; make its optimiser afterwards."""
        if self.config.checkpointing:
            checkpoint_activations(model)
        if self.config.compile:
            for block in blocks(model):
                block.compile()
        if self.config.sharded:
            return _shard(model, self.device)
        model.to(self.device)
        return self._accelerator.prepare(model) if self.world > 1 else model  # type: ignore[no-any-return]

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Forward passes in the chosen precision."""
        return autocast(self.device, self.dtype)

    def part(self, model: nn.Module, *, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Around forward and backward of a part: the processes exchange gradients at the last."""
        if self.config.sharded:
            model.set_requires_gradient_sync(last)  # type: ignore[operator]
        elif self.world > 1 and not last:
            return self._accelerator.no_sync(model)
        return contextlib.nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of one part."""
        self._scaler.scale(loss / self.config.accumulate).backward()

    def reshard(self, model: nn.Module) -> None:
        """After a forward pass without gradient FSDP2 keeps the outermost weights, and stale."""
        if self.config.sharded:
            for module in model.modules():
                if hasattr(module, "reshard"):
                    module.reshard()

    def scaler_state(self) -> dict[str, Any]:
        """The state of fp16's gradient scaling; empty in other precisions."""
        return self._scaler.state_dict()

    def restore_scaler(self, state: dict[str, Any]) -> None:
        """Go on with such a state."""
        if state:
            self._scaler.load_state_dict(state)

    def step(
        self, optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor], clip: float
    ) -> None:
        """Clip the gradient to this norm and take the step."""
        if self._scaler.is_enabled():
            self._scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(list(parameters), clip)
        self._scaler.step(optimizer)
        self._scaler.update()

    def mean(self, value: float) -> float:
        """The mean of a number over all processes."""
        if self.world == 1:
            return value
        number = torch.tensor(value, dtype=torch.float64)
        total: Tensor = self._accelerator.reduce(number.to(self.device), "mean")
        return float(total)

    def gather(self, rows: Tensor) -> Tensor:
        """[W * n, ...] from [n, ...] of each process, in the order of the processes."""
        if self.world == 1:
            return rows
        gathered: Tensor = self._accelerator.gather(rows.contiguous())
        return gathered

    def wait(self) -> None:
        """Until every process is here."""
        self._accelerator.wait_for_everyone()


@contextlib.contextmanager
def ended(machine: Machine) -> Iterator[Machine]:
    """Leave the process group in order when the training is over."""
    yield machine  # after an error the others may wait in a collective: the process just ends
    if machine.world > 1:
        torch.distributed.destroy_process_group()


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside what `Machine.place` made of it."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        inner: nn.Module = model.module
        return inner
    return model


def blocks(model: nn.Module) -> list[nn.Module]:
    """The transformer blocks of every backbone in the model, first block first."""
    return [
        module
        for name, module in model.named_modules()
        if re.search(r"(?:^|\.)backbone\.model\.layer\.\d+$", name)
    ]


def checkpoint_activations(model: nn.Module) -> None:
    """Trade compute for memory inside each block (Chen et al., arXiv 1604.06174)."""
    for module in model.modules():
        if hasattr(module, "gradient_checkpointing_enable") and hasattr(module, "embeddings"):
            module.gradient_checkpointing_enable({"use_reentrant": False})


def parameter_groups(
    parameters: dict[str, nn.Parameter], depth: int, decay: float, layer_decay: float
) -> list[dict[str, Any]]:
    """Groups for AdamW: matrices decay, vectors do not; `scale` multiplies the learning rate.

    The heads learn at full rate, block i of `depth` at layer_decay ** (depth - i), the embeddings
    one power lower still (Bao et al., BEiT, arXiv 2106.08254, appendix).
    """
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in parameters.items():
        scale = layer_decay ** _distance(name, depth)
        matrix = parameter.ndim >= 2
        group = groups.setdefault(
            (scale, matrix),
            {"params": [], "weight_decay": decay if matrix else 0.0, "scale": scale},
        )
        group["params"].append(parameter)
    return sorted(groups.values(), key=lambda g: (g["weight_decay"] == 0.0, g["scale"]))


def _distance(name: str, depth: int) -> int:
    """How many blocks lie between a parameter and the end; 0 for the heads and final norms."""
    found = _BLOCK.search(name)
    if found:
        return depth - int(found.group(1))
    return depth + 1 if "backbone.embeddings" in name else 0


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager[Any]:
    """Matrix products in this type; float32 turns it off."""
    on = dtype != torch.float32
    return torch.autocast(device.type, dtype if on else torch.bfloat16, enabled=on)


def precision(amp: Amp, device: torch.device) -> torch.dtype:
    """The type of matrix products on a device.

    Raises:
        ConfigError: fp16 on a CPU.
    """
    if amp == "fp16" and device.type == "cpu":
        raise ConfigError("amp is fp16, which needs a GPU; use bf16, or auto")
    if amp == "auto":
        return torch.bfloat16 if _multiplies_bf16(device) else torch.float32
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "none": torch.float32}[amp]


def _multiplies_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False


def _shard(model: nn.Module, device: torch.device) -> nn.Module:
    """FSDP2, block by block: what is whole on the device at any time is one block's weights."""
    from torch.distributed.fsdp import fully_shard

    empty = {p for p in model.parameters() if not p.numel()}  # FSDP2 cannot cut these
    for parameter in empty:
        parameter.data = parameter.data.to(device)
    for block in blocks(model):
        fully_shard(block)
    fully_shard(model, ignored_params=empty)
    return model


def schedule(step: int, steps: int, warmup: float) -> float:
    """Linear warm-up, then cosine to zero; a factor of the peak learning rate."""
    rising = max(1, round(steps * warmup))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))
