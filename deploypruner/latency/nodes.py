"""From profiles of probes to bound operations: which are executed, what they share, and what their sizes follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from deploypruner.graph.atoms import IntArray
from deploypruner.latency.matching import Follows, Matcher
from deploypruner.runtime import NodeTime


@dataclass(frozen=True)
class Node:
    """An operation of one model, ready to be predicted for any plan.

    Args:
        name: The runtime's.
        kind: What it computes.
        key: What it shares with operations that take equally long at equal sizes: everything but those sizes.
        sizes: What each size that differs between plans follows; None where no axis explains it.
        places: Where these sizes stand: (number of the shape, axis).
        presence: Share of the probes in which it was executed.
    """

    name: str
    kind: str
    key: str
    sizes: tuple[Follows | None, ...]
    places: tuple[tuple[int, int], ...]
    presence: float

    @property
    def sort(self) -> str:
        """As `NodeTime.sort`."""
        return self.key.split(" ")[0]

    @property
    def understood(self) -> bool:
        """Always executed, and every size explained?"""
        return self.presence == 1 and None not in self.sizes


def bind(seen: Sequence[Sequence[NodeTime]], lengths: IntArray) -> tuple[Node, ...]:
    """Find out what the operations of a model follow.

    Args:
        seen: Executed operations under each of several plans, the dense one first.
        lengths: `[plans, axes]` lengths of the graph's axes under the same plans.
    """
    matcher = Matcher(lengths)
    variants: dict[tuple[object, ...], dict[int, NodeTime]] = {}
    for plan, nodes in enumerate(seen):
        for node in nodes:
            variants.setdefault((node.name, node.sort), {})[plan] = node
    return tuple(_bound(found, matcher, len(seen)) for found in variants.values())


def _bound(found: dict[int, NodeTime], matcher: Matcher, plans: int) -> Node:
    present, first = list(found), next(iter(found.values()))
    places, follows = [], []
    for number, shape in enumerate(first.shapes):
        for axis in range(len(shape)):
            column = [node.shapes[number][axis] for node in found.values()]
            if len(set(column)) > 1:
                places.append((number, axis))
                follows.append(matcher.find(column, present))
    return Node(
        name=first.name,
        kind=first.kind,
        key=key_of(first, places),
        sizes=tuple(follows),
        places=tuple(places),
        presence=len(present) / plans,
    )


def key_of(node: NodeTime, places: Sequence[tuple[int, int]]) -> str:
    """Everything but the sizes at `places`, as text."""
    masked = set(places)
    shapes = [
        "x".join("*" if (number, axis) in masked else str(size) for axis, size in enumerate(shape))
        for number, shape in enumerate(node.shapes)
    ]
    return f"{node.sort} {' '.join(shapes)}"


def sizes_of(node: NodeTime, places: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """The sizes at `places`."""
    return tuple(node.shapes[number][axis] for number, axis in places)


def shared(nodes: Sequence[Node]) -> dict[str, list[Node]]:
    """Key -> the operations that share it."""
    ordered = sorted(nodes, key=lambda node: node.key)
    return {key: list(group) for key, group in groupby(ordered, key=lambda node: node.key)}
