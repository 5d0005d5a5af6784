"""Follow channels through the node graph that torch-pruning finds by autograd.

torch-pruning expands one pruning group after another by walking its graph from a root layer. Here every channel of
every layer walks along each edge once, and channels that meet are tied: the same closure in linear time. An
operator without parameters has no size of its own; the atoms that reach it pass on.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from deploypruner.graph.labels.atoms import Atoms

Port = tuple[Any, Any]  # a torch-pruning node and the pruning function of its input or output channels


@dataclass
class Ports:
    """Channels at the inputs and outputs of every node.

    Args:
        atoms: The algebra.
        index_type: torch-pruning's pair of an index here and the index it came from.

    Attributes:
        at: Port -> index -> atom.
        sized: Ports of layers; no channel can be added there.
        reached: Atoms of layer ports that another layer, or the output, shares.
    """

    atoms: Atoms
    index_type: Any
    at: dict[Port, dict[int, int]] = field(default_factory=dict)
    sized: set[Port] = field(default_factory=set)
    reached: set[int] = field(default_factory=set)
    lost: set[int] = field(default_factory=set)
    _links: list[tuple[int, int]] = field(default_factory=list)

    def seed(self, port: Port, size: int) -> None:
        """Give a layer's port channels of its own; one of a single channel can never shrink and is left out."""
        self.sized.add(port)
        labels = self.atoms.fresh(size)
        self.at[port] = {} if labels is None else dict(enumerate(labels[:, 0].tolist()))

    def walk(self) -> None:
        """Carry every atom as far as it goes, then tie all that met."""
        waiting = deque((port, list(known)) for port, known in self.at.items())
        while waiting:
            (node, function), indices = waiting.popleft()
            here = self.at[node, function]
            for edge in node.dependencies:
                if not indices or not edge.is_triggered_by(function):
                    continue
                fresh = self._cross(here, edge, indices)
                if fresh:
                    waiting.append(((edge.target, edge.handler), fresh))
        if self._links:
            left, right = np.array(self._links).T
            self.atoms.unify(left[:, None], right[:, None], "channels of two layers that meet")
        lost = np.array(sorted(self.lost), dtype=np.int64)
        self.atoms.freeze(lost[:, None] if len(lost) else None, "a shape change that autograd tracing cannot follow")

    def _cross(self, here: dict[int, int], edge: Any, indices: list[int]) -> list[int]:
        """Carry indices along one edge; returns those that are new where they arrive."""
        moved = [self.index_type(idx=i, root_idx=i) for i in indices]
        for mapping in edge.index_mapping:
            if mapping is not None:
                moved = mapping(moved)
        port = (edge.target, edge.handler)
        there = self.at.setdefault(port, {})
        fresh = []
        for index, root in moved:
            if root is None:
                self.lost.update(here.values())
            elif index in there:
                if here[root] != there[index]:
                    self._links.append((here[root], there[index]))
                    self.reached.update((here[root], there[index]))
            elif port in self.sized:
                if there:  # a single channel is broadcast over the others
                    self.lost.add(here[root])
            else:
                there[index] = here[root]
                fresh.append(index)
        return fresh
