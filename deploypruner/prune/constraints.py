"""What a user wants left alone, and how far everything else may be cut: the widths each group may take."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import ceil, gcd, lcm
from typing import Literal

from deploypruner.errors import PlanError, RecipeError, nearest
from deploypruner.graph import Graph
from deploypruner.records import Group

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
NARROW = "too narrow"
STATISTICS_NOTE = "statistics"
_OUTER = ("heads", "conv groups", "norm groups")


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
            do; see `given_widths`.
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
            raise RecipeError(
                "a [[prune.layers]] table has an empty match", hint='name a module, for example match = "layer1.*"'
            )
        _check(self.min_width, self.max_cut, self.step)
        _check_choice("heads", self.heads or "auto", HEADS)
        if self.cut is not None and not 0 <= self.cut < 1:
            raise RecipeError(
                f"the cut of '{self.match}' is the share of its channels that goes, 0 <= cut < 1, got {self.cut:g}",
                hint="0.5 removes half of them",
            )


@dataclass(frozen=True)
class Constraints:
    """What may be cut, and how far.

    A group is held by a limit as soon as one of its parameters is: a module that is excluded keeps its inputs and
    outputs. Where several `layers` name one group, the strictest of them counts; they override the limits for all.

    Args:
        exclude: Patterns as in `LayerConstraint.match`; nothing of what they name is cut.
        min_width: Output channels every layer keeps, unless it has fewer already.
        max_cut: Largest share of a layer's channels that may go, 0 <= max_cut <= 1.
        heads: Where attention heads (or the groups of a convolution) and the columns inside them can both be cut,
            which of them are: see `HEADS`.
        statistics: What becomes of channels that a layer norm or group norm averages over, where removing a channel
            is not the same as zeroing it: see `STATISTICS`.
        depth: Whether whole residual branches may go under a budget of time, see `DEPTH`. A branch with an excluded
            or limited layer stays.
        layers: Limits for some layers.
        pieces: What becomes of groups that are the equal parts of one tensor, see `PIECES`.

    Raises:
        RecipeError: A number out of range or an unknown choice.
    """

    exclude: tuple[str, ...] = ()
    min_width: int = 1
    max_cut: float = 0.9
    heads: Heads = "auto"
    statistics: Statistics = "auto"
    depth: Depth = "auto"
    layers: tuple[LayerConstraint, ...] = ()
    pieces: Pieces = "equal"

    def __post_init__(self) -> None:
        _check_choice("pieces", self.pieces, PIECES)
        _check(self.min_width, self.max_cut, None)
        _check_choice("heads", self.heads, HEADS)
        _check_choice("statistics", self.statistics, STATISTICS)
        _check_choice("depth", self.depth, DEPTH)


@dataclass(frozen=True)
class Limit:
    """How far one group may be cut.

    Args:
        unit: Widths are multiples of this, in channels of the group.
        least: Smallest width.
        whole: Why the group is left whole, in a few words, "" where it is not.
    """

    unit: int
    least: int
    whole: str = ""

    @property
    def held(self) -> bool:
        """Is it left whole by a decision, not only for being too narrow?"""
        return bool(self.whole) and self.whole != NARROW

    def narrower(self, size: int) -> range:
        """Widths below `size` the group may be cut to, widest first."""
        if self.whole:
            return range(0)
        least = -(-max(self.least, 1) // self.unit) * self.unit
        return range((size - 1) // self.unit * self.unit, least - 1, -self.unit)


def find_limits(graph: Graph, constraints: Constraints, *, step: int, statistics: bool) -> dict[str, Limit]:
    """How far each group may be cut.

    Args:
        graph: The traced model.
        constraints: What the user wants.
        step: Widths become multiples of this, counted in output channels of the layers concerned.
        statistics: Whether groups that change a normalisation's statistics may be cut.

    Returns:
        Group id -> limit.

    Raises:
        RecipeError: A pattern that matches nothing; the nearest name is offered.
    """
    rules = [*(LayerConstraint(pattern, exclude=True) for pattern in constraints.exclude), *constraints.layers]
    mine = tables_of(graph, rules)
    whole = {
        group.id: _whole(graph, group, mine[group.id], (constraints.heads, statistics)) for group in graph.groups
    }
    sizes = {group.id: group.size for group in graph.groups}
    limits = {}
    for group in graph.groups:
        free = [] if whole[group.id] else [sizes[p] for p in group.partners if not whole[p]]
        limits[group.id] = Limit(
            unit=_unit(group, mine[group.id], step, free),
            least=_least(group, mine[group.id], constraints, len(free)),
            whole=whole[group.id],
        )
        if not limits[group.id].whole and not limits[group.id].narrower(group.size):
            limits[group.id] = Limit(limits[group.id].unit, group.size, NARROW)
    return limits


def tables_of(
    graph: Graph, tables: Sequence[LayerConstraint], *, outputs: bool = False
) -> dict[str, list[LayerConstraint]]:
    """Group id -> the tables that name one of its parameters.

    Args:
        graph: The traced model.
        tables: In their order.
        outputs: Only where the channels are the output of the layer that is named.

    Raises:
        RecipeError: A pattern that matches nothing; the nearest name is offered.
    """
    matching = parameters_named(graph, [table.match for table in tables])
    made = {
        (s.names[0], axis) for s in graph.labelling.state.values() for axis, r in s.roles.items() if r == "producer"
    }
    found = {}
    for group in graph.groups:
        names = {m.parameter for m in group.members if not outputs or (m.parameter, m.axis) in made}
        found[group.id] = [table for table in tables if names & matching[table.match]]
    return found


def check_widths(graph: Graph, widths: Mapping[str, int]) -> None:
    """Make sure that widths a user asks for exist.

    Raises:
        PlanError: No group of that name (the nearest is offered), or a width it cannot have.
    """
    sizes = {group.id: group.size for group in graph.groups}
    for group_id, width in widths.items():
        if group_id not in sizes:
            raise PlanError(f"this model has no group '{group_id}'", hint=_offer(group_id, list(sizes)))
        if not 1 <= width <= sizes[group_id]:
            raise PlanError(
                f"'{group_id}' has {sizes[group_id]} channels, {width} of them cannot stay",
                hint=f"give a width from 1 to {sizes[group_id]}",
            )


def outputs_per_channel(group: Group) -> int:
    """How many output channels of a layer one channel stands for: 12 for a column of 12 heads."""
    return min((m.index.shape[1] for m in group.members if m.axis == 0), default=1)


def _whole(graph: Graph, group: Group, rules: Sequence[LayerConstraint], general: tuple[Heads, bool]) -> str:
    heads, statistics = general
    excluded = next((rule.match for rule in rules if rule.exclude), None)
    if excluded is not None:
        return f"excluded by '{excluded}'"
    if group.changes_statistics and not statistics:
        return STATISTICS_NOTE
    choice = next((rule.heads for rule in reversed(rules) if rule.heads is not None), heads)
    if not group.partners or choice == "both":
        return ""
    spared = group.secondary if choice == "auto" else (choice == "columns") == (group.kind in _OUTER)
    return f"its {graph.group(group.partners[0]).kind} are cut" if spared else ""


def _unit(group: Group, rules: Sequence[LayerConstraint], step: int, free: Sequence[int]) -> int:
    """A channel may stand for several output channels (a column of a grouped convolution); the step counts those."""
    step = lcm(*steps) if (steps := [rule.step for rule in rules if rule.step is not None]) else step
    per_channel = outputs_per_channel(group)
    if group.kind not in _OUTER:
        for size in free:  # the number of heads is not fixed: count on one
            per_channel = max(1, per_channel // size)
    return step // gcd(step, per_channel)


def _least(group: Group, rules: Sequence[LayerConstraint], constraints: Constraints, partners: int) -> int:
    """Channels that stay. What a layer keeps is a product where partners are cut too: each gets its root."""
    cuts = [rule.max_cut for rule in rules if rule.max_cut is not None] or [constraints.max_cut]
    widths = [rule.min_width for rule in rules if rule.min_width is not None] or [constraints.min_width]
    share = max(1 - min(cuts), min(1.0, max(widths) / (group.size * outputs_per_channel(group))))
    return max(1, ceil(group.size * share ** (1 / (partners + 1)) - 1e-9))


# ---------------------------------------------------------------------- names


def parameters_named(graph: Graph, patterns: Sequence[str]) -> dict[str, set[str]]:
    """Pattern -> parameters it names, as they are called in members.

    Raises:
        RecipeError: It names none.
    """
    if not patterns:
        return {}
    inside = {
        state.names[0]: {part for name in state.names for part in _parts(name)}
        for state in graph.labelling.state.values()
    }
    found = {}
    for pattern in patterns:
        found[pattern] = {name for name, parts in inside.items() if any(fnmatchcase(p, pattern) for p in parts)}
        if not found[pattern]:
            modules = sorted({part for parts in inside.values() for part in parts} - inside.keys())
            raise RecipeError(f"no module of this model matches '{pattern}'", hint=_offer(pattern, modules))
    return found


def _parts(name: str) -> list[str]:
    """ "a.b.weight" -> "a", "a.b" and "a.b.weight"."""
    pieces = name.split(".")
    return [".".join(pieces[:end]) for end in range(1, len(pieces) + 1)]


def _offer(name: str, known: Sequence[str]) -> str:
    """The nearest known name; there are too many to list them all."""
    close = difflib.get_close_matches(name.strip("*."), known, n=1, cutoff=0.3)
    return f"did you mean '{close[0]}'?" if close else "`deploypruner plan` lists the groups and their layers"


# ---------------------------------------------------------------------- checks


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
