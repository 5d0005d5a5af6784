"""What a recipe says about sparse weights."""

from __future__ import annotations

from dataclasses import dataclass

from deploypruner.errors import RecipeError, nearest
from deploypruner.patterns import Pattern
from deploypruner.patterns.distribution import DISTRIBUTIONS

KINDS = {
    "1x1": "convolutions with a 1x1 kernel",
    "conv": "all other convolutions",
    "linear": "linear layers",
    "stem": "layers that read the model's input",
    "depthwise": "convolutions with one input channel per output",
    "classifier": "layers that no other layer comes after",
}


@dataclass(frozen=True)
class Assigned:
    """What one layer was assigned under "auto".

    Args:
        pattern: One whose sparsity is chosen.
        sparsity: Share of the layer's weights that become zero, in (0, 1).
    """

    pattern: Pattern
    sparsity: float


@dataclass(frozen=True)
class SparseSettings:
    """How a sparse pattern is filled; [sparse] in a recipe. Embeddings, norms and biases stay dense always.

    Args:
        sparsity: Share of the chosen layers' weights that become zero, in (0, 1). None: what the pattern's name says
            (2:4), else 0.8.
        schedule: Registered name, or "auto": gradual where there is training, one-shot where there is none.
        distribution: "global" or "uniform", see `patterns.distribution`.
        layers: Kinds of layers that become sparse, see `KINDS`.
        only: Patterns of module names (as in `prune.constraints`); only layers they name, all where empty.
        exclude: Patterns of module names; layers that stay dense.
        start: Share of the training before the first weight goes.
        reached: Share of the training after which the full sparsity is reached.
        held: Share of the training after which masks stay as they are; not before `reached`.
        every: Steps between two choices of masks in the gradual schedule.
        temperature: Of the soft masks of pdp, in variances of a layer's weights.
        hardness: How decided the soft masks of dtp are when they are made hard: how many temperatures lie between a
            typical weight and the threshold.

    Raises:
        RecipeError: A value out of range, or an unknown name.
    """

    sparsity: float | None = None
    schedule: str = "auto"
    distribution: str = "global"
    layers: tuple[str, ...] = ("1x1", "conv", "linear")
    only: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    start: float = 0.1
    reached: float = 0.6
    held: float = 0.8
    every: int = 10
    temperature: float = 0.04
    hardness: float = 20.0

    def __post_init__(self) -> None:
        if self.sparsity is not None and not 0 < self.sparsity < 1:
            raise RecipeError(
                f"--sparsity is the share of weights that become zero, between 0 and 1, got {self.sparsity:g}",
                hint="0.8 leaves a fifth of the weights",
            )
        if self.distribution not in DISTRIBUTIONS:
            hint = nearest(self.distribution, DISTRIBUTIONS)
            raise RecipeError(f"no distribution called '{self.distribution}'", hint=hint)
        if not self.layers:
            raise RecipeError("--sparse-layers names nothing", hint=f"known: {', '.join(KINDS)}")
        for kind in self.layers:
            if kind not in KINDS:
                raise RecipeError(f"no kind of layer called '{kind}'", hint=nearest(kind, KINDS))
        if not 0 <= self.start < self.reached <= self.held <= 1:
            raise RecipeError(
                "sparse.start, sparse.reached and sparse.held are shares of the training in this order, got "
                f"{self.start:g}, {self.reached:g} and {self.held:g}",
                hint="0.1, 0.6 and 0.8 suit most models",
            )
        for name, value in (("every", self.every), ("temperature", self.temperature), ("hardness", self.hardness)):
            if not value > 0:
                raise RecipeError(f"sparse.{name} must be positive, got {value:g}", hint="leave it out")
