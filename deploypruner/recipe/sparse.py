"""What a recipe says about sparse weights."""

from __future__ import annotations

from dataclasses import dataclass

from deploypruner.errors import RecipeError, nearest
from deploypruner.recipe.option import SPARSE, check_names, documented, option
from deploypruner.registries import schedules

KINDS = {
    "1x1": "convolutions with a 1x1 kernel",
    "conv": "all other convolutions",
    "linear": "linear layers",
    "stem": "layers that read the model's input",
    "depthwise": "convolutions with one input channel per output",
    "classifier": "layers that no other layer comes after",
}
DISTRIBUTIONS = {
    "global": "one threshold for the whole network: layers that matter little lose more",
    "uniform": "the same sparsity in every layer",
}


@documented
@dataclass(frozen=True)
class SparseSettings:
    """How a sparse pattern is filled; [sparse] in a recipe. Embeddings, norms and biases stay dense always.

    Raises:
        RecipeError: A value out of range, or an unknown name.
    """

    sparsity: float | None = option(
        None,
        "Share of the chosen layers' weights that become zero, in (0, 1); N:M says its own. With auto: the time"
        " of 1x4 at this share.",
        flag="--sparsity",
        metavar="FRACTION",
        shown="0.8",
        group=SPARSE,
    )
    schedule: str = option(
        "auto",
        "Schedule by which weights become zero, see `list sparse-schedules`; auto: gradual where there is training, "
        "one-shot where there is none.",
        flag="--sparse-schedule",
        metavar="NAME",
        group=SPARSE,
        names=schedules,
        to="weights",
        also=("auto",),
    )
    distribution: str = option(
        "global",
        '"global" or "uniform", see `patterns.distribution`.',
    )
    layers: tuple[str, ...] = option(
        ("1x1", "conv", "linear"),
        "Kinds of layers that become sparse: 1x1, conv, linear, stem, depthwise, classifier.",
        flag="--sparse-layers",
        metavar="KIND",
        group=SPARSE,
        commas=True,
    )
    only: tuple[str, ...] = option(
        (),
        "Patterns of module names, the only ones that become sparse; repeat.",
        flag="--sparse-only",
        metavar="PATTERN",
        group=SPARSE,
    )
    exclude: tuple[str, ...] = option(
        (),
        "Patterns of module names that stay dense; repeat.",
        flag="--sparse-exclude",
        metavar="PATTERN",
        group=SPARSE,
    )
    start: float = option(
        0.1,
        "Share of the training before the first weight goes.",
    )
    reached: float = option(
        0.6,
        "Share of the training after which the full sparsity is reached.",
    )
    held: float = option(
        0.8,
        "Share of the training after which masks stay as they are; not before `reached`.",
    )
    every: int = option(
        10,
        "Steps between two choices of masks in the gradual schedule.",
    )
    temperature: float = option(
        0.04,
        "Temperature of the soft masks of pdp, in variances of a layer's weights.",
    )
    hardness: float = option(
        20.0,
        "Hardness of the soft masks of dtp when they are made hard: how many temperatures lie between a "
        "typical weight and the threshold.",
    )

    def __post_init__(self) -> None:
        check_names(self)
        if self.sparsity is not None and not 0 < self.sparsity < 1:
            raise RecipeError(
                f"--sparsity is the share of weights that become zero, between 0 and 1, got {self.sparsity:g}",
                hint="0.8 leaves a fifth of the weights",
            )
        if self.distribution not in DISTRIBUTIONS:
            hint = nearest(self.distribution, DISTRIBUTIONS)
            raise RecipeError(f"no distribution called '{self.distribution}'", hint=hint, keys=("distribution",))
        if not self.layers:
            raise RecipeError("--sparse-layers names nothing", hint=f"known: {', '.join(KINDS)}")
        for kind in self.layers:
            if kind not in KINDS:
                raise RecipeError(f"no kind of layer called '{kind}'", hint=nearest(kind, KINDS), keys=("layers",))
        if not 0 <= self.start < self.reached <= self.held <= 1:
            raise RecipeError(
                "sparse.start, sparse.reached and sparse.held are shares of the training in this order, got "
                f"{self.start:g}, {self.reached:g} and {self.held:g}",
                hint="0.1, 0.6 and 0.8 suit most models",
            )
        for name, value in (("every", self.every), ("temperature", self.temperature), ("hardness", self.hardness)):
            if not value > 0:
                raise RecipeError(f"sparse.{name} must be positive, got {value:g}", hint="leave it out")
