"""Least squares for the weights of a convolution or linear layer, from sums that grow batch by batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

CONVOLUTIONS = ("conv1d", "conv2d")


# Strengths of the pull towards no correction, relative to the mean square of an input, and the usual one.
_RIDGES = (0.003, 0.03, 0.3, 3.0, 30.0)
_USUAL = 1
# Rounding of the sums, so that columns that repeat each other can be solved for.
_LEAST = 3e-7


@dataclass
class NormalEquations:
    """X^T X and X^T R of min over D of |R - X D|^2, in float64, for `groups` problems side by side.

    The samples are summed in two halves, so that how strongly to pull towards no correction can be judged on samples
    that a correction has not seen.

    Args:
        groups: G.
        inputs: K, columns of X.
        outputs: O, columns of R.
    """

    groups: int
    inputs: int
    outputs: int

    def __post_init__(self) -> None:
        self._halves = [_Sums.empty(self.groups, self.inputs, self.outputs) for _ in range(2)]

    @property
    def gram(self) -> Tensor:
        """X^T X [G, K, K]."""
        return self._halves[0].gram + self._halves[1].gram

    @property
    def moment(self) -> Tensor:
        """X^T R [G, K, O]."""
        return self._halves[0].moment + self._halves[1].moment

    @property
    def squares(self) -> float:
        """|R|^2."""
        return self._halves[0].squares + self._halves[1].squares

    def add(self, x: Tensor, r: Tensor) -> None:
        """Take in rows `x` [G, n, K] and `r` [G, n, O], those of one sample after those of another."""
        middle = x.shape[1] // 2
        self._halves[0].add(x[:, :middle], r[:, :middle])
        self._halves[1].add(x[:, middle:], r[:, middle:])

    def solve(self, ridge: float | None = None) -> Tensor:
        """D [G, K, O] of min |R - X D|^2 + ridge s |D|^2, where s is the mean of the diagonal of X^T X.

        Small corrections win where the data leave a choice: inputs that never vary, or fewer rows than columns.

        Args:
            ridge: None for the one with which a correction from half of the samples does best on the other half;
                where none does better than no correction, zeros.
        """
        whole = _Sums(self.gram, self.moment, self.squares)
        if ridge is not None:
            return whole.solve(ridge)
        seen, unseen = self._halves
        if not float(seen.gram.diagonal(dim1=1, dim2=2).sum()):
            return whole.solve(_RIDGES[_USUAL])  # a single sample has no other half

        def error(place: int) -> float:
            return unseen.left(seen.solve(_RIDGES[place])) if 0 <= place < len(_RIDGES) else float("inf")

        best, least = _USUAL, error(_USUAL)
        for step in (1, -1):
            while (tried := error(best + step)) < least:
                best, least = best + step, tried
            if best != _USUAL:
                break
        if least >= unseen.squares:
            return torch.zeros_like(whole.moment)
        # Twice the samples need the same pull, not twice as much.
        return whole.solve(0.5 * _RIDGES[best])

    def left(self, solution: Tensor) -> float:
        """|R - X D|^2 of a solution."""
        return _Sums(self.gram, self.moment, self.squares).left(solution)


@dataclass
class _Sums:
    gram: Tensor
    moment: Tensor
    squares: float = 0.0

    @classmethod
    def empty(cls, groups: int, inputs: int, outputs: int) -> _Sums:
        gram = torch.zeros(groups, inputs, inputs, dtype=torch.float64)
        return cls(gram, torch.zeros(groups, inputs, outputs, dtype=torch.float64))

    def add(self, x: Tensor, r: Tensor) -> None:
        # Sums of one batch in the precision of its numbers: float32 errs by 1e-6, the ridge moves them by 1e-2.
        self.gram += (x.mT @ x).double().cpu()
        self.moment += (x.mT @ r).double().cpu()
        self.squares += float(r.double().square().sum())

    def solve(self, ridge: float) -> Tensor:
        diagonal = self.gram.diagonal(dim1=1, dim2=2)
        strength = max(ridge, _LEAST) * diagonal.mean(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
        system = self.gram + torch.diag_embed(strength.expand(-1, self.gram.shape[1]))
        return torch.cholesky_solve(self.moment, torch.linalg.cholesky(system))

    def left(self, solution: Tensor) -> float:
        explained = 2 * (solution * self.moment).sum() - (solution * (self.gram @ solution)).sum()
        return max(0.0, self.squares - float(explained))


def columns(op: str, arguments: dict[str, Any], x: Tensor, positions: Tensor | None) -> Tensor:
    """What the layer multiplies its weights with: rows [G, n, K], n over samples and positions.

    Args:
        op: "linear", "conv1d" or "conv2d".
        arguments: Of the call, by their names in its schema; tensors need only their shape.
        x: Its input.
        positions: Which output positions of each sample to take; None for all.
    """
    if op == "linear":
        rows = x.reshape(len(x), -1, x.shape[-1])
        chosen = rows if positions is None else rows[:, positions]
        return chosen.reshape(1, -1, x.shape[-1])
    two = op == "conv2d"
    weight, groups = arguments["weight"], int(arguments["groups"])
    kernel = tuple(weight.shape[2:]) if two else (1, weight.shape[2])
    stride, dilation = (_pair(arguments[name], two, 1) for name in ("stride", "dilation"))
    padded = F.pad(x if two else x.unsqueeze(2), _padding(arguments["padding"], kernel, dilation, two))
    if positions is None:
        patches = F.unfold(padded, kernel, dilation=dilation, stride=stride)  # [B, C k, L]
    else:  # only what is asked for: all patches of a large image are many times the image
        across = (padded.shape[3] - dilation[1] * (kernel[1] - 1) - 1) // stride[1] + 1
        top, left = (positions // across) * stride[0], (positions % across) * stride[1]
        taps = [
            padded[:, :, top + dilation[0] * i, left + dilation[1] * j]
            for i in range(kernel[0])
            for j in range(kernel[1])
        ]
        patches = torch.stack(taps, dim=2).flatten(1, 2)  # [B, C k, n]
    samples, width, count = patches.shape
    return patches.view(samples, groups, width // groups, count).permute(1, 0, 3, 2).flatten(1, 2)


def outputs(op: str, groups: int, y: Tensor, positions: Tensor | None) -> Tensor:
    """The output of a layer as rows [G, n, O / G] that fit those of `columns`."""
    if op == "linear":
        rows = y.reshape(len(y), -1, y.shape[-1])
        return (rows if positions is None else rows[:, positions]).reshape(1, -1, y.shape[-1])
    flat = y.flatten(2)
    flat = flat if positions is None else flat[:, :, positions]
    samples, width, count = flat.shape
    return flat.view(samples, groups, width // groups, count).permute(1, 0, 3, 2).flatten(1, 2)


def places(op: str, y: Tensor) -> int:
    """How many output positions each sample has."""
    return y[0].numel() // y.shape[-1] if op == "linear" else y[0, 0].numel()


def _pair(value: Any, two: bool, missing: int) -> tuple[int, int]:
    numbers = [value] if isinstance(value, int) else list(value)
    if two:
        return (int(numbers[0]), int(numbers[-1]))
    return (missing, int(numbers[-1]))


def _padding(value: Any, kernel: tuple[int, ...], dilation: tuple[int, int], two: bool) -> list[int]:
    """Left, right, top and bottom, as `F.pad` takes them."""
    if value == "valid":
        return [0, 0, 0, 0]
    if value == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return [total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2]
    height, width = _pair(value, two, 0)
    return [width, width, height, height]
