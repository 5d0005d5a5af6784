"""What a user wants left alone, and how far everything else may be cut: the widths each group may take."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import product
from math import ceil, gcd, lcm

from deploypruner.errors import PlanError, RecipeError
from deploypruner.graph import Graph
from deploypruner.recipe.constraints import Constraints, Heads, LayerConstraint
from deploypruner.records import Group

NARROW = "too narrow"
STATISTICS_NOTE = "statistics"
_RANGE = re.compile(r"\d{1,6}(-\d{1,6})?(,\d{1,6}(-\d{1,6})?)*")
_MOST_OF_A_RANGE = 10_000
_OUTER = ("heads", "conv groups", "norm groups")


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
        outputs: Only where the channels are the output of the layer that is named; and the id of a group names that
            group alone, where a layer's output is of several.

    Raises:
        RecipeError: A pattern that matches nothing; the nearest name is offered.
    """
    matching = parameters_named(graph, [table.match for table in tables])
    made = {
        (s.names[0], axis) for s in graph.labelling.state.values() for axis, r in s.roles.items() if r == "producer"
    }
    known = {group.id for group in graph.groups}
    alone = {table.match: known.intersection(_spelled_ids(table.match)) for table in tables if outputs}
    found = {}
    for group in graph.groups:
        names = {m.parameter for m in group.members if not outputs or (m.parameter, m.axis) in made}
        found[group.id] = [
            table
            for table in tables
            if (group.id in alone[table.match] if alone.get(table.match) else names & matching[table.match])
        ]
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
        spelled = _spelled(pattern)
        found[pattern] = {
            name for name, parts in inside.items() if any(fnmatchcase(p, wanted) for p in parts for wanted in spelled)
        }
        if not found[pattern]:
            modules = sorted({part for parts in inside.values() for part in parts} - inside.keys())
            raise RecipeError(f"no module of this model matches '{pattern}'", hint=_offer(pattern, modules))
    return found


def _spelled(pattern: str) -> list[str]:
    """A name as tables print it, for pasting: without the axis of a group's id, each name of a range by itself.

    "blocks.0-1,3.mlp.weight:0" -> "blocks.0.mlp.weight", "blocks.1.mlp.weight", "blocks.3.mlp.weight".
    """
    pieces = _split_id(pattern)[0].split(".")
    return [".".join(chosen) for chosen in product(*(_numbers(piece) for piece in pieces))]


def _spelled_ids(pattern: str) -> list[str]:
    """The ids of groups that it may be, as tables print them."""
    return [f"{name}{_split_id(pattern)[1]}" for name in _spelled(pattern)]


def _split_id(pattern: str) -> tuple[str, str]:
    """A group's id without its axis and number, and these."""
    bare = re.sub(r"(:\d+)?(#\d+)?$", "", pattern)
    return bare, pattern[len(bare) :]


def _numbers(piece: str) -> list[str]:
    if not _RANGE.fullmatch(piece):
        return [piece]
    found = []
    for span in piece.split(","):
        first, _, last = span.partition("-")
        found += [str(n) for n in range(int(first), min(int(last or first), int(first) + _MOST_OF_A_RANGE) + 1)]
    return found


def _parts(name: str) -> list[str]:
    """ "a.b.weight" -> "a", "a.b" and "a.b.weight"."""
    pieces = name.split(".")
    return [".".join(pieces[:end]) for end in range(1, len(pieces) + 1)]


def _offer(name: str, known: Sequence[str]) -> str:
    """The nearest known name; there are too many to list them all."""
    close = difflib.get_close_matches(name.strip("*."), known, n=1, cutoff=0.3)
    return f"did you mean '{close[0]}'?" if close else "`deploypruner plan` lists the groups and their layers"
