"""The section of a recipe on channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from deploypruner import registries
from deploypruner.errors import RecipeError
from deploypruner.ranges import check_number
from deploypruner.recipe.budget import Budget
from deploypruner.recipe.constraints import Constraints, Depth, Heads, LayerConstraint, Pieces, Statistics
from deploypruner.recipe.option import (
    CHANNELS,
    SPARSE,
    check_names,
    documented,
    option,
    same,
)
from deploypruner.registries import AUTO, CHANNEL

DEFAULT_MACS = 0.5


@documented
@dataclass(frozen=True)
class PruneRecipe:
    """How channels are chosen.

    At most one of the first three is set; without any, half of the multiply-adds may remain where channels are
    removed, or all that the widths of scope "recipe" leave.
    """

    latency: float | str | None = same(Budget, "latency")
    speedup: float | None = same(Budget, "speedup")
    macs: float | None = same(Budget, "macs")
    patterns: tuple[str, ...] = option(
        (CHANNEL,),
        "Patterns: channel, a sparse one such as nm64 or 2:4, or both; auto chooses a sparse one for every "
        "layer. See `list patterns`.",
        flag="--pattern",
        basic=True,
        metavar="NAME",
        group=SPARSE,
        commas=True,
        names=registries.patterns,
    )
    criterion: str = option(
        "auto",
        "Criterion that scores channels, see `list criteria`; auto: taylor with data, magnitude without.",
        flag="--criterion",
        basic=True,
        metavar="NAME",
        group=CHANNELS,
        names=registries.criteria,
        also=("auto",),
    )
    parameters: dict[str, float | int | str | bool] = option(
        None,
        "Fields of the criterion, by name.",
        factory=dict,
    )
    normalizer: str = option(
        "auto",
        "Normalizer that makes scores comparable across groups, see `list normalizers`; auto: the criterion's own.",
        flag="--normalizer",
        metavar="NAME",
        group=CHANNELS,
        names=registries.normalizers,
        also=("auto",),
    )
    scope: str = option(
        "global",
        "Scope within which channels compete, see `list scopes`; recipe takes the widths from [[prune.layers]].",
        flag="--scope",
        metavar="NAME",
        group=CHANNELS,
        names=registries.scopes,
    )
    step: int = option(
        8,
        "Number of channels that widths become multiples of, at least 1.",
        flag="--step",
        metavar="N",
        group=CHANNELS,
    )
    exclude: tuple[str, ...] = same(Constraints, "exclude")
    min_width: int = same(Constraints, "min_width")
    max_cut: float = same(Constraints, "max_cut")
    heads: Heads = same(Constraints, "heads")
    statistics: Statistics = same(Constraints, "statistics")
    depth: Depth = same(Constraints, "depth")
    channels: Literal["auto", "scores", "readers"] = option(
        "auto",
        "Channels of a width that stay: scores, those of the highest; readers, those that layers solved anew "
        "miss most; auto: readers where layers are reconstructed and no criterion was named.",
        flag="--channels",
        group=CHANNELS,
    )
    pieces: Pieces = same(Constraints, "pieces")
    layers: tuple[LayerConstraint, ...] = same(Constraints, "layers")
    samples: int = option(
        512,
        "Number of training samples a criterion that needs data looks at, at least 1.",
    )
    batch_size: int = option(
        32,
        "Number of samples per scoring minibatch, at least 1.",
    )

    def __post_init__(self) -> None:
        check_number("--step", self.step, least=1, hint="8, 16 or 32 suit int8 kernels")
        check_number("prune.samples", self.samples, least=1, hint="512 is plenty")
        check_number("prune.batch_size", self.batch_size, least=1, hint="32 suits most models")
        if self.latency is None and self.speedup is None and self.macs is None:
            object.__setattr__(self, "macs", self._default_macs)
        timed, auto = self.macs is None, AUTO in self.patterns
        if CHANNEL in self.patterns and auto and timed:
            raise RecipeError(
                f"{self.budget} can be met by removing channels or by zeros, and --pattern says both",
                hint=f"give --macs for the channels and --sparsity for the zeros, or --pattern {CHANNEL} or {AUTO}",
            )
        if CHANNEL not in self.patterns and self.macs != 1 and not (auto and timed):
            raise RecipeError(
                f"a budget of {self.budget} removes channels, and --pattern says {', '.join(self.patterns)}",
                hint=f"add {CHANNEL} to --pattern, or leave out the budget",
            )
        _ = self.constraints, self.budget  # checks them
        check_names(self)

    @property
    def _default_macs(self) -> float:
        decided = CHANNEL in self.patterns and self.scope != "recipe"
        return DEFAULT_MACS if decided else 1.0

    @property
    def budget(self) -> Budget:
        """What the compiled model may cost."""
        return Budget(macs=self.macs, latency=self.latency, speedup=self.speedup)

    @property
    def constraints(self) -> Constraints:
        """What may be cut, and how far."""
        return Constraints(
            exclude=self.exclude,
            min_width=self.min_width,
            max_cut=self.max_cut,
            heads=self.heads,
            statistics=self.statistics,
            depth=self.depth,
            pieces=self.pieces,
            layers=self.layers,
        )
