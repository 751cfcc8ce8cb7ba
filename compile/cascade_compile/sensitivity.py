"""Which linear layers of a stage stay out of int8, by measured effect.

In: a stage and a way to write its engine with chosen layers in int8. Out: the engine of the fewest
layers left out that answers as the float32 stage does, within half of the limit that parity
holds it to at the end (errors of stages add up). Most stages need none, and then this costs one
build and one comparison.

Where one is needed, layers are ordered by what quantising each of them alone would change at the
stage's outputs, to first order: the error that rounding its weights and its input makes in its own
output, times the gradient of the outputs there. One forward and a few backward passes see all
layers at once (the idea of HAWQ, arXiv 1905.03696, with gradients in place of curvature). The order
is an estimate; what is left out is decided by engines, built and run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cascade_compile.parity import LIMITS
from cascade_compile.targets import Built, StageSource
from cascade_runtime import engines

SHARE_OF_LIMIT = 0.5
HELD_BACK = 4  # every fourth sample is for comparing, the others are for calibrating
MOST_LEFT_OUT = 0.5  # of the layers: beyond it the engine would be int8 in name alone
IMAGES = 16
CHUNK = 4  # images whose activations are kept for a backward pass

Arrays = dict[str, npt.NDArray[Any]]
Write = Callable[[npt.NDArray[np.generic], Sequence["Layer"]], tuple[str, ...]]


@dataclass(frozen=True)
class Layer:
    """One linear layer: its name in the network, as people know it, and its node in the graph."""

    name: str
    node: str


def quantise(source: StageSource, folder: Path, backend: str, write: Write) -> Built:
    """The int8 engine of a stage that leaves out the fewest layers.

    Args:
        write: `write(samples, layers)` calibrates on the samples, writes the engine with these
            layers quantised into `folder` and gives its file names, the one to open first first.
    """
    samples = source.samples()
    held = np.arange(len(samples)) % HELD_BACK == HELD_BACK - 1
    if not held.any():  # fewer than four samples: better the same ones than none
        held[:] = True
        kept = samples
    else:
        kept = samples[~held]
    layers = linear_layers(source)
    wanted = run_module(source.module, samples[held])
    files: tuple[str, ...] = ()

    def attempt(left_out: Sequence[Layer]) -> float:
        nonlocal files
        files = write(kept, [layer for layer in layers if layer not in left_out])
        data = {name: (folder / name).read_bytes() for name in files}
        engine = engines.load(backend, data, files[0], precision="int8", device="cpu")
        return deviation(_run_engine(engine, samples[held]), wanted)

    def order() -> list[Layer]:
        found = effects(source.module, samples[:: max(1, len(samples) // IMAGES)][:IMAGES])
        known = [layer for layer in layers if layer.name in found]
        return sorted(known, key=lambda layer: (-found[layer.name], layer.name))

    left_out = fewest(attempt, order, SHARE_OF_LIMIT * LIMITS["int8"])
    return Built(files, tuple(layer.name for layer in layers if layer in left_out))


def fewest(
    attempt: Callable[[Sequence[Layer]], float],
    order: Callable[[], Sequence[Layer]],
    limit: float,
) -> Sequence[Layer]:
    """The shortest start of `order` with which `attempt` comes to `limit`, or the best one seen.

    Lengths double until one is enough, then the gap is halved; so a few attempts do for a hundred
    layers. The last attempt made is the one returned.
    """
    tried = {0: attempt(())}
    ranked: Sequence[Layer] = ()
    enough = 0 if tried[0] <= limit else None
    if enough is None:
        ranked = order()
        most = int(len(ranked) * MOST_LEFT_OUT)
        too_few = 0
        while enough is None and too_few < most:
            count = min(max(1, 2 * too_few), most)
            tried[count] = attempt(ranked[:count])
            if tried[count] <= limit:
                enough = count
            else:
                too_few = count
        while enough is not None and enough - too_few > 1:
            middle = (too_few + enough) // 2
            tried[middle] = attempt(ranked[:middle])
            if tried[middle] <= limit:
                enough = middle
            else:
                too_few = middle
    best = enough if enough is not None else min(tried, key=lambda count: (tried[count], count))
    if next(reversed(tried)) != best:
        attempt(ranked[:best])
    return ranked[:best]


def deviation(have: Arrays, wanted: Arrays) -> float:
    """Largest difference of any output, as a share of that output's largest value or of 1."""
    worst = 0.0
    for name, value in wanted.items():
        difference = float(np.abs(have[name] - value).max())
        if not np.isfinite(difference):
            return float("inf")
        worst = max(worst, difference / max(1.0, float(np.abs(value).max())))
    return worst


def linear_layers(source: StageSource) -> list[Layer]:
    """The layers to quantise: those with weights that see every token of an image.

    Heads see one vector an image (Gemm): they cost next to nothing, and what they give is what
    thresholds are compared with. The export keeps few names, so a layer is called what the network
    calls the weights of that first row and column, and by its node where that is unknown.
    """
    import onnx
    from onnx import numpy_helper

    names: dict[bytes, list[str]] = {}
    for name, module in weighted(source.module):
        names.setdefault(_mark(module.weight.detach().numpy()), []).append(name)
    graph = onnx.load(source.onnx_file, load_external_data=False).graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    found = []
    for node in graph.node:
        if node.op_type not in ("MatMul", "Conv") or node.input[1] not in weights:
            continue
        matrix = numpy_helper.to_array(weights[node.input[1]], str(source.onnx_file.parent))
        fitting = names.get(_mark(matrix if node.op_type == "Conv" else matrix.T), [])
        found.append(Layer(fitting.pop(0) if fitting else node.name, node.name))
    return found


def weighted(module: nn.Module) -> list[tuple[str, Any]]:
    """The linear and convolutional layers before the heads, by name."""
    return [
        (name, part)
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear | nn.Conv2d) and not name.startswith("heads.")
    ]


def _mark(weights: npt.NDArray[np.generic]) -> bytes:
    flat = weights.reshape(len(weights), -1)
    return b"".join((str(weights.shape).encode(), flat[0].tobytes(), flat[:, 0].tobytes()))


def effects(module: nn.Module, samples: npt.NDArray[np.generic]) -> dict[str, float]:
    """What quantising each layer alone changes at the outputs, to first order.

    Returns:
        By layer, the largest change of any output on any sample, as a share of that output's
        largest value or of 1; of the tokens, the change along one random direction, whose square
        is that of the whole change on average, as a share of their length.
    """
    found = dict.fromkeys((name for name, _ in weighted(module)), 0.0)
    for start in range(0, len(samples), CHUNK):
        for name, effect in _effects(module, torch.from_numpy(samples[start : start + CHUNK])):
            found[name] = max(found[name], effect)
    return found


def _effects(module: nn.Module, batch: Tensor) -> list[tuple[str, float]]:
    """Of one chunk. Rows of a batch are independent, so one gradient of a sum serves all."""
    errors: dict[str, Tensor] = {}
    nudges: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[..., Tensor]:
        def hook(layer: Any, inputs: tuple[Tensor], output: Tensor) -> Tensor:
            with torch.no_grad():
                errors[name] = rounded(layer, inputs[0]) - output
            nudges[name] = torch.zeros_like(output, requires_grad=True)
            return output + nudges[name]

        return hook

    hooks = [layer.register_forward_hook(watch(name)) for name, layer in weighted(module)]
    frozen = [p for p in module.parameters() if p.requires_grad]
    try:
        for parameter in frozen:  # only activations need a gradient
            parameter.requires_grad_(False)
        with torch.enable_grad():
            outputs = _directions(module(batch))
            gradients = [
                torch.autograd.grad(
                    value.sum(), list(nudges.values()), retain_graph=True, allow_unused=True
                )
                for value, _ in outputs
            ]
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
        for one in hooks:
            one.remove()
    found = []
    for at, name in enumerate(nudges):
        changes = [
            float((row[at] * errors[name]).flatten(1).sum(1).abs().max()) / scale
            for row, (_, scale) in zip(gradients, outputs, strict=True)
            if row[at] is not None
        ]
        found.append((name, max(changes, default=0.0)))
    return found


def _directions(outputs: tuple[Tensor, ...]) -> list[tuple[Tensor, float]]:
    """One number a sample each, with its scale: both logits, the gate, the tokens' direction."""
    logits, gate, *tokens = outputs
    found = [(logits[:, 0], logits), (logits[:, 1], logits), (gate, gate)]
    scaled = [(value, max(1.0, float(whole.detach().abs().max()))) for value, whole in found]
    for value in tokens:
        signs = np.random.default_rng(0).choice([-1.0, 1.0], value.shape[1:]).astype(np.float32)
        length = float(value.detach().flatten(1).norm(dim=1).max())
        scaled.append(((value * torch.from_numpy(signs)).flatten(1).sum(1), max(1.0, length)))
    return scaled


def rounded(layer: Any, x: Tensor) -> Tensor:
    """The layer with weights of 8 bits an output channel and an input of 8 bits, min to max."""
    weight = layer.weight
    step = weight.flatten(1).abs().amax(1).clamp_min(1e-12) / 127
    step = step.reshape(-1, *[1] * (weight.dim() - 1))
    weight = (weight / step).round() * step
    low, high = min(0.0, float(x.min())), max(0.0, float(x.max()))
    width = max(high - low, 1e-12) / 255
    x = (x / width).round() * width
    if isinstance(layer, nn.Conv2d):
        return nn.functional.conv2d(x, weight, layer.bias, layer.stride, layer.padding)
    return nn.functional.linear(x, weight, layer.bias)


@torch.no_grad()
def run_module(module: nn.Module, samples: npt.NDArray[np.generic]) -> Arrays:
    """The float32 stage over any number of samples, by output name."""
    parts = [module(torch.from_numpy(samples[at : at + 8])) for at in range(0, len(samples), 8)]
    columns = [torch.cat(column).numpy() for column in zip(*parts, strict=True)]
    return dict(zip(("logits", "gate", "tokens"), columns, strict=False))


def _run_engine(engine: engines.Engine, samples: npt.NDArray[np.generic]) -> Arrays:
    parts = [engine.run(samples[at : at + 8]) for at in range(0, len(samples), 8)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
