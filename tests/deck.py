"""One card for every operator the dependency graph knows.

A card turns `[B, C, H, W]` into another image; `tests.dealt` makes small random networks of them. To cover a new
rule, add a card.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

aten = torch.ops.aten
SIDE = 8
DECK: dict[str, Callable[[int], nn.Module]] = {}


class Plain(nn.Module):
    """A function of the image."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Weighted(nn.Module):
    """A function of the image, a matrix `[C, C]` and a vector `[C]`."""

    def __init__(self, function: Callable[[Tensor, Tensor, Tensor], Tensor], channels: int) -> None:
        super().__init__()
        self.function = function
        self.w = nn.Parameter(torch.randn(channels, channels) / math.sqrt(channels))
        self.v = nn.Parameter(torch.rand(channels) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.w, self.v)


class Tokens(nn.Module):
    """Layers on `[B, H * W, C]`."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, x.shape[2:])


class Attention(nn.Module):
    """Two heads over the pixels, with separate projections or one for all three."""

    def __init__(self, channels: int, *, fused: bool) -> None:
        super().__init__()
        self.qkv = nn.ModuleList(nn.Linear(channels, channels * n) for n in ([3] if fused else [1, 1, 1]))
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        if len(self.qkv) == 1:
            q, k, v = self.qkv[0](x).reshape(b, n, 3, 2, c // 2).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            q, k, v = (f(x).view(b, n, 2, c // 2).transpose(1, 2) for f in self.qkv)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(b, n, c))


def card(name: str) -> Callable[[Callable[[int], nn.Module]], Callable[[int], nn.Module]]:
    def add(make: Callable[[int], nn.Module]) -> Callable[[int], nn.Module]:
        assert name not in DECK, f"two cards called {name}"
        DECK[name] = make
        return make

    return add


def plain(**functions: Callable[[Tensor], Tensor]) -> None:
    for name, function in functions.items():
        card(name)(functools.partial(lambda f, _: Plain(f), function))


def weighted(**functions: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    for name, function in functions.items():
        card(name)(functools.partial(Weighted, function))


def layers(**makers: Callable[[int], nn.Module]) -> None:
    for name, make in makers.items():
        card(name)(make)


def pooled(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, C]."""
    return x.mean((2, 3))


def gate(x: Tensor, scale: Tensor) -> Tensor:
    """Multiply channels by `scale` of any shape whose product is B * C."""
    return x * scale.sigmoid().reshape(x.shape[0], x.shape[1], 1, 1)


class Squared(nn.Module):
    """A bilinear layer of the tokens with themselves."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layer = nn.Bilinear(channels, channels, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, x.tanh())


class Recurrent(nn.Module):
    """A layer that reads the tokens one after the other."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


class Positions(nn.Module):
    """A table of positions, read by index."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.table = nn.Embedding(SIDE * SIDE, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table(torch.arange(x.shape[1]))


class SqueezeExcite(nn.Module):
    """A gate per channel, computed from all of them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, 8, 1), nn.Conv2d(8, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.up(self.down(F.adaptive_avg_pool2d(x, 1)).relu()).sigmoid()


layers(
    linear=lambda c: Tokens(nn.Linear(c, 2 * c), nn.GELU(), nn.Linear(2 * c, c)),
    grouped=lambda c: nn.Conv2d(c, 2 * c, 3, padding=1, groups=4),
    depthwise=lambda c: nn.Sequential(nn.Conv2d(c, c, 5, padding=2, groups=c), nn.ReLU6()),
    multiplied=lambda c: nn.Conv2d(c, 2 * c, 3, padding=1, groups=c),
    dilated=lambda c: nn.Conv2d(c, 8, 3, padding=2, dilation=2, padding_mode="circular"),
    reflected=lambda c: nn.Conv2d(c, c, 3, padding=1, padding_mode="reflect", stride=2),
    conv1d=lambda c: nn.Sequential(nn.Flatten(2), nn.Conv1d(c, 12, 3, padding=1), nn.Unflatten(2, (SIDE, SIDE))),
    conv3d=lambda c: nn.Sequential(
        nn.Unflatten(1, (c, 1)), nn.Conv3d(c, 8, (1, 3, 3), padding=(0, 1, 1)), Plain(lambda x: x.squeeze(2))
    ),
    deconv1d=lambda c: nn.Sequential(nn.Flatten(2), nn.ConvTranspose1d(c, 8, 1), nn.Unflatten(2, (SIDE, SIDE))),
    deconv2d=lambda c: nn.ConvTranspose2d(c, 12, 2, 2, groups=4),
    deconv3d=lambda c: nn.Sequential(nn.Unflatten(1, (c, 1)), nn.ConvTranspose3d(c, 8, 1), nn.Flatten(1, 2)),
    attention=lambda c: Tokens(Attention(c, fused=False)),
    fused_attention=lambda c: Tokens(Attention(c, fused=True)),
    dropout=lambda c: nn.Sequential(
        nn.Dropout(0.2), nn.Dropout2d(0.1), nn.AlphaDropout(0.1), nn.FeatureAlphaDropout(0.1)
    ),
    activations=lambda c: nn.Sequential(
        nn.Hardswish(), nn.Mish(), nn.Hardtanh(), nn.Softplus(), nn.LogSigmoid(), nn.RReLU()
    ),
    in_place=lambda c: nn.Sequential(
        nn.ReLU(inplace=True),
        nn.BatchNorm2d(c),
        nn.SiLU(inplace=True),
        nn.BatchNorm2d(c),
        nn.Hardsigmoid(inplace=True),
    ),
    prelu=lambda c: nn.Sequential(nn.PReLU(c), nn.PReLU()),
    glu=lambda c: nn.GLU(1),
    pixel_shuffle=lambda c: nn.PixelShuffle(2),
    pixel_unshuffle=lambda c: nn.PixelUnshuffle(2),
    channel_shuffle=lambda c: nn.Sequential(nn.ChannelShuffle(2), nn.Conv2d(c, c, 1)),
    batch_norm=lambda c: nn.Sequential(nn.BatchNorm2d(c), nn.ELU()),
    batch_norm_1d=lambda c: nn.Sequential(
        nn.Flatten(), nn.BatchNorm1d(c * SIDE * SIDE), nn.Unflatten(1, (c, SIDE, SIDE))
    ),
    instance_norm=lambda c: nn.InstanceNorm2d(c, affine=True),
    layer_norm=lambda c: Tokens(nn.LayerNorm(c)),
    layer_norm_3d=lambda c: nn.LayerNorm((c, SIDE, SIDE)),
    rms_norm=lambda c: Tokens(nn.RMSNorm(c)),
    group_norm=lambda c: nn.GroupNorm(2, c),
    layer_norm_2d=lambda c: nn.GroupNorm(1, c),
    weight_norm=lambda c: parametrizations.weight_norm(nn.Conv2d(c, 8, 3, padding=1)),
    spectral_norm=lambda c: parametrizations.spectral_norm(nn.Conv2d(c, 8, 1)),
    bilinear=lambda c: Tokens(Squared(c)),
    gated_recurrent=lambda c: Tokens(
        Recurrent(nn.LSTM(c, 8, num_layers=2, batch_first=True)), nn.Linear(8, c), Recurrent(nn.GRU(c, 8))
    ),
    recurrent=lambda c: Tokens(
        Recurrent(nn.RNN(c, 4, bidirectional=True)), nn.Linear(8, c), Recurrent(nn.RNN(c, 8, nonlinearity="relu"))
    ),
    embedding=lambda c: Tokens(Positions(c)),
    pools=lambda c: nn.Sequential(
        nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(3), nn.Upsample(scale_factor=2, mode="bilinear")
    ),
    more_pools=lambda c: nn.Sequential(
        nn.AvgPool2d(3, 1, 1), nn.LPPool2d(2, 2), nn.ReplicationPad2d(1), nn.AdaptiveMaxPool2d(5)
    ),
    flatten=lambda c: nn.Sequential(
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * c, 20), nn.Unflatten(1, (20, 1, 1))
    ),
    squeeze_excite=SqueezeExcite,
)


weighted(
    convolution=lambda x, w, v: aten.convolution(x, w[..., None, None], v, [1, 1], [0, 0], [1, 1], False, [0, 0], 1),
    matmul=lambda x, w, v: (w @ x.flatten(2)).reshape(x.shape),
    bmm=lambda x, w, v: torch.bmm(x.flatten(2), torch.bmm(x.flatten(2).mT, x.flatten(2)).softmax(-1)).view_as(x),
    mm=lambda x, w, v: gate(x, torch.mm(pooled(x), w)),
    mv=lambda x, w, v: x * torch.mv(w, v)[:, None, None] / torch.dot(v, v),
    addmm=lambda x, w, v: gate(x, torch.addmm(v, pooled(x), w)),
    baddbmm=lambda x, w, v: torch.baddbmm(v[:, None], w.expand(x.shape[0], -1, -1), x.flatten(2)).reshape(x.shape),
    einsum=lambda x, w, v: torch.einsum("bchw,oc->bohw", x, w),
    scaled=lambda x, w, v: torch.where(x > 0, x, v[:, None, None] * x).lerp(x.tanh(), 0.5),
    direct_weight_norm=lambda x, w, v: F.conv2d(x, torch._weight_norm(w[..., None, None], v.view(-1, 1, 1, 1), 0)),
    weight_norm_interface=lambda x, w, v: F.conv2d(
        x, torch._weight_norm_interface(w, v[:, None], 0)[0][..., None, None]
    ),
    standardised=lambda x, w, v: F.conv2d(
        x, ((w - w.mean(1, keepdim=True)) / w.std(1, keepdim=True))[..., None, None], v
    ),
    t=lambda x, w, v: F.conv2d(x, w.t()[..., None, None]),
    numpy_t=lambda x, w, v: F.conv2d(x, w.T[..., None, None]),
    adjoint=lambda x, w, v: F.conv2d(x, w.adjoint()[..., None, None]),
    hermitian=lambda x, w, v: F.conv2d(F.conv2d(x, w.mH[..., None, None]), w.H[..., None, None]),
)
plain(
    length=lambda x: x.reshape(len(x), -1).reshape(len(x), *x.shape[1:]),
    same=lambda x: (
        aten.lift_fresh_copy(aten.alias(aten._to_copy(x.positive().contiguous().clone().detach().type_as(x))))
        .mT.contiguous()
        .mT
    ),
    casts=lambda x: x.double().to(torch.float32),
    zeros=lambda x: (
        x + torch.zeros(x.shape[0], *x.shape[1:]) + torch.ones(x.shape[1], 1, 1) * torch.full((x.shape[1], 1, 1), 0.5)
    ),
    new_zeros=lambda x: torch.cat([x.new_zeros(x.shape), x.new_ones(x.shape) * x, x + x.new_full(x.shape, 2.0)], 1),
    empty=lambda x: x * torch.empty(x.shape[1:]).fill_(0.5) + x.new_empty(x.shape).zero_(),
    like=lambda x: torch.zeros_like(x) + torch.ones_like(x).masked_fill(x > 0, 2.0) * x + torch.full_like(x, 0.5),
    random=lambda x: x + 0 * torch.rand(x.shape) * torch.randn(x.shape[1:]) * torch.rand_like(x),
    grid=lambda x: (
        x + sum(torch.meshgrid(*map(torch.arange, x.shape[2:]), indexing="ij")) + torch.eye(x.shape[2], x.shape[3])
    ),
    arange=lambda x: x + torch.arange(x.shape[3]) + torch.linspace(0, 1, x.shape[2])[:, None],
    slice=lambda x: torch.cat([x[:, 2:], x[:, :2].relu(), x[:, 1::2]], 1),
    slice_write=lambda x: (y := x.clone(), y[:, :4].mul_(2), y[:, 4:].copy_(y[:, 4:].tanh()), y)[-1],
    select=lambda x: x * x[:, 1:2].sigmoid() + x[:, 2].unsqueeze(1),
    unbind=lambda x: torch.stack(x.unbind(1)[::-1], 1) + x.mean((2, 3), keepdim=True),
    index=lambda x: x[:, torch.tensor([3, 1, 2, 0, 4, 5, 1])],
    index_select=lambda x: x.index_select(1, torch.tensor([3, 1, 2, 0, 4, 5, 1])),
    gather=lambda x: x.gather(2, x.argsort(2)),
    native_shuffle=lambda x: torch.cat([x, torch.native_channel_shuffle(x.detach(), 4)], 1),
    shuffle=lambda x: x.view(-1, 4, x.shape[1] // 4, *x.shape[2:]).transpose(1, 2).reshape(x.shape),
    unfold=lambda x: F.fold(F.unfold(x, 3, padding=1), x.shape[2:], 3, padding=1),
    windows=lambda x: x.unfold(2, 2, 2).unfold(3, 2, 2).amax((4, 5)),
    reductions=lambda x: gate(
        x, x.amax((2, 3)) - x.amin((2, 3)) + x.var((2, 3)) + x.std((2, 3)) + x.logsumexp((2, 3))
    ),
    norms=lambda x: gate(x, aten.norm(x, 2, [2, 3]) + torch.linalg.vector_norm(x, dim=(2, 3)) + x.prod(2).prod(2)),
    pairs=lambda x: gate(
        x, sum(t.sum(2) for t in (*torch.var_mean(x, 3), *torch.std_mean(x, 3), x.max(3)[0], x.min(3)[0]))
    ),
    truths=lambda x: x * ((x > 0).any(3, keepdim=True) | (x > 0).all(2, keepdim=True)) + x.maximum(-x),
    channel_statistic=lambda x: x * x.mean(1, keepdim=True).sigmoid() + x.amax(1, keepdim=True),
    response_norm=lambda x: x * (g := x.norm(dim=(2, 3), keepdim=True)) / (g.mean(1, keepdim=True) + 1.0),
    softmax=lambda x: x * x.softmax(2) + aten._softmax(x, 3, False) + x.log_softmax(-1),
    channel_softmax=lambda x: x * x.softmax(1),
    cumulative=lambda x: x.cumsum(2) + x.cumprod(3) + x.logcumsumexp(3) + x.diff(dim=2, prepend=x[:, :, :1]),
    ordered=lambda x: (
        x.roll(1, 2) + x.flip(3) + x.sort(3)[0] + x.topk(x.shape[3], 3)[0] + (x.argmax(2) - x.argmin(2)).unsqueeze(2)
    ),
    medians=lambda x: (
        x - x.median(2, keepdim=True)[0] + x.kthvalue(2, 3, keepdim=True)[0] + x.round().mode(3, keepdim=True)[0]
    ),
    rolled_channels=lambda x: x.roll(1, 1),
    views=lambda x: aten._unsafe_view(x.contiguous().view(x.shape[0], -1), x.shape).reshape_as(x).view_as(x),
    axes=lambda x: (
        x.swapaxes(1, 2).swapdims(1, 3).movedim(1, 2).moveaxis((1, 3), (2, 1)).transpose(2, 3).mT.permute(0, 3, 2, 1)
    ),
    space_to_depth=lambda x: (
        x.reshape(x.shape[0], -1, x.shape[2] // 2, 2, x.shape[3] // 2, 2).permute(0, 1, 3, 5, 2, 4).flatten(1, 3)
    ),
    depth_to_space=lambda x: x.unflatten(1, (2, 2, -1)).permute(0, 3, 4, 1, 5, 2).flatten(2, 3).flatten(3, 4),
    expand=lambda x: (
        (m := x.amax((2, 3), keepdim=True)).expand(x.shape) + m.expand_as(x) + m.broadcast_to(x.shape) * x
    ),
    repeat=lambda x: torch.cat([x.repeat(1, 2, 1, 1), x.tile(1, 1, 1, 1), x.repeat_interleave(2, 1)], 1),
    splits=lambda x: torch.cat(
        [
            a := x.split(4, 1)[1],
            x.chunk(2, 1)[0],
            *x.split_with_sizes([1, x.shape[1] - 1], 1),
            a.tensor_split(2, 1)[1],
        ],
        1,
    ),
    unsafe_splits=lambda x: torch.concat([*torch.unsafe_split(x, 4, 1)[:2], *torch.unsafe_chunk(x, 2, 1)], 1),
    joins=lambda x: torch.concatenate([x, torch.stack([x, -x], 2).amax(2)], 1),
    stacks=lambda x: torch.column_stack([torch.hstack([x, x.tanh()]), -x]),
    stacks_of_rows=lambda x: torch.row_stack([torch.vstack([y := x.transpose(0, 1), y.tanh()]), -y]).transpose(0, 1),
    pad=lambda x: aten.constant_pad_nd(F.pad(x, (1, 1, 0, 0, 2, 2)), [0, 0, 0, 0, 1, 0]),
    squeezed=lambda x: x.mean(3, keepdim=True).squeeze(3).unsqueeze(-1) + x,
    einops=lambda x: (
        x.reshape(x.shape[0], 2, -1, 4, x.shape[2] // 4, *x.shape[3:])
        .permute(0, 2, 4, 3, 1, 5)
        .flatten(3, 4)
        .flatten(1, 2)
    ),
)
