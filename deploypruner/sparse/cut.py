"""Minimum cuts of small networks, found anew cheaply when one capacity changes."""

from __future__ import annotations

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
        free[keep] += self._endless()
        return self._flow + self._augmented(free)

    def source_side(self) -> set[int]:
        """Nodes on the source's side of a minimum cut: the smallest such set."""
        self._settle()
        return {node for node, level in enumerate(self._levels(self._free)) if level >= 0}

    def _settle(self) -> None:
        if not self._free:
            endless = self._endless()
            self._free = [endless if capacity is None else capacity for capacity in self._capacity]
            self._flow = 0
        self._flow += self._augmented(self._free)

    def _endless(self) -> int:
        """More than all finite capacities together."""
        return sum(filter(None, self._capacity)) + 1

    def _augmented(self, free: list[int]) -> int:
        """Push what still can be pushed; how much that was."""
        pushed = 0
        while True:
            levels = self._levels(free, stop=True)
            if levels[SINK] < 0:
                return pushed
            pushed += self._saturate(levels, free)

    def _levels(self, free: list[int], *, stop: bool = False) -> list[int]:
        """Distance of every node from the source along edges that are not full, -1 out of reach.

        Args:
            free: What the flow leaves.
            stop: Leave out nodes no nearer than the sink.
        """
        to, edges = self._to, self._edges
        levels = [-1] * len(edges)
        levels[SOURCE] = 0
        reached, distance = [SOURCE], 0
        while reached and not (stop and levels[SINK] >= 0):
            distance += 1
            further = []
            for place in reached:
                for index in edges[place]:
                    if free[index] > 0:
                        target = to[index]
                        if levels[target] < 0:
                            levels[target] = distance
                            further.append(target)
            reached = further
        return levels

    def _saturate(self, levels: list[int], free: list[int]) -> int:
        """Dinic's blocking flow: push along shortest paths until none is left; how much in all."""
        to, edges = self._to, self._edges
        tried = [0] * len(edges)
        path: list[int] = []
        place, total = SOURCE, 0
        while True:
            if place == SINK:
                pushed = min([free[index] for index in path])
                for index in path:
                    free[index] -= pushed
                    free[index ^ 1] += pushed
                path, place, total = [], SOURCE, total + pushed
                continue
            while tried[place] < len(edges[place]):
                index = edges[place][tried[place]]
                if free[index] > 0 and levels[to[index]] == levels[place] + 1:
                    break
                tried[place] += 1
            else:
                if not path:
                    return total
                place = to[path.pop() ^ 1]
                tried[place] += 1
                continue
            path.append(index)
            place = to[index]
