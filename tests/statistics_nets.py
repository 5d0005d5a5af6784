"""Small networks whose channels are averaged, compared, multiplied or divided by: what plain masking gets wrong."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

IMAGE, SEQUENCE = (2, 3, 8, 8), (2, 7, 12)


class LayerNorms(nn.Module):
    """A residual stream under layer norms, with and without an affine part."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.o = nn.Linear(12, 16), nn.Linear(16, 16), nn.Linear(16, 5)
        self.first, self.last = nn.LayerNorm(16), nn.LayerNorm(16, elementwise_affine=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.o(self.last(x + self.b(self.first(x)).cos()))


class RootMeanSquare(nn.Module):
    """torch's RMS norm, and one written out."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.o = nn.Linear(12, 16), nn.RMSNorm(16), nn.Linear(16, 5)
        self.scale = nn.Parameter(torch.rand(16))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.a(x).exp())
        return self.o(x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.scale)


class GroupNorms(nn.Module):
    """Groups that shrink as a whole and groups that lose columns."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.o = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 12, 1), nn.Conv2d(12, 4, 1)
        self.four, self.one = nn.GroupNorm(4, 16), nn.GroupNorm(1, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.one(self.b(self.four(self.a(x)).sigmoid())).sigmoid())


class GlobalResponse(nn.Module):
    """ConvNeXt V2: a norm over space, divided by its mean over channels, written in place."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.o = nn.Linear(3, 16), nn.Linear(16, 4)
        self.gamma, self.beta = nn.Parameter(torch.rand(16)), nn.Parameter(torch.rand(16))

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x.permute(0, 2, 3, 1)).exp()
        size = x.norm(p=2, dim=(1, 2), keepdim=True)
        size.div_(size.mean(-1, keepdim=True) + 1e-6)
        return self.o(torch.addcmul(self.beta, self.gamma, x * size) + x)


class Standardised(nn.Module):
    """Weights standardised over their inputs: by a batch norm (NFNet) and by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.o = (
            nn.Conv2d(3, 16, 3),
            nn.Conv2d(16, 12, 1),
            nn.Conv2d(12, 10, 3),
            nn.Conv2d(10, 4, 1),
        )
        self.gain = nn.Parameter(torch.rand(12) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).cos()
        w = self.b.weight
        w = F.batch_norm(w.reshape(1, 12, -1), None, None, weight=self.gain, training=True).reshape_as(w)
        x = F.conv2d(x, w, self.b.bias).cos()
        variance, mean = torch.var_mean(self.c.weight, dim=(1, 2, 3), keepdim=True)
        return self.o(F.conv2d(x, (self.c.weight - mean) * torch.rsqrt(variance + 1e-5), self.c.bias))


class InstanceNorms(nn.Module):
    """Statistics over space only."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 16, 3), nn.InstanceNorm2d(16, affine=True)
        self.b, self.o = nn.Conv2d(16, 12, 1), nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(F.instance_norm(self.b(self.norm(self.a(x)).cos())))


class ChannelAttention(nn.Module):
    """The mean and the maximum over channels say where to look (CBAM)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.gate, self.o = nn.Conv2d(3, 16, 3), nn.Conv2d(2, 1, 3, padding=1), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).exp()
        largest, _ = x.max(dim=1, keepdim=True)
        return self.o(x * self.gate(torch.cat([x.mean(1, keepdim=True), largest], 1)).sigmoid())


class LinearAttention(nn.Module):
    """elu(q) + 1 is one where q is zero, and q and k meet in a product of computed tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(12, 24), nn.Linear(12, 24), nn.Linear(12, 24), nn.Linear(24, 5))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (p(x).unflatten(-1, (4, 6)).transpose(1, 2) for p in (self.q, self.k, self.v))
        q, k = F.elu(q) + 1, F.elu(k) + 1
        y = q @ (k.transpose(-1, -2) @ v) / (q @ k.sum(-2).unsqueeze(-1) + 1e-6)
        y = y + F.scaled_dot_product_attention(q, k, v)
        return self.o(y.transpose(1, 2).flatten(2))


class FlatHeads(nn.Module):
    """Batch and heads on one axis, under a batched product and a layer norm."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(12, 24), nn.Linear(12, 24), nn.Linear(12, 24), nn.Linear(24, 5))
        self.norm = nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (p(x).view(b, n, 4, 6).transpose(1, 2).reshape(b * 4, n, 6) for p in (self.q, self.k, self.v))
        y = torch.bmm(torch.bmm(self.norm(q).exp(), k.exp().transpose(1, 2)) / 50, v)
        return self.o(y.view(b, 4, n, 6).transpose(1, 2).reshape(b, n, 24))


class Divided(nn.Module):
    """A masked divisor leaves 0 / 0 in a channel that is gone."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.o = nn.Linear(12, 16), nn.Linear(16, 5)
        self.scale = nn.Parameter(torch.rand(16) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.a(x) / self.scale)


class Softplus(nn.Module):
    """A parametrisation that is not zero at zero."""

    def forward(self, x: Tensor) -> Tensor:
        return F.softplus(x)


class Parametrised(nn.Module):
    """Computed weights, and a fixed projection kept in a buffer: no masked parameter zeroes the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.o = nn.Linear(12, 16), nn.Linear(16, 14), nn.Linear(8, 5)
        parametrize.register_parametrization(self.b, "weight", Softplus())
        self.register_buffer("projection", torch.randn(14, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.b(self.a(x).cos()).cos() @ self.projection)


class Casts(nn.Module):
    """Part of the work in float32, whatever the rest is in."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.o = nn.Linear(12, 16), nn.LayerNorm(16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).to(torch.float32)
        x = x + torch.zeros(x.shape[-2], 16, dtype=torch.float32)
        return self.o(self.norm(x.float()))


class Words(nn.Module):
    """Token ids, a mask by keyword, and two outputs of different size."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm, self.o = nn.Embedding(20, 16), nn.LayerNorm(16), nn.Linear(16, 5)

    def forward(self, ids: Tensor, *, mask: Tensor) -> dict[str, Tensor]:
        x = self.norm(self.table(ids) * mask.unsqueeze(-1))
        return {"logits": self.o(x), "small": 1e-6 * self.o(x).sum((1, 2))}


STATISTICS_NETS: dict[str, tuple[type[nn.Module], tuple[int, ...]]] = {
    "layer norm": (LayerNorms, SEQUENCE),
    "rms norm": (RootMeanSquare, SEQUENCE),
    "group norm": (GroupNorms, IMAGE),
    "global response": (GlobalResponse, IMAGE),
    "weight standardisation": (Standardised, IMAGE),
    "instance norm": (InstanceNorms, IMAGE),
    "channel attention": (ChannelAttention, IMAGE),
    "linear attention": (LinearAttention, SEQUENCE),
    "flat heads": (FlatHeads, SEQUENCE),
    "divided": (Divided, SEQUENCE),
    "parametrised": (Parametrised, SEQUENCE),
    "casts": (Casts, SEQUENCE),
}


def make_statistics(name: str) -> tuple[nn.Module, Tensor]:
    """A network in eval mode whose scales and shifts matter, and two samples."""
    cls, shape = STATISTICS_NETS[name]
    return settled(cls), torch.randn(shape, generator=torch.Generator().manual_seed(1))


def settled(cls: type[nn.Module]) -> nn.Module:
    """An instance in eval mode, the same on every call, with no scale of one and no shift of zero."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = cls()
        with torch.no_grad():
            for parameter in net.parameters():
                if parameter.ndim == 1:
                    parameter += 0.3 * torch.rand(parameter.shape)
        return net.eval()
