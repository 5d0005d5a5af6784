"""Drawn shapes, and small networks that learn to say six kinds of things about them.

Everything is made here and seeded, so that anybody's run trains the same networks on the same pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIDE, KINDS, CELLS = 24, 3, 6
"""Pixels of a picture; circles, squares and diamonds; cells of the detector's grid along a side."""


@dataclass(frozen=True)
class Shapes:
    """Pictures with one shape each.

    Args:
        pictures: `[N, 3, SIDE, SIDE]` float32.
        kind: `[N]` int64, 0 to 2.
        size: `[N, 1]` float32, half the width in pixels.
        centre: `[N, 2]` float32, x and y in pixels.
        mask: `[N, SIDE, SIDE]` int64: 0 around the shape, its kind + 1 inside, 255 (not labelled) at its edge.
    """

    pictures: Tensor
    kind: Tensor
    size: Tensor
    centre: Tensor
    mask: Tensor


def shapes(count: int, seed: int) -> Shapes:
    """Draw `count` pictures: a coloured shape on a noisy ground."""
    rng = np.random.default_rng(seed)
    kind, size = rng.integers(0, KINDS, count), rng.uniform(3, 8, count)
    centre = rng.uniform(8, SIDE - 8, (count, 2))
    y, x = np.mgrid[:SIDE, :SIDE]
    dx, dy = (np.abs(axis[None] - centre[:, i, None, None]) for i, axis in enumerate((x, y)))
    far = np.stack([np.hypot(dx, dy), np.maximum(dx, dy), (dx + dy) / 1.3])[kind, np.arange(count)]
    inside = far < size[:, None, None]
    mask = np.where(inside, kind[:, None, None] + 1, 0)
    mask[np.abs(far - size[:, None, None]) < 0.5] = 255
    colour = rng.uniform(0.3, 1.0, (count, 3, 1, 1))
    pictures = np.where(inside[:, None], colour, 0.0) + 0.1 * rng.standard_normal((count, 3, SIDE, SIDE))
    return Shapes(
        torch.from_numpy(pictures.astype(np.float32)),
        torch.from_numpy(kind.astype(np.int64)),
        torch.from_numpy(size[:, None].astype(np.float32)),
        torch.from_numpy(centre.astype(np.float32)),
        torch.from_numpy(mask.astype(np.int64)),
    )


class Block(nn.Module):
    """A residual block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, H, W]` -> the same shape."""
        return F.relu(x + self.norm(self.b(F.relu(self.a(x)))))


def trunk(stride: int = 2) -> nn.Sequential:
    """Pictures -> `[N, 32, SIDE / stride**2, ...]`."""
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1, stride=stride), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, padding=1, stride=stride), nn.BatchNorm2d(32), nn.ReLU()),
        Block(32),
    )


class Vector(nn.Module):
    """One vector for a picture: a number, a yes or no, scores.

    Args:
        width: Of the vector.
        unit: Of length 1?
    """

    def __init__(self, width: int, *, unit: bool = False) -> None:
        super().__init__()
        self.trunk, self.head, self.unit = trunk(), nn.Linear(32 * 9, width), unit
        self.pool = nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, SIDE, SIDE]` -> `[N, width]`."""
        found = self.head(self.pool(self.trunk(x)).flatten(1))
        return F.normalize(found) if self.unit else found


class Segmenter(nn.Module):
    """Scores of ground and kinds at every pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.head = trunk(), nn.Conv2d(32, KINDS + 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, SIDE, SIDE]` -> `[N, KINDS + 1, SIDE, SIDE]`."""
        return F.interpolate(self.head(self.trunk(x)), scale_factor=4.0, mode="bilinear", align_corners=False)


class Detector(nn.Module):
    """A box and scores for each cell of a grid."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.boxes, self.scores = trunk(), nn.Conv2d(32, 4, 1), nn.Conv2d(32, KINDS, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`[N, 3, SIDE, SIDE]` -> boxes `[N, CELLS^2, 4]` (x, y, width, height; pixels), logits `[N, CELLS^2, K]`."""
        found = self.trunk(x)
        return self.boxes(found).flatten(2).transpose(1, 2), self.scores(found).flatten(2).transpose(1, 2)


class TwoHeads(nn.Module):
    """What it is and how large, in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.pool = trunk(), nn.AvgPool2d(2)
        self.kind, self.size = nn.Linear(32 * 9, KINDS), nn.Linear(32 * 9, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """`[N, 3, SIDE, SIDE]` -> scores `[N, KINDS]` and the size `[N, 1]`."""
        found = self.pool(self.trunk(x)).flatten(1)
        return {"kind": self.kind(found), "size": self.size(found)}


@dataclass(frozen=True)
class Case:
    """One kind of network.

    Args:
        make: The untrained network.
        loss: Of its output on samples, for training the dense one.
        labels: What the build is given as labels of samples, None for none.
    """

    make: Callable[[], nn.Module]
    loss: Callable[[Any, Shapes], Tensor]
    labels: Callable[[Shapes], Any]


def _cells(some: Shapes) -> Tensor:
    """The cell that a shape's centre lies in, `[N]`."""
    cell = (some.centre * CELLS / SIDE).long()
    return cell[:, 1] * CELLS + cell[:, 0]


def _detection_loss(output: tuple[Tensor, Tensor], some: Shapes) -> Tensor:
    boxes, scores = output
    rows, cells = torch.arange(len(boxes)), _cells(some)
    wanted = torch.zeros_like(scores)
    wanted[rows, cells, some.kind] = 1
    box = torch.cat([some.centre, 2 * some.size, 2 * some.size], dim=1)
    return F.smooth_l1_loss(boxes[rows, cells], box) + 30 * F.binary_cross_entropy_with_logits(scores, wanted)


def _detection_targets(some: Shapes) -> list[dict[str, Tensor]]:
    box = torch.cat([some.centre, 2 * some.size, 2 * some.size], dim=1)
    return [{"boxes": box[i : i + 1], "labels": some.kind[i : i + 1]} for i in range(len(box))]


def _alike(vectors: Tensor, some: Shapes) -> Tensor:
    """Vectors of one kind together, others apart (supervised contrastive)."""
    near = vectors @ vectors.T / 0.2
    near = near - 1e4 * torch.eye(len(near))
    same = (some.kind[:, None] == some.kind[None]) & ~torch.eye(len(near), dtype=torch.bool)
    return -(near.log_softmax(dim=1) * same).sum() / same.sum()


CASES: dict[str, Case] = {
    "regression": Case(lambda: Vector(1), lambda y, s: F.mse_loss(y, s.size), lambda s: s.size),
    "segmentation": Case(Segmenter, lambda y, s: F.cross_entropy(y, s.mask, ignore_index=255), lambda s: s.mask),
    "detection": Case(Detector, _detection_loss, _detection_targets),
    "embedding": Case(lambda: Vector(16, unit=True), _alike, lambda s: None),
    "binary": Case(
        lambda: Vector(1),
        lambda y, s: F.binary_cross_entropy_with_logits(y[:, 0], (s.kind == 0).float()),
        lambda s: (s.kind == 0).long(),
    ),
    "two heads": Case(
        TwoHeads,
        lambda y, s: F.cross_entropy(y["kind"], s.kind) + F.mse_loss(y["size"], s.size) / 2,
        lambda s: (s.kind, s.size),
    ),
}


def trained(case: Case, data: Shapes, *, epochs: int) -> nn.Module:
    """The network of a case, trained on `data` with Adam."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = case.make()
        optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
        for epoch in range(epochs):
            for group in optimizer.param_groups:
                group["lr"] = 3e-3 * (1 - epoch / epochs)
            for rows in torch.randperm(len(data.kind)).split(64):
                loss = case.loss(net(data.pictures[rows]), taken(data, rows))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return net.eval()


def taken(data: Shapes, rows: Tensor) -> Shapes:
    """Some of the samples."""
    return Shapes(**{name: value[rows] for name, value in vars(data).items()})


def batches(data: Shapes, case: Case, *, size: int = 50) -> list[Any]:
    """A list of batches as a user's loader yields them."""
    found: list[Any] = []
    for rows in torch.arange(len(data.kind)).split(size):
        some = taken(data, rows)
        labels = case.labels(some)
        found.append(some.pictures if labels is None else (some.pictures, labels))
    return found


def names(cases: Iterable[str]) -> list[str]:
    """The cases asked for, all where none is."""
    return list(cases) or list(CASES)
