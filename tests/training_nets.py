"""Small nets that do something else in training than in evaluation, each in its own way."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations


class Attention(nn.Module):
    """Dropout on attention weights, which evaluation does not have as a call."""

    def __init__(self, *, weights: bool) -> None:
        super().__init__()
        self.embed, self.head, self.weights = nn.Linear(12, 16), nn.Linear(16, 3), weights
        self.attention = nn.MultiheadAttention(16, 4, dropout=0.3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(self.attention(x, x, x, need_weights=self.weights)[0])


class Conv(nn.Module):
    """Two layers with something between them that subclasses define."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(16), nn.Linear(16, 3)

    def between(self, x: Tensor) -> Tensor:
        return self.norm(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.b(self.between(self.a(x)).relu())).mean((2, 3)))


class Noise(Conv):
    def between(self, x: Tensor) -> Tensor:
        return x + 0.1 * torch.randn_like(x) if self.training else x


class OwnDropout(Conv):
    def between(self, x: Tensor) -> Tensor:
        return x * torch.bernoulli(torch.full_like(x, 0.7)) / 0.7 if self.training else x


class FunctionalDropPath(Conv):
    def between(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        if self.training:
            y = y * (torch.rand(len(x), 1, 1, 1, device=x.device) > 0.3) / 0.7
        return x + y


class Auxiliary(Conv):
    def __init__(self) -> None:
        super().__init__()
        self.auxiliary = nn.Sequential(nn.Conv2d(16, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1))

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        out = super().forward(x)
        return (out, self.auxiliary(self.a(x)).mean((2, 3))) if self.training else out


class Probabilities(Conv):
    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        return out if self.training else out.softmax(1)


class FrozenNorm(Conv):
    def train(self, mode: bool = True) -> FrozenNorm:
        super().train(mode)
        self.norm.eval()
        return self


class FrozenTrunk(Conv):
    def between(self, x: Tensor) -> Tensor:
        return self.norm(x)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.between(self.a(x)).relu()
        return self.head(self.b(x).mean((2, 3)))


class MovingAverage(Conv):
    """Keeps an average that only training writes to, and that nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(16))
        self.register_buffer("steps", torch.tensor(0))

    def between(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean.lerp_(x.detach().mean((0, 2, 3)), 0.1)
            self.steps += 1
        return self.norm(x)


class StoppedGradient(Conv):
    """What it returns is the same in both modes; what it learns is not."""

    def between(self, x: Tensor) -> Tensor:
        return self.norm(x.detach() if self.training else x)


class ScaledGradient(Conv):
    def between(self, x: Tensor) -> Tensor:
        return self.norm(0.1 * x + 0.9 * x.detach() if self.training else x)


class Skipping(nn.Module):
    """Skips a layer by a coin that no graph can hold; in most steps it does not."""

    def __init__(self, coin: Callable[[], object]) -> None:
        super().__init__()
        self.a, self.b, self.c, self.coin = nn.Linear(12, 16), nn.Linear(16, 16), nn.Linear(16, 3), coin

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        return self.c(x if self.training and self.coin() < 0.1 else x + self.b(x))


class Changing(Skipping):
    """Something else than a coin, that subclasses define."""

    def __init__(self) -> None:
        super().__init__(lambda: 1.0)
        self.shift, self.steps = nn.Parameter(torch.zeros(16)), 0

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.between(self.a(x).relu()) + self.shift)


class SetAtFirst(Changing):
    """Writes to its own parameter in its first step."""

    def between(self, x: Tensor) -> Tensor:
        if self.training and self.steps == 0:
            self.shift.data.copy_(-x.mean((0, 1)))
            self.steps = 1
        return x


class OwnGenerator(Changing):
    def __init__(self) -> None:
        super().__init__()
        self.generator = np.random.default_rng(0)

    def between(self, x: Tensor) -> Tensor:
        return x if self.training and self.generator.random() < 0.1 else x + self.b(x)


class WarmingUp(Changing):
    def between(self, x: Tensor) -> Tensor:
        self.steps += self.training
        return x * min(1.0, self.steps / 10) if self.training else x


class OnValues(Changing):
    def between(self, x: Tensor) -> Tensor:
        return x / 10 if self.training and x.abs().max() > 50 else x


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


class ReversedGradient(Changing):
    def between(self, x: Tensor) -> Tensor:
        return Reversed.apply(x)


class OneWay(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise NotImplementedError("this kernel has no backward pass")


class ForwardsOnly(Changing):
    def between(self, x: Tensor) -> Tensor:
        return OneWay.apply(x)


class Recurrent(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.layer = getattr(nn, kind)(12, 16, 2, dropout=0.5, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0])


class MonteCarlo(Conv):
    def between(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, training=True) if self.training else x


def conv(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 16, 3), *layers, nn.ReLU(), nn.Conv2d(16, 4, 1))


def normed(wrap) -> nn.Module:
    return nn.Sequential(wrap(nn.Conv2d(3, 16, 3)), nn.ReLU(), wrap(nn.Conv2d(16, 16, 3)), nn.Conv2d(16, 4, 1))


def encoder() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 16), nn.TransformerEncoderLayer(16, 4, 32, dropout=0.2, batch_first=True))


NETS = {
    "batch norm, cumulative": lambda: conv(nn.BatchNorm2d(16, momentum=None)),
    "batch norm, no statistics": lambda: conv(nn.BatchNorm2d(16, track_running_stats=False)),
    "instance norm with statistics": lambda: conv(nn.InstanceNorm2d(16, affine=True, track_running_stats=True)),
    "rrelu": lambda: conv(nn.RReLU()),
    "alpha dropout": lambda: conv(nn.AlphaDropout(0.3)),
    "feature alpha dropout": lambda: conv(nn.FeatureAlphaDropout(0.3)),
    "dropout in place": lambda: conv(nn.Dropout(0.3, inplace=True)),
    "spectral norm": lambda: normed(parametrizations.spectral_norm),
    "spectral norm, by hook": lambda: normed(nn.utils.spectral_norm),
    "weight norm, by hook": lambda: normed(nn.utils.weight_norm),
    "noise": Noise,
    "own dropout": OwnDropout,
    "functional drop path": FunctionalDropPath,
    "auxiliary head": Auxiliary,
    "probabilities": Probabilities,
    "frozen norm": FrozenNorm,
    "frozen trunk": FrozenTrunk,
    "dropout written out": MonteCarlo,
    "moving average": MovingAverage,
    "stopped gradient": StoppedGradient,
    "scaled gradient": ScaledGradient,
    "lstm": lambda: Recurrent("LSTM"),
    "gru": lambda: Recurrent("GRU"),
    "attention with weights": lambda: Attention(weights=True),
    "attention, fused": lambda: Attention(weights=False),
    "encoder layer": encoder,
}


# What no graph can do, and what the tool says about it.
BEYOND = {
    "a coin of torch": (lambda: Skipping(lambda: torch.rand(())), "random numbers"),
    "a coin of Python": (lambda: Skipping(random.random), "Python's random"),
    "a coin of NumPy": (lambda: Skipping(lambda: np.random.uniform(0, 1)), "numpy.random"),
    "a generator of its own": (OwnGenerator, "'generator' changes with every step"),
    "set at first": (SetAtFirst, "'steps'"),
    "warming up": (WarmingUp, "'steps' changes with every step"),
    "on values": (OnValues, "value of a tensor \\(at tests/training_nets.py"),
    "reversed gradient": (ReversedGradient, "the gradient of 'a.bias' differs"),
}


def inputs_of(name: str) -> Tensor:
    sequence = any(word in name for word in ("lstm", "gru", "attention", "encoder"))
    return torch.randn(4, 5, 12) if sequence else torch.randn(4, 3, 10, 10) + 1
