"""Zeros a model brought along, kept through recovery. No schedule to choose: there is nothing to find."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from deploypruner.graph.execute.module import get_state
from deploypruner.recipe.sparse import SparseSettings
from deploypruner.sparsity.patterns import make_pattern
from deploypruner.sparsity.training import SparseRegime

GIVEN = "given"
"""Pattern of zeros that the user's model brought along."""
# Share of a layer's weights that somebody must have made zero for a purpose.
_ENOUGH = 0.3


class ExistingZeros(SparseRegime):
    """Masks of the weights that are zero when it is made; made before anything moves them.

    Args:
        module: The pruned module.
        weights: Names of its parameters that have zeros worth keeping.
    """

    trains: ClassVar[bool] = False

    def __init__(self, module: nn.Module, weights: Sequence[str]) -> None:
        super().__init__(weights, make_pattern("unstructured"), SparseSettings())
        self._existing = {name: get_state(module, name).detach() != 0 for name in weights}

    def sparsity_of(self, name: str) -> float:
        """Share of zeros there were."""
        return 1 - float(self._existing[name].double().mean())

    def begin(self, student: nn.Module, steps: int) -> None:
        """Fix the masks."""
        self._student, self._steps = student, max(1, steps)
        self.masks = {name: mask.to(get_state(student, name).device) for name, mask in self._existing.items()}
        self.held = True

    def soft(self, name: str, progress: float) -> Tensor:
        """Never called: masks are fixed from the start."""
        raise AssertionError(f"existing masks are hard, {name} at {progress}")


def weights_with_zeros(module: nn.Module, names: Sequence[str]) -> tuple[str, ...]:
    """Those of the parameters that have zeros worth keeping."""
    return tuple(name for name in names if float((get_state(module, name) == 0).float().mean()) >= _ENOUGH)
