"""Minimum cuts of small networks, found anew cheaply when one capacity changes."""

from __future__ import annotations

from collections import deque

SOURCE, SINK = 0, 1


class Network:
    """A flow network over integers from `SOURCE` to `SINK`; an edge of capacity None is never cut.

    A maximum flow (Dinic's) is kept: it stays one where a capacity grows by what the flow does not use, or shrinks by
    that, and everything else begins from it wherever it is still a flow.
    """

    def __init__(self) -> None:
        self._edges: list[list[int]] = [[], []]  # by node: indices into the lists below
        self._to: list[int] = []
        self._capacity: list[int | None] = []
        self._free: list[int] = []  # what the flow leaves; empty where there is none yet
        self._flow = 0

    def node(self) -> int:
        """A new node."""
        self._edges.append([])
        return len(self._edges) - 1

    def edge(self, start: int, end: int, capacity: float | None) -> int:
        """A new edge; its number."""
        number = len(self._to)
        for place, target, free in ((start, end, None if capacity is None else round(capacity)), (end, start, 0)):
            self._edges[place].append(len(self._to))
            self._to.append(target)
            self._capacity.append(free)
        self._free = []
        return number

    def change(self, number: int, capacity: float) -> None:
        """Give an edge of finite capacity another one."""
        before, after = self._capacity[number], round(capacity)
        assert before is not None, "an edge that is never cut has no capacity to change"
        self._capacity[number] = after
        if self._free:
            self._free[number] += after - before
            if self._free[number] < 0:  # the flow no longer fits
                self._free = []

    def value(self, *, keep: int | None = None) -> int:
        """Capacity of a minimum cut, of those that do not cut the edge `keep`."""
        self._settle()
        if keep is None:
            return self._flow
        free = self._free.copy()
        free[keep] += self._endless
        return self._flow + self._augmented(free)

    def source_side(self) -> set[int]:
        """Nodes on the source's side of a minimum cut: the smallest such set."""
        self._settle()
        return set(self._levels(self._free))

    @property
    def _endless(self) -> int:
        """More than all finite capacities together."""
        return sum(capacity or 0 for capacity in self._capacity) + 1

    def _settle(self) -> None:
        if not self._free:
            endless = self._endless
            self._free = [endless if capacity is None else capacity for capacity in self._capacity]
            self._flow = 0
        self._flow += self._augmented(self._free)

    def _augmented(self, free: list[int]) -> int:
        """Push what still can be pushed; how much that was."""
        pushed = 0
        while SINK in (levels := self._levels(free)):
            pushed += self._saturate(levels, free)
        return pushed

    def _levels(self, free: list[int]) -> dict[int, int]:
        """Distance from the source along edges that are not full."""
        levels, queue = {SOURCE: 0}, deque([SOURCE])
        while queue:
            place = queue.popleft()
            for index in self._edges[place]:
                target = self._to[index]
                if free[index] > 0 and target not in levels:
                    levels[target] = levels[place] + 1
                    queue.append(target)
        return levels

    def _saturate(self, levels: dict[int, int], free: list[int]) -> int:
        """Dinic's blocking flow: push along shortest paths until none is left; how much in all."""
        tried = [0] * len(self._edges)
        path: list[int] = []
        place, total = SOURCE, 0
        while True:
            if place == SINK:
                pushed = min(free[index] for index in path)
                for index in path:
                    free[index] -= pushed
                    free[index ^ 1] += pushed
                path, place, total = [], SOURCE, total + pushed
                continue
            while tried[place] < len(self._edges[place]):
                index = self._edges[place][tried[place]]
                if free[index] > 0 and levels.get(self._to[index]) == levels[place] + 1:
                    break
                tried[place] += 1
            else:
                if not path:
                    return total
                place = self._to[path.pop() ^ 1]
                tried[place] += 1
                continue
            path.append(index)
            place = self._to[index]
