"""What a user wants left alone, and how far everything else may be cut."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from deploypruner.errors import RecipeError, nearest
from deploypruner.recipe.option import CHANNELS, documented, option

Heads = Literal["auto", "columns", "heads", "both"]
Statistics = Literal["auto", "keep", "prune"]
Depth = Literal["auto", "keep"]
Pieces = Literal["equal", "free"]

HEADS: dict[str, str] = {
    "auto": "whichever there are more of, heads or columns of a head (the same for convolution groups)",
    "columns": "the same columns of every head; all heads stay",
    "heads": "whole heads; their columns stay",
    "both": "heads and columns; the two cuts multiply",
}
STATISTICS: dict[str, str] = {
    "auto": "channels a normalisation averages over stay, unless the budget is out of reach without them",
    "keep": "channels a normalisation averages over always stay",
    "prune": "channels a normalisation averages over are cut like any others",
}
DEPTH: dict[str, str] = {
    "auto": "a budget of time may leave out whole residual branches",
    "keep": "every residual branch stays; only widths change",
}
PIECES: dict[str, str] = {
    "equal": "groups that code cuts out of one tensor in equal parts (chunk) keep equal counts, as that code needs",
    "free": "such groups are cut as their scores say; only the traced graph can then run",
}


@dataclass(frozen=True)
class LayerConstraint:
    """Limits for every group that has a parameter in the modules `match` names; None leaves the general limit.

    Args:
        match: Name of a module or parameter, or a pattern of `*`, `?` and `[..]`; `*` also crosses dots. A module
            stands for everything inside it: "layer1", "layer1.*" and "*.conv2" all do what they look like.
        exclude: Nothing is cut.
        min_width: See `Constraints`.
        step: Widths become multiples of this.
        max_cut: See `Constraints`.
        heads: See `Constraints`.
        cut: Exactly this share of the output channels of these layers goes, 0 <= cut < 1, whatever the scope would
            do; the id of a group, as tables print it, names that group alone; see `given_widths`.
    """

    match: str
    exclude: bool = False
    min_width: int | None = None
    step: int | None = None
    max_cut: float | None = None
    heads: Heads | None = None
    cut: float | None = None

    def __post_init__(self) -> None:
        if not self.match:
            raise RecipeError("match is empty", hint='name a module, for example match = "layer1.*"', keys=("match",))
        _check(self.min_width, self.max_cut, self.step)
        _check_choice("heads", self.heads or "auto", HEADS)
        if self.cut is not None and not 0 <= self.cut < 1:
            raise RecipeError(
                f"the cut of '{self.match}' is the share of its channels that goes, 0 <= cut < 1, got {self.cut:g}",
                hint="0.5 removes half of them",
                keys=("cut",),
            )


@documented
@dataclass(frozen=True)
class Constraints:
    """What may be cut, and how far.

    A group is held by a limit as soon as one of its parameters is: a module that is excluded keeps its inputs and
    outputs. Where several `layers` name one group, the strictest of them counts; they override the limits for all.

    Raises:
        RecipeError: A number out of range or an unknown choice.
    """

    exclude: tuple[str, ...] = option(
        (),
        "Patterns of module names that are left alone, such as 'layer1.*'; repeat.",
        flag="--exclude",
        basic=True,
        metavar="PATTERN",
        group=CHANNELS,
    )
    min_width: int = option(
        1,
        "Number of output channels every layer keeps, at least 1, unless it has fewer already.",
        flag="--min-width",
        metavar="N",
        group=CHANNELS,
    )
    max_cut: float = option(
        0.9,
        "Largest share of a layer's channels that may go, 0 to 1.",
        flag="--max-cut",
        metavar="FRACTION",
        group=CHANNELS,
    )
    heads: Heads = option(
        "auto",
        "Part of an attention (or of a grouped convolution) that is cut; auto: heads or columns, whichever "
        "there are more of.",
        flag="--heads",
        group=CHANNELS,
    )
    statistics: Statistics = option(
        "auto",
        "Fate of channels that a layer norm or group norm averages over; auto: cut only if the budget needs it.",
        flag="--statistics",
        group=CHANNELS,
    )
    depth: Depth = option(
        "auto",
        "Fate of whole residual branches; auto: a budget of time may leave them out, unless a limit names one "
        "of their layers.",
        flag="--depth",
        group=CHANNELS,
    )
    layers: tuple[LayerConstraint, ...] = option(
        (),
        "Limits for some layers, a [[prune.layers]] table each.",
    )
    pieces: Pieces = option(
        "equal",
        "Widths of groups that are the equal parts of one tensor (chunk): equal, so that the model's own code can "
        "cut it again; free, each its own.",
        flag="--pieces",
        group=CHANNELS,
    )

    def __post_init__(self) -> None:
        _check_choice("pieces", self.pieces, PIECES)
        _check(self.min_width, self.max_cut, None)
        _check_choice("heads", self.heads, HEADS)
        _check_choice("statistics", self.statistics, STATISTICS)
        _check_choice("depth", self.depth, DEPTH)


def _check(min_width: int | None, max_cut: float | None, step: int | None) -> None:
    if min_width is not None and min_width < 1:
        raise RecipeError(f"--min-width must be at least 1 channel, got {min_width}", hint="16 keeps layers usable")
    if max_cut is not None and not 0 <= max_cut <= 1:
        raise RecipeError(
            f"--max-cut is the largest share of a layer's channels that may go, 0 to 1, got {max_cut:g}",
            hint="0.8 keeps at least a fifth of every layer",
        )
    if step is not None and step < 1:
        raise RecipeError(f"--step must be at least 1 channel, got {step}", hint="8, 16 or 32 suit int8 kernels")


def _check_choice(name: str, value: str, known: Mapping[str, str]) -> None:
    if value not in known:
        raise RecipeError(f"--{name} cannot be '{value}'", hint=nearest(value, known))
