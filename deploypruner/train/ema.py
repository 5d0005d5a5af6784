"""The exponential moving average of a model's weights while it trains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from deploypruner.train.regime import write


class WeightAverage:
    """Average of every parameter and buffer; integers are copied.

    After update t (from 1): average <- d average + (1 - d) weight, with d = min(decay, (1 + t) / (10 + t)), so that
    the first weights, which training is about to leave, do not linger (the warm-up of TensorFlow's
    ExponentialMovingAverage).

    Args:
        module: Whose weights are averaged; the average starts at them.
        decay: In [0, 1); 0 keeps no average at all, and every method does nothing.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.values: dict[str, Tensor] = _copy(module) if decay else {}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Take in the weights after one step."""
        if not self.values:
            return
        self.updates += 1
        keep = min(self.decay, (1 + self.updates) / (10 + self.updates))
        state = module.state_dict()
        for name, value in self.values.items():
            if value.is_floating_point():
                value.lerp_(state[name], 1 - keep)
            else:
                value.copy_(state[name])

    def write(self, module: nn.Module) -> None:
        """Put the average into `module`."""
        write(module, self.values)

    @contextmanager
    def in_place(self, module: nn.Module) -> Iterator[None]:
        """The averaged weights for the length of the block, then the trained ones again."""
        trained = _copy(module) if self.values else {}
        self.write(module)
        try:
            yield
        finally:
            write(module, trained)

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint has to hold."""
        return {**self.values, "#updates": torch.tensor(self.updates)} if self.values else {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` gave."""
        for name, value in self.values.items():
            value.copy_(state[name])
        self.updates = int(state["#updates"]) if self.values else 0


def _copy(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
