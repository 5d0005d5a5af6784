"""Small networks that each contain something that has broken a pruning tool."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

IMAGE, SEQUENCE = (2, 3, 16, 16), (2, 7, 12)


def conv_bn(i: int, o: int, k: int = 3, **options: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(i, o, k, padding=k // 2, bias=False, **options), nn.BatchNorm2d(o), nn.ReLU())


class Residual(nn.Module):
    """Projection and identity shortcuts on one stream."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = conv_bn(3, 16), conv_bn(16, 16), conv_bn(16, 24, stride=2)
        self.project = nn.Conv2d(16, 24, 1, stride=2)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.a(x)
        return self.head((self.b(x) + self.project(x)).relu().mean((2, 3)))


class OptionA(nn.Module):
    """CIFAR shortcut: strided slicing and zero-padded channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.o = conv_bn(3, 8), conv_bn(8, 16, stride=2), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
        return self.o((self.b(x) + shortcut).relu().mean((2, 3)))


class Vgg(nn.Module):
    """Channels spread over the inputs of a linear layer by flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.f, self.o = conv_bn(3, 8), nn.Linear(8 * 16, 32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.flatten(F.adaptive_avg_pool2d(self.a(x), 4), 1)
        return self.o(F.dropout(self.f(x), 0.5, self.training).relu())


class SqueezeExcite(nn.Module):
    """Inverted residual: expand, depthwise, squeeze-and-excitation, project (MobileNetV3)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.expand, self.depthwise = conv_bn(3, 8), conv_bn(8, 24, 1), conv_bn(24, 24, groups=24)
        self.squeeze, self.excite = nn.Conv2d(24, 8, 1), nn.Conv2d(8, 24, 1)
        self.project, self.head = nn.Conv2d(24, 8, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = F.hardswish(self.depthwise(self.expand(x)))
        gate = self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1))))
        y = self.project(y * F.hardsigmoid(gate))
        return self.head((x + y).mean((2, 3)))


class Dense(nn.Module):
    """Every layer reads the concatenation of all before it (DenseNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(8 + 8 * i), nn.ReLU(), nn.Conv2d(8 + 8 * i, 8, 3, padding=1))
            for i in range(3)
        )
        self.norm, self.head = nn.BatchNorm2d(32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return self.head(self.norm(x).relu().mean((2, 3)))


class Branches(nn.Module):
    """Parallel branches joined by cat, and a split whose halves go different ways (GoogLeNet, CSP)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = conv_bn(3, 16), conv_bn(16, 8, 1), conv_bn(16, 12)
        self.join, self.left, self.head = conv_bn(20, 16, 1), conv_bn(8, 8), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.join(torch.cat([self.a(x), self.b(x)], 1))
        left, right = x.split(8, 1)
        return self.head(torch.cat([self.left(left), F.max_pool2d(right, 3, 1, 1)], 1).mean((2, 3)))


class Shuffle(nn.Module):
    """Grouped convolutions with channel shuffles, written out and built in."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 24, 3, padding=1), nn.Conv2d(24, 24, 3, groups=4, padding=1)
        self.c, self.d, self.o = nn.Conv2d(24, 24, 1, groups=3), nn.Conv2d(12, 12, 1), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x).relu())
        b, c, h, w = x.shape
        x = self.c(x.view(b, 4, c // 4, h, w).transpose(1, 2).reshape(b, c, h, w))
        p, q = x.chunk(2, 1)
        return self.o(F.channel_shuffle(torch.cat([p, self.d(q)], 1), 2).mean((2, 3)))


class PixelShuffle(nn.Module):
    """Channels become space and back."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Conv2d(32, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.pixel_unshuffle(self.b(F.pixel_shuffle(self.a(x), 2)).relu(), 2))


class Deconv(nn.Module):
    """Grouped transposed convolution, PReLU and a gated linear unit."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3), nn.ConvTranspose2d(16, 24, 2, 2, groups=4)
        self.c, self.p, self.d = nn.ConvTranspose2d(24, 10, 2, 2), nn.PReLU(10), nn.Conv2d(5, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.d(F.glu(self.p(self.c(self.b(self.a(x)))), 1))


class Tied(nn.Module):
    """A weight used by two layers, a buffer along the channels, and a weight computed by weight norm."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(12, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.c.weight = self.b.weight
        self.d = torch.nn.utils.parametrizations.weight_norm(nn.Linear(16, 24))
        self.register_buffer("g", torch.rand(24) + 0.5)
        self.o = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        x = x + self.c(x).tanh() + self.b(x)
        return self.o((self.d(x) * self.g).sigmoid())


class Attention(nn.Module):
    """Query heads that share key heads."""

    def __init__(self) -> None:
        super().__init__()
        self.e, self.q, self.k, self.v = nn.Linear(12, 32), nn.Linear(32, 64), nn.Linear(32, 32), nn.Linear(32, 32)
        self.o, self.h = nn.Linear(64, 32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.e(x)
        q, k, v = (t.unflatten(-1, (-1, 8)).transpose(1, 2) for t in (self.q(x), self.k(x), self.v(x)))
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return self.h((x + self.o(y.transpose(1, 2).flatten(2))).relu())


class Einsum(nn.Module):
    """Attention written with einsum and a three-axis output projection."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(12, 48) for _ in range(3))
        self.w, self.h = nn.Parameter(torch.randn(4, 12, 16)), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.reshape(*t.shape[:2], 4, 12) for t in (self.q(x), self.k(x), self.v(x)))
        scores = torch.einsum("bnhd,bmhd->bhnm", q, k).softmax(-1)
        return self.h(torch.einsum("bhnm,bmhd,hde->bne", scores, v, self.w))


class Unsupported(nn.Module):
    """An LSTM, rolled and sorted channels, a transform: nothing may raise, what they touch stays whole."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.r = nn.Linear(12, 16), nn.LSTM(16, 8, batch_first=True)
        self.b, self.c, self.d, self.o = nn.Linear(8, 20), nn.Linear(20, 20), nn.Linear(20, 24), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.r(self.a(x))
        y = torch.roll(self.b(y), 1, -1)
        values, _ = self.c(y).topk(20, -1)
        return torch.fft.fft(self.o(self.d(values).relu())).real.cumsum(-1)


class InPlace(nn.Module):
    """Writes through views and strided views."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.o = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x[:, :8] = self.b(x[:, :8]).sigmoid()
        x[:, 8:].mul_(2.0)
        y = torch.empty_like(x)
        y[:, ::2] = x[:, 1::2]
        y[:, 1::2] = x[:, ::2]
        return self.o(y.relu_())


NETS: dict[str, tuple[type[nn.Module], tuple[int, ...]]] = {
    "residual": (Residual, IMAGE),
    "option a": (OptionA, IMAGE),
    "vgg": (Vgg, IMAGE),
    "squeeze-excite": (SqueezeExcite, IMAGE),
    "dense": (Dense, IMAGE),
    "branches": (Branches, IMAGE),
    "shuffle": (Shuffle, IMAGE),
    "pixel shuffle": (PixelShuffle, IMAGE),
    "deconv": (Deconv, IMAGE),
    "tied": (Tied, SEQUENCE),
    "attention": (Attention, SEQUENCE),
    "einsum": (Einsum, SEQUENCE),
    "unsupported": (Unsupported, SEQUENCE),
    "in place": (InPlace, IMAGE),
}


def make(name: str, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """A network in eval mode with batch-norm statistics that matter, and two samples."""
    cls, shape = NETS[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = cls()
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 1.5)
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.2)
        return net.eval(), torch.randn(shape)
