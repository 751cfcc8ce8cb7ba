"""An exponential moving average of the weights that train (Polyak and Juditsky, 1992).

In: the live model after each step. Out: averaged weights, which are swapped into the model to be
judged and saved. Only what trains is kept twice: with adapters that is a per cent of the network.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from cascade_train.checkpoint import trainable


class Average:
    """The average of a model's trainable weights; early noise is forgotten, as decay grows from 0.

    Attributes:
        count: updates so far. weights: by parameter name.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.count = decay, 0
        self.weights: dict[str, Tensor] = {
            name: parameter.detach().clone() for name, parameter in trainable(model).items()
        }

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move to the live weights by 1 - min(decay, (1 + n) / (10 + n)); first, all the way."""
        n = float(self.count)
        towards = 1 - min(self.decay, (1 + n) / (10 + n)) if n else 1.0
        for name, parameter in trainable(model).items():
            average = self.weights[name]
            average.copy_(parameter if towards == 1.0 else torch.lerp(average, parameter, towards))
        self.count += 1

    @contextlib.contextmanager
    def applied(self, model: nn.Module) -> Iterator[nn.Module]:
        """The model with the averaged weights; the live ones come back afterwards.

        Values are copied, not exchanged: whoever wraps the model may hold on to its tensors.
        """
        parameters = trainable(model)
        live = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        _copy(self.weights, parameters)
        try:
            yield model
        finally:
            _copy(live, parameters)


@torch.no_grad()
def _copy(values: dict[str, Tensor], parameters: dict[str, nn.Parameter]) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(values[name])
