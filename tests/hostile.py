"""Modules written to break a dependency graph, each with what a person finds out about it by hand.

`groups` maps "parameter:axis" to the sizes of the groups that live there, largest first; `frozen` maps it to words
of the reason that all other channels of that axis stay.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

from benchmarks.lively import liven

IMAGE, SEQUENCE = (2, 3, 8, 8), (2, 7, 12)


@dataclass(frozen=True)
class Case:
    """A module, the shape of its input and what a person finds out about it."""

    module: Callable[[], nn.Module]
    shape: tuple[int, ...]
    groups: dict[str, list[int]]
    frozen: dict[str, str]

    def make(self) -> tuple[nn.Module, Any]:
        """The module in eval mode with weights that matter, and two samples."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = self.module().eval()
            liven(net)
            x = torch.randn(self.shape)
        return net, net.wrap(x) if isinstance(net, Nested) else x


CASES: dict[str, Case] = {}


def case(
    shape: tuple[int, ...] = IMAGE,
    *,
    groups: dict[str, list[int]] | None = None,
    frozen: dict[str, str] | None = None,
) -> Callable[[type[nn.Module]], type[nn.Module]]:
    def add(cls: type[nn.Module]) -> type[nn.Module]:
        CASES[cls.__name__] = Case(cls, shape, groups or {}, frozen or {})
        return cls

    return add


# Four groups: of four input columns, of six output columns. GLU pairs output i of `c` with 6 + i.
@case(groups={"b.weight:0": [4, 4], "b.weight:1": [6], "n.weight:0": [6, 4], "c.weight:1": [6, 4], "c.weight:0": [6]})
class GroupedDeconvolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.ConvTranspose2d(16, 24, 2, 2, groups=4)
        self.n, self.p = nn.GroupNorm(4, 24), nn.PReLU(24)
        self.c, self.d = nn.Conv2d(24, 12, 1), nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.d(F.glu(self.c(self.p(self.n(self.b(self.a(x))))), 1))


@case(groups={"a.weight:0": [12], "b.weight:0": [12], "c.weight:1": [12]})
class DepthwiseShuffle(nn.Module):
    """Shuffled one by one: channel 3i + j of `a` becomes channel 4j + i of `b`, and nothing ties its neighbours."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.c = nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        b, c, h, w = x.shape
        return self.c(self.b(x.view(b, 4, 3, h, w).transpose(1, 2).reshape(b, c, h, w)).relu())


@case(
    SEQUENCE,
    groups={"a.weight:0": [8], "b.weight:0": [16], "c.weight:1": [16]},
    frozen={"d.weight:0": "model output", "c.weight:0": "roll along"},
)
class Rolled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(12, 8), nn.Linear(8, 16)
        self.c, self.d = nn.Linear(16, 20), nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.d(self.c(self.b(self.a(x)).roll(2, 1).relu()).roll(1, -1).topk(20, -1)[0].cumsum(1))


class Doubled(nn.Module):
    """A parametrization: the weight is twice what is stored."""

    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def _parametrized(o: int, i: int) -> nn.Linear:
    layer = nn.Linear(i, o)
    parametrize.register_parametrization(layer, "weight", Doubled())
    return layer


@case(
    SEQUENCE,
    groups={
        "a.parametrizations.weight.original0:0": [16],
        "a.parametrizations.weight.original1:0": [16],
        "b.parametrizations.weight.original:1": [16],
        "b.parametrizations.weight.original:0": [20],
        "c.parametrizations.weight.original:0": [24],
        "d.weight:1": [24],
    },
)
class Parametrized(nn.Module):
    """Weight norm, spectral norm and a user's own parametrization."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = parametrizations.weight_norm(nn.Linear(12, 16)), _parametrized(20, 16)
        self.c, self.d = parametrizations.spectral_norm(nn.Linear(20, 24)), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.d(self.c(self.b(self.a(x).relu()).tanh()).relu())


@case(groups={"a.weight:0": [8], "w:1": [8], "w:0": [10], "c.weight:1": [10]})
class Unfolded(nn.Module):
    """A 3x3 convolution written as a matrix product with windows."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.w, self.c = nn.Conv2d(3, 8, 1), nn.Parameter(torch.randn(10, 72) / 8), nn.Conv2d(10, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        return self.c((self.w @ F.unfold(self.a(x), 3, padding=1)).view(b, 10, h, w))


@case(
    SEQUENCE,
    groups={"t.linear1.weight:0": [24], "t.linear2.weight:0": [16], "e.weight:0": [16], "o.weight:1": [16]},
)
class Encoder(nn.Module):
    """torch's own transformer layer: one stream of 16, four heads of four, 24 hidden units."""

    def __init__(self) -> None:
        super().__init__()
        self.e, self.o = nn.Linear(12, 16), nn.Linear(16, 5)
        self.t = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True, dropout=0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.t(self.e(x)))


@case(SEQUENCE, groups={"q.weight:0": [16], "k.weight:0": [20], "a.k_proj_weight:1": [20], "a.v_proj_weight:1": [20]})
class CrossAttention(nn.Module):
    """torch's attention between two streams of different width."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.o = nn.Linear(12, 16), nn.Linear(12, 20), nn.Linear(16, 5)
        self.a = nn.MultiheadAttention(16, 4, kdim=20, vdim=20, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.q(x), self.k(x).relu()
        return self.o(q + self.a(q, k, k, need_weights=False)[0])


@case(SEQUENCE, groups={"q.weight:0": [8], "v.weight:0": [12], "o.weight:1": [12]})
class LinearAttention(nn.Module):
    """A feature map that is not zero at zero: masked columns must not count."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(12, 8), nn.Linear(12, 8), nn.Linear(12, 12)
        self.o = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        q, k = F.elu(self.q(x)) + 1, F.elu(self.k(x)) + 1
        return self.o(q @ (k.mT @ self.v(x)) / (q @ k.sum(1, keepdim=True).mT))


@case(groups={"a.weight:0": [8], "w:1": [8], "w:0": [12], "c.weight:1": [12]})
class WeightStandardised(nn.Module):
    """Filters of zero mean and unit variance, computed in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.w, self.c = nn.Conv2d(3, 8, 3), nn.Parameter(torch.randn(12, 8, 3, 3)), nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        mean, variance = self.w.mean((1, 2, 3), keepdim=True), self.w.var((1, 2, 3), keepdim=True)
        return self.c(F.conv2d(self.a(x), (self.w - mean) / (variance + 1e-5).sqrt()).relu())


# One set of weights serves both resolutions, so its input and output are the same stream.
@case(groups={"a.weight:0": [12], "shared.weight:0": [12], "shared.weight:1": [12], "o.weight:1": [12]})
class SharedAcrossScales(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.shared, self.o = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 12, 3, padding=1), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.a(x)
        coarse = self.shared(F.avg_pool2d(fine, 2)).relu()
        return self.o((self.shared(fine) + F.interpolate(coarse, scale_factor=2.0)).mean((2, 3)))


@case(groups={"a.weight:0": [12], "mean:1": [12], "offset:0": [12], "o.weight:1": [12]})
class ConstantsPerChannel(nn.Module):
    """Buffers along the channels and constants made in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.o = nn.Conv2d(3, 12, 1), nn.Linear(12, 5)
        self.register_buffer("mean", torch.rand(1, 12, 1, 1) + 0.5)
        self.register_buffer("offset", torch.rand(12, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x) * self.mean + self.offset
        mask = torch.ones(x.shape[1], 1, 1, dtype=torch.bool)
        return self.o(torch.where(mask, x, torch.zeros_like(x)).mean((2, 3)) + x.new_zeros(x.shape[0], x.shape[1]))


@case(groups={"a.weight:0": [8], "b.weight:0": [8], "c.weight:0": [12], "o.weight:1": [12, 8]})
class MultiScale(nn.Module):
    """Two scales added, a third concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 3, 2, padding=1)
        self.c, self.o = nn.Conv2d(3, 12, 5, 4, padding=2), nn.Conv2d(20, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x) + F.interpolate(self.b(x), size=x.shape[2:], mode="bilinear", align_corners=False)
        return self.o(torch.cat([y, F.interpolate(self.c(x), size=x.shape[2:])], 1))


# The softmax runs over the two branches, not over the channels.
@case(groups={"a.weight:0": [12], "b.weight:0": [12], "down.weight:0": [6], "o.weight:1": [12]})
class SelectiveKernel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(3, 12, 5, padding=2)
        self.down, self.up, self.o = nn.Linear(12, 6), nn.Linear(6, 24), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        branches = torch.stack([self.a(x), self.b(x)], 1)
        attention = self.up(self.down(branches.sum(1).mean((2, 3))).relu()).unflatten(1, (2, 12)).softmax(1)
        return self.o((branches * attention[..., None, None]).sum(1).mean((2, 3)))


@case(groups={"b.weight:0": [8]}, frozen={"a.weight:0": "softmax along"})
class SoftmaxOverChannels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.o = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 8, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.b(self.a(x).softmax(1)).mean((2, 3)))


@case(SEQUENCE, groups={"a.weight:0": [12], "direct:0": [], "direct:1": []}, frozen={"b.weight:0": "model output"})
class Outputs(nn.Module):
    """A dictionary of outputs, one of them nested and one a parameter; a layer nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.unused = nn.Linear(12, 12), nn.Linear(12, 5), nn.Linear(12, 99)
        self.direct = nn.Parameter(torch.randn(6, 4))

    def forward(self, x: Tensor) -> dict[str, Any]:
        y = self.b(self.a(x).relu())
        return {"scores": y, "extra": (y.sigmoid(), [self.direct * 2, None])}


class Nested(nn.Module):
    """Inputs in a tuple, a list and a dictionary, one of them None."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.o = nn.Linear(12, 8), nn.Linear(12, 8), nn.Linear(8, 5)

    @staticmethod
    def wrap(x: Tensor) -> Any:
        return x, {"more": [x.flip(1), None]}

    def forward(self, x: Tensor, rest: dict[str, list[Tensor]]) -> Tensor:
        return self.o((self.a(x) + self.b(rest["more"][0])).relu())


case(SEQUENCE, groups={"a.weight:0": [8], "b.weight:0": [8], "o.weight:1": [8]})(Nested)


@case(groups={"b.weight:0": [12]})
class PickedChannels(nn.Module):
    """Channels chosen by a constant list: they may be remapped or stay, but never change places."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.o = nn.Conv2d(3, 12, 1), nn.Conv2d(5, 12, 1), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.b(self.a(x)[:, [7, 0, 3, 11, 4]]).relu().mean((2, 3)))


@case(groups={"a.weight:0": [6], "b.weight:1": [6], "b.weight:0": [16]})
class Flattened(nn.Module):
    """Sixteen positions of each channel next to each other in a linear layer's input."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.o = (
            nn.Conv2d(3, 6, 3, 2, padding=1, padding_mode="circular"),
            nn.Linear(96, 16),
            nn.Linear(16, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.b(self.a(x).reshape(x.shape[0], -1)).relu())


@case(SEQUENCE, groups={"o.weight:1": [10], "a.weight:0": [8]}, frozen={"b.weight:1": "recurrent"})
class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.lstm = nn.Linear(12, 8), nn.LSTM(8, 6, batch_first=True, bidirectional=True)
        self.b, self.o = nn.Linear(12, 10), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.b(self.lstm(self.a(x))[0][:, -1]).relu())


@case(SEQUENCE, groups={"o.weight:1": [10]})
class Bilinear(nn.Module):
    """A product of two inputs and a three-axis weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.o = nn.Linear(12, 8), nn.Linear(12, 6), nn.Bilinear(8, 6, 10), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.c(self.a(x), self.b(x)).relu())


# `squeeze` without an axis: the channels must not disappear when one of them is left.
@case(groups={"a.weight:0": [6], "b.weight:1": [6], "b.weight:0": [12]})
class SqueezedFlat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.o = nn.Conv2d(3, 6, 8), nn.Linear(6, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.b(self.a(x).squeeze()).relu())


@case(groups={"a.weight:0": [8], "b.weight:0": [8], "o.weight:1": [8]})
class Windows(nn.Module):
    """Shifted windows as Swin makes them: roll, partition, mix inside, and back."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.o = nn.Conv2d(3, 8, 1), nn.Linear(8, 8), nn.Linear(8, 5)
        self.mix = nn.Parameter(torch.randn(16, 16) / 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).permute(0, 2, 3, 1).roll((-2, -2), (1, 2))
        b, h, w, c = x.shape
        y = x.view(b, h // 4, 4, w // 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, c)
        y = (self.mix @ self.b(y)).view(b, h // 4, w // 4, 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
        return self.o((x + y.roll((2, 2), (1, 2))).mean((1, 2)))


# A gate written in place through views, and a value kept by a strided write.
@case(groups={"o.weight:1": [6, 6]})
class WrittenThroughViews(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.o = nn.Conv2d(3, 12, 1), nn.Conv2d(6, 6, 1), nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x[:, :6] = self.b(x[:, 6:]).sigmoid()
        x[:, 6:] *= 2
        return self.o(x)
