"""What timed operations took: key -> sizes and nanoseconds, shared by all layers and models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from deploypruner.graph.labels.atoms import IntArray
from deploypruner.latency.cost_surface import Floats
from deploypruner.latency.nodes import Node, key_of, sizes_of
from deploypruner.runtime import NodeTime


class Points:
    """Timed operations by key.

    Args:
        found: Key -> (sizes, nanoseconds) of each point.
    """

    def __init__(self, found: dict[str, list[tuple[tuple[int, ...], float]]] | None = None) -> None:
        self._found = found or {}

    def copy(self) -> Points:
        """An independent copy."""
        return Points({key: list(points) for key, points in self._found.items()})

    def add(self, key: str, sizes: tuple[int, ...], ns: float) -> None:
        """Add one point."""
        self._found.setdefault(key, []).append((sizes, ns))

    def add_profile(self, nodes: Sequence[Node], times: Sequence[NodeTime], *, only_new: bool = False) -> None:
        """Add the operations of one profile that are among `nodes`.

        Args:
            nodes: Of the model.
            times: Executed operations; those the model does not know are left out.
            only_new: Leave out keys that have points already.
        """
        known = {(node.name, node.sort): node for node in nodes}
        fresh = {node.key for node in nodes if node.key not in self._found}
        for time in times:
            node = known.get((time.name, time.sort))
            if node is not None and (not only_new or node.key in fresh):
                self.add(node.key, sizes_of(time, node.places), time.ns)

    def add_fitting(self, nodes: Sequence[Node], times: Sequence[NodeTime]) -> None:
        """Add the operations of a profile of another file than the probes', whose names say nothing.

        What a key leaves open is sizes that operations of its kind follow, so an operation is a point of every key
        that its sort and its other sizes fit.

        Args:
            nodes: Of the model.
            times: Executed operations; those that fit nowhere are left out.
        """
        kinds: dict[str, dict[str, Node]] = {}
        for node in nodes:
            kinds.setdefault(node.sort, {})[node.key] = node
        for time in times:
            for key, node in kinds.get(time.sort, {}).items():
                if key_of(time, node.places) == key:
                    self.add(key, sizes_of(time, node.places), time.ns)

    def has(self, key: str) -> bool:
        """Is there any point?"""
        return key in self._found

    def count(self, key: str) -> int:
        """How many points a key has."""
        return len(self._found.get(key, ()))

    def of(self, key: str) -> tuple[IntArray, Floats]:
        """Sizes `[n, k]` and nanoseconds `[n]` of a key."""
        points = self._found[key]
        sizes = np.array([sizes for sizes, _ in points], np.int64).reshape(len(points), -1)
        return sizes, np.array([ns for _, ns in points], np.float64)

    def to_json(self) -> Any:
        """JSON form."""
        return {key: [[list(sizes), round(ns, 1)] for sizes, ns in points] for key, points in self._found.items()}

    @staticmethod
    def from_json(document: Any) -> Points:
        """What `to_json` wrote.

        Raises:
            ValueError: It is something else; also TypeError.
        """
        return Points(
            {
                str(key): [(tuple(int(size) for size in sizes), float(ns)) for sizes, ns in points]
                for key, points in document.items()
            }
        )
