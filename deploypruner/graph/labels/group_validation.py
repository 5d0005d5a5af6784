"""Try groups out: a group stays prunable only if removing some of its channels equals masking them.

A front end that guesses an operator's effect from its name in the autograd graph is wrong now and then. Groups are
tried together, and only a failure is halved until its culprits are found, so a model without any costs two trials.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deploypruner.graph.execute.module import get_state
from deploypruner.graph.inputs import Inputs, call, map_tensors, tensors
from deploypruner.graph.labels.atoms import IntArray
from deploypruner.graph.labels.labelling import Labelling
from deploypruner.graph.largest_gap import magnitude, proving_gap
from deploypruner.graph.rewrite.resize import owned_copy

Cut = Callable[[NDArray[np.bool_]], nn.Module]

# Of the largest output; wrong indices give far more.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}


@dataclass
class Trials:
    """Masked against removed, on a few inputs.

    Args:
        module: The dense module in eval mode.
        labelling: Its labels.
        cut: Bool over atoms -> the smaller module.
        cases: Inputs to compare on.
        most: How many trials may be made.
        seconds: How long they may take together; groups that were not tried by then fail.
    """

    module: nn.Module
    labelling: Labelling
    cut: Cut
    cases: Sequence[Inputs]
    most: int = 200
    seconds: float = 40.0

    def __post_init__(self) -> None:
        self.dtype = self._precision()
        self.made = 0
        self.deadline = time.monotonic() + self.seconds

    def failing(self, groups: Sequence[IntArray]) -> list[int]:
        """Positions of the groups that must be frozen; `groups` are the atoms of each."""
        good: list[int] = []
        bad: list[int] = []
        waiting = [list(range(len(groups)))] if groups else []
        while waiting:
            some = waiting.pop()
            if self.made >= self.most or time.monotonic() > self.deadline:
                bad += some
            elif self._passes([groups[i] for i in (*good, *some)]):
                good += some
            elif len(some) == 1:
                bad += some
            else:
                half = len(some) // 2
                waiting += [some[half:], some[:half]]
        return sorted(bad)

    def _passes(self, groups: Sequence[IntArray]) -> bool:
        """Does removing one half of every group equal masking it, and so for the other half?"""
        self.made += 1
        generator = np.random.default_rng(0)
        orders = [generator.permutation(atoms) for atoms in groups]
        halves = [[o[: len(o) // 2] for o in orders], [o[len(o) // 2 :] for o in orders]]
        return all(self._agrees(np.concatenate(half)) for half in halves)

    def _agrees(self, atoms: IntArray) -> bool:
        removed = np.zeros(self.labelling.atoms.count, bool)
        removed[atoms] = True
        masked = masked_copy(self.module, self.labelling, removed, self.dtype)
        try:
            smaller = self.cut(removed).to(self.dtype)
            return all(self._same(masked, smaller, case) for case in self.cases)
        except Exception:  # noqa: BLE001 - a model raises anything when a size is wrong, and that is the answer
            return False

    def _same(self, left: nn.Module, right: nn.Module, case: Inputs) -> bool:
        inputs = map_tensors(lambda t: t.to(self.dtype) if t.is_floating_point() else t, case)
        with torch.no_grad():
            wanted, got = tensors(call(left, inputs)), tensors(call(right, inputs))
        return len(wanted) == len(got) and all(
            a.shape == b.shape and proving_gap(b, a) <= _TOLERANCE[self.dtype] * magnitude(a)
            for a, b in zip(wanted, got, strict=True)
        )

    def _precision(self) -> torch.dtype:
        """float64, or float32 where the model's own code makes float32 tensors."""
        doubled = owned_copy(self.module).double()
        inputs = map_tensors(lambda t: t.double() if t.is_floating_point() else t, self.cases[0])
        try:
            with torch.no_grad():
                call(doubled, inputs)
        except (RuntimeError, TypeError, ValueError):
            return torch.float32
        return torch.float64


def masked_copy(module: nn.Module, labelling: Labelling, removed: NDArray[np.bool_], dtype: torch.dtype) -> nn.Module:
    """A copy in `dtype` with every removed slice of every parameter at zero."""
    masked = owned_copy(module).to(dtype)
    with torch.no_grad():
        for state in labelling.state.values():
            if not isinstance(state.tensor, nn.Parameter):
                continue
            tensor: Tensor = get_state(masked, state.names[0])
            for axis, labels in enumerate(state.axes):
                gone = labelling.atoms.gone(labels, removed)
                if gone is not None:
                    tensor.index_fill_(axis, torch.as_tensor(np.flatnonzero(gone), device=tensor.device), 0)
    return masked
