"""Networks people write themselves, as plain modules: what the zoos do not hold.

Each factory takes a width, so that tests can use small ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.models import resnet20


def conv(i: int, o: int, k: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(i, o, k, stride, k // 2, bias=False), nn.BatchNorm2d(o), nn.SiLU())


class UNet(nn.Module):
    """Three levels; the skips are concatenated, one step up is a transposed convolution and one an upsampling."""

    def __init__(self, width: int = 32, classes: int = 4) -> None:
        super().__init__()
        w = width
        self.down = nn.ModuleList([self._pair(3, w), self._pair(w, 2 * w), self._pair(2 * w, 4 * w)])
        self.up2 = nn.ConvTranspose2d(4 * w, 2 * w, 2, 2)
        self.mid = self._pair(4 * w, 2 * w)
        self.up1 = nn.Conv2d(2 * w, w, 1)
        self.last = self._pair(2 * w, w)
        self.head = nn.Conv2d(w, classes, 1)

    @staticmethod
    def _pair(i: int, o: int) -> nn.Sequential:
        return nn.Sequential(conv(i, o), conv(o, o))

    def forward(self, x: Tensor) -> Tensor:  # [B, 3, H, W] -> [B, classes, H, W]
        a = self.down[0](x)
        b = self.down[1](F.max_pool2d(a, 2))
        c = self.down[2](F.max_pool2d(b, 2))
        x = self.mid(torch.cat([b, self.up2(c)], 1))
        x = self.up1(F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False))
        return self.head(self.last(torch.cat([x, a], 1)))


class C2f(nn.Module):
    """Half the channels pass through `n` bottlenecks; every intermediate result is concatenated."""

    def __init__(self, channels: int, n: int) -> None:
        super().__init__()
        self.hidden = channels // 2
        self.enter, self.leave = conv(channels, channels, 1), conv((2 + n) * self.hidden, channels, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(conv(self.hidden, self.hidden), conv(self.hidden, self.hidden)) for _ in range(n)
        )

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.enter(x).chunk(2, 1))
        for block in self.blocks:
            parts.append(parts[-1] + block(parts[-1]))
        return self.leave(torch.cat(parts, 1))


class Yolo(nn.Module):
    """An anchor-free detector with its head: two scales, box distances as distributions, decoded on a grid."""

    BINS = 8

    def __init__(self, width: int = 16, classes: int = 6) -> None:
        super().__init__()
        w = width
        self.stem = nn.Sequential(conv(3, w, stride=2), conv(w, 2 * w, stride=2), C2f(2 * w, 1))
        self.fine = nn.Sequential(conv(2 * w, 4 * w, stride=2), C2f(4 * w, 2))
        self.coarse = nn.Sequential(conv(4 * w, 8 * w, stride=2), C2f(8 * w, 1))
        self.squeeze, self.spread = conv(8 * w, 4 * w, 1), conv(16 * w, 8 * w, 1)
        self.merge = nn.Sequential(conv(12 * w, 4 * w, 1), C2f(4 * w, 1))
        self.boxes = nn.ModuleList(
            nn.Sequential(conv(c, 2 * w), nn.Conv2d(2 * w, 4 * self.BINS, 1)) for c in (4 * w, 8 * w)
        )
        self.scores = nn.ModuleList(
            nn.Sequential(conv(c, 2 * w), nn.Conv2d(2 * w, classes, 1)) for c in (4 * w, 8 * w)
        )
        self.classes = classes

    def forward(self, x: Tensor) -> Tensor:  # [B, 3, H, W] -> [B, positions, 4 + classes]
        fine = self.fine(self.stem(x))
        coarse = self.coarse(fine)
        y = self.squeeze(coarse)
        pooled = [y]
        for _ in range(3):
            pooled.append(F.max_pool2d(pooled[-1], 5, 1, 2))
        coarse = self.spread(torch.cat(pooled, 1))
        fine = self.merge(torch.cat([fine, F.interpolate(coarse, scale_factor=2.0)], 1))
        levels = zip((fine, coarse), self.boxes, self.scores, (8, 16), strict=True)
        return torch.cat([self._decode(box(f), score(f), stride) for f, box, score, stride in levels], 1)

    def _decode(self, box: Tensor, score: Tensor, stride: int) -> Tensor:
        b, _, h, w = box.shape
        bins = torch.arange(self.BINS, dtype=box.dtype, device=box.device)
        distance = box.view(b, 4, self.BINS, h * w).softmax(2).permute(0, 3, 1, 2) @ bins
        ys, xs = torch.meshgrid(
            torch.arange(h, device=box.device) + 0.5, torch.arange(w, device=box.device) + 0.5, indexing="ij"
        )
        centre = torch.stack([xs.flatten(), ys.flatten()], -1)
        corners = torch.cat([centre - distance[..., :2], centre + distance[..., 2:]], -1) * stride
        return torch.cat([corners, score.view(b, self.classes, h * w).mT.sigmoid()], -1)


class LstmClassifier(nn.Module):
    """A projection, two recurrent layers and a classifier on the last step."""

    def __init__(self, width: int = 64, classes: int = 5) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Linear(12, 4 * width), nn.ReLU(), nn.Linear(4 * width, width))
        self.lstm = nn.LSTM(width, width, num_layers=2, batch_first=True)
        self.head = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, classes))

    def forward(self, x: Tensor) -> Tensor:  # [B, T, 12] -> [B, classes]
        y, _ = self.lstm(self.enter(x))
        return self.head(y[:, -1])


class Patches(nn.Module):
    """Reshapes as einops writes them: images to patches, heads out of one projection, patches back to an image.

    "b c (h p) (w q) -> b (h w) (p q c)", "b n (qkv heads d) -> qkv b heads n d", and the way back.
    """

    def __init__(self, width: int = 64, patch: int = 4, heads: int = 4) -> None:
        super().__init__()
        self.patch, self.heads = patch, heads
        self.stem = conv(3, width // 4)
        self.embed = nn.Linear(width // 4 * patch**2, width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.back, self.head = nn.Linear(width, width // 4 * patch**2), nn.Conv2d(width // 4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:  # [B, 3, H, W] -> [B, 2, H, W]
        b, _, height, width = x.shape
        p, h, w = self.patch, height // self.patch, width // self.patch
        x = self.stem(x)
        x = x.reshape(b, -1, h, p, w, p).permute(0, 2, 4, 3, 5, 1).reshape(b, h * w, -1)
        x = self.embed(x)
        q, k, v = self.qkv(x).reshape(b, h * w, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v
        x = x + self.out(y.transpose(1, 2).reshape(b, h * w, -1))
        x = self.back(x + self.mlp(x))
        x = x.reshape(b, h, w, p, p, -1).permute(0, 5, 1, 3, 2, 4).reshape(b, -1, height, width)
        return self.head(x)


@dataclass(frozen=True)
class Net:
    """A factory, and the shape of its input with a batch of one."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]


NETS = {
    "resnet20_option_a": Net(resnet20, (1, 3, 32, 32)),
    "unet": Net(UNet, (1, 3, 64, 64)),
    "yolo": Net(Yolo, (1, 3, 128, 128)),
    "lstm_classifier": Net(LstmClassifier, (1, 10, 12)),
    "einops_patches": Net(Patches, (1, 3, 32, 32)),
}
