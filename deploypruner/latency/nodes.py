"""From profiles of probes to bound operations: which are executed, what they share, and what their sizes follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from deploypruner.graph.labels.atoms import IntArray
from deploypruner.latency.matching import NO_BRANCHES, Branches, Follows, Matcher
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
        presence: Share of the probes in which it was executed, of those that have its branch.
        branch: Axis of the residual branch it belongs to, None where it belongs to none.
    """

    name: str
    kind: str
    key: str
    sizes: tuple[Follows | None, ...]
    places: tuple[tuple[int, int], ...]
    presence: float
    branch: int | None = None

    @staticmethod
    def from_json(found: dict[str, Any]) -> Node:
        """The opposite of `asdict`."""
        sizes = tuple(None if follows is None else Follows(**follows) for follows in found["sizes"])
        places = tuple((int(number), int(axis)) for number, axis in found["places"])
        return Node(**{**found, "sizes": sizes, "places": places})

    @property
    def sort(self) -> str:
        """As `NodeTime.sort`."""
        return self.key.split(" ")[0]

    @property
    def understood(self) -> bool:
        """Always executed, and every size explained?"""
        return self.presence == 1 and None not in self.sizes


def bind(
    seen: Sequence[Sequence[NodeTime]], lengths: IntArray, branches: Branches = NO_BRANCHES, *, warm: int = 0
) -> tuple[Node, ...]:
    """Find out what the operations of a model follow.

    Args:
        seen: Executed operations under each of several plans, the dense one first. Names stay where branches go.
        lengths: `[plans, axes]` lengths of the graph's axes under the same plans.
        branches: Which of the axes are branches.
        warm: Number of the first plan that was timed; those before were only looked at. Counters leave out what takes
            less than they can tell, and first inferences take longer: how often an operation is executed is for
            the timed ones to say, if there are any.
    """
    matcher = Matcher(lengths)
    variants: dict[tuple[object, ...], dict[int, NodeTime]] = {}
    for plan, nodes in enumerate(seen):
        for node in nodes:
            variants.setdefault((node.name, node.sort), {})[plan] = node
    bound = (_bound(found, matcher, lengths, branches, warm=warm) for found in variants.values())
    return tuple(node for node in bound if node.presence)


def _bound(found: dict[int, NodeTime], matcher: Matcher, lengths: IntArray, branches: Branches, *, warm: int) -> Node:
    present, first = list(found), next(iter(found.values()))
    places, follows = [], []
    for number, shape in enumerate(first.shapes):
        for axis in range(len(shape)):
            column = [node.shapes[number][axis] for node in found.values()]
            if len(set(column)) > 1:
                places.append((number, axis))
                follows.append(matcher.find(column, present))
    branch = _branch(present, [f.axis for f in follows if f is not None], lengths, branches)
    there = np.ones(len(lengths), bool) if branch is None else lengths[:, branch] > 0
    first_warm = warm if there[warm:].any() else 0
    times = sum(plan >= first_warm for plan in present)
    return Node(
        name=first.name,
        kind=first.kind,
        key=key_of(first, places),
        sizes=tuple(follows),
        places=tuple(places),
        presence=float(times / np.count_nonzero(there[first_warm:])),
        branch=branch,
    )


def _branch(present: Sequence[int], axes: Sequence[int], lengths: IntArray, branches: Branches) -> int | None:
    """The branch an operation belongs to: whose groups it follows, or without which it is never executed.

    Among plans that drop branches in different combinations, the second is the one with which it is executed most
    often; what is executed in fewer than half of its plans comes and goes for other reasons.
    """
    for axis in axes:
        if axis in branches.inside:
            return branches.inside[axis]
    numbers = list(branches.axes.values())
    kept = lengths[:, numbers] > 0
    needed = kept[list(present)].all(axis=0)
    counts = np.where(needed & ~kept.all(axis=0), kept.sum(axis=0), len(lengths) + 1)
    if not len(counts) or counts.min() > min(len(lengths), 2 * len(present)):
        return None
    return numbers[int(counts.argmin())]


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
