"""Widths that a recipe says outright: the share of each layer's channels that goes."""

from __future__ import annotations

from dataclasses import dataclass

from deploypruner.channels.constraints import find_limits, tables_of
from deploypruner.graph import Graph
from deploypruner.recipe.constraints import Constraints


@dataclass(frozen=True)
class GivenWidths:
    """What the `cut` of [[prune.layers]] tables comes to.

    Args:
        widths: Group id -> channels that stay.
        remarks: Where that is not what was asked for, one sentence each.
    """

    widths: dict[str, int]
    remarks: tuple[str, ...]


def given_widths(graph: Graph, constraints: Constraints, *, step: int) -> GivenWidths:
    """The widths of all groups that a `cut` names; where several tables name one group the smallest cut counts.

    A table names the groups that are the output of its layers, so that a list of layers and shares, as papers print
    it, says what it looks like. Layers whose outputs are added share one group.

    The share that goes is rounded so that the width is a multiple of the step, and a group keeps at least one step
    of channels (or all it has). Only what may be cut at all is: not what is excluded, and what a normalisation
    averages over with `statistics = "prune"` only.

    Args:
        graph: The traced model.
        constraints: With the tables.
        step: As in `allocate`.

    Raises:
        RecipeError: A pattern matches nothing.
    """
    tables = [table for table in constraints.layers if table.cut is not None]
    if not tables:
        return GivenWidths({}, ())
    limits = find_limits(graph, constraints, step=step, statistics=constraints.statistics == "prune")
    widths, remarks = {}, []
    for group, mine in tables_of(graph, tables, outputs=True).items():
        cuts = [table.cut for table in mine if table.cut is not None]
        if not cuts:
            continue
        limit, size = limits[group], graph.group(group).size
        if limit.held:
            remarks.append(f"'{group}' stays whole in spite of its cut of {min(cuts):g}: {limit.whole}")
            continue
        stay = size - round(min(cuts) * size)
        least = min(size, limit.unit)
        widths[group] = min(size, max(least, round(stay / limit.unit) * limit.unit))
        if stay < least == widths[group]:
            remarks.append(
                f"a cut of {min(cuts):g} would leave {stay} of {size} channels of '{group}'; it keeps {least}, the "
                f"least that --step {step} allows"
            )
    return GivenWidths(widths, tuple(remarks))
