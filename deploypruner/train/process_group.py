"""Processes that train one model together: each takes its share of every batch, and gradients are averaged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deploypruner.errors import InputError
from deploypruner.losses import labels_at
from deploypruner.train.batches import Batch


class Team:
    """A team of one: everything stays as it is.

    Attributes:
        rank: Which of the processes this is; only rank 0 writes, validates and reports.
        size: How many there are.
    """

    rank: int = 0
    size: int = 1

    def mean(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over the processes, in place and to the same bits on each."""

    def share(self, batch: Batch) -> tuple[Batch, float]:
        """Samples of a batch that are for this process, and what its mean loss weighs in the mean over the processes.

        Every weighted mean over the processes is the mean over the whole batch, also where shares are unequal.
        """
        if self.size == 1:
            return batch, 1.0
        inputs, labels = batch
        whole = len(inputs[0])
        mine = torch.arange(whole).tensor_split(self.size)[self.rank]
        own = tuple(x[mine] for x in inputs), labels_at(labels, mine)
        return own, len(mine) * self.size / whole

    def mean_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Average the gradients of whatever has one."""
        if self.size > 1:
            self.mean([p.grad for p in parameters if p.grad is not None])

    def same(self, number: int, what: str) -> None:
        """Make sure that a number is the same on every process.

        Raises:
            InputError: It is not.
        """
        if self.size == 1:
            return
        mean = torch.tensor([float(number), float(number) ** 2], dtype=torch.float64)
        self.mean([mean])
        if abs(float(mean[1] - mean[0] ** 2)) > 1e-9:
            raise InputError(
                f"the processes disagree about {what}: {number} on rank {self.rank}, {float(mean[0]):g} on average",
                hint="give every host the same data, and a folder they all share or an empty one",
            )


class FabricTeam(Team):
    """The processes that Lightning Fabric started.

    Args:
        fabric: A launched `lightning_fabric.Fabric`.
    """

    def __init__(self, fabric: Any) -> None:
        self._fabric = fabric
        self.rank = fabric.global_rank
        self.size = fabric.world_size

    def mean(self, tensors: Sequence[Tensor]) -> None:
        """Average all tensors of one type in one message."""
        for dtype in dict.fromkeys(t.dtype for t in tensors):
            alike = [t for t in tensors if t.dtype == dtype]
            flat = torch.cat([t.detach().reshape(-1) for t in alike]).to(self._fabric.device)
            averaged = self._fabric.all_reduce(flat, reduce_op="mean")
            for tensor, part in zip(alike, averaged.split([t.numel() for t in alike]), strict=True):
                tensor.detach().copy_(part.view_as(tensor))
