"""What a rule writes to: the labels of every tensor so far, and what was recorded about them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch.fx import Node

from deploypruner.graph.execute.module import TracedModule, get_state
from deploypruner.graph.labels.atoms import Labels
from deploypruner.graph.labels.labelling import Affine, Contraction, Labelling, StateTensor
from deploypruner.graph.labels.lazy_axes import Axis, Dissolved, JointAxis
from deploypruner.graph.nodes import size_hint
from deploypruner.records import Role


class Tracing(Labelling):
    """Labels of a graph's tensors while rules are applied to it, node by node.

    Args:
        module: Whose graph it is.
        of: The tracing of the inference graph, where this one is of the graph that runs in training mode.

    Attributes:
        strict: Let a rule that fails raise, instead of freezing what it touches; tests do.
        dissolved: Nodes that pick indices of an axis: an index_select by a constant, or views that turned out to
            be one (channel shuffle).
    """

    strict: ClassVar[bool] = False

    def __init__(self, module: TracedModule, of: Tracing | None = None) -> None:
        super().__init__()
        self.module, self._of = module, of
        self.dissolved: dict[Node, Dissolved] = {}

    def entry(self, tensor: torch.Tensor) -> StateTensor:
        """What is known of a parameter, buffer or constant."""
        if self._of is not None and id(tensor) in self._of.state:
            return self._of.state[id(tensor)]
        return self.state[id(tensor)]

    def raw(self, node: Any) -> list[Axis]:
        """Axis values of a tensor argument, joint axes left as they are."""
        return list(self.values[node])

    def axes(self, node: Any) -> list[Labels]:
        """Labels of a tensor argument, every joint axis forced into product form."""
        return [a.labels() if isinstance(a, JointAxis) else a for a in self.values[node]]

    def unify(self, left: Labels, right: Labels, why: str) -> Labels:
        """Index i of both axes vanishes together."""
        return self.atoms.unify(left, right, why)

    def freeze(self, labels: Labels, why: str) -> None:
        """Nothing on this axis may be removed."""
        self.atoms.freeze(labels, why)

    def freeze_all(self, node: Any, why: str) -> None:
        """Nothing on any axis of any tensor this node holds may be removed."""
        values = self.values.get(node)
        if not isinstance(values, list):
            return
        for value in values:
            for axis in value if isinstance(value, list) else [value]:
                self.freeze(axis.labels() if isinstance(axis, JointAxis) else axis, why)

    def statistic(self, node: Node, labels: Sequence[Labels]) -> None:
        """`node` takes a statistic over these axes; remember it where one of them may shrink."""
        live = [axis for axis in labels if self.atoms.live(axis) is not None]
        if live:
            self.statistics[node] = live

    def role(self, node: Any, axis: int, role: Role) -> None:
        """Remember what an axis of a parameter is for; computed tensors have no role."""
        if isinstance(node, Node) and node.op == "get_attr":
            self.entry(get_state(self.module, str(node.target))).roles.setdefault(axis, role)

    def state_name(self, node: Any) -> str:
        """Name of the parameter or buffer a node reads (the first of a shared one), "" for anything computed."""
        if not isinstance(node, Node) or node.op != "get_attr":
            return ""
        return self.entry(get_state(self.module, str(node.target))).names[0]

    def affine(self, weight: Any, bias: Any, axis: int, role: Role) -> None:
        """Channels leave this layer as `weight` (rows along `axis`) times something plus `bias`."""
        names = [self.state_name(p) for p in (weight, bias)]
        if names[0]:
            known = self.affines.get(names[0])
            biases = (*(known.biases if known else ()), *([names[1]] if names[1] else []))
            self.affines[names[0]] = Affine(names[0], axis, tuple(dict.fromkeys(biases)), role)

    def contraction(self, node: Node, weight: Any, axes: Sequence[tuple[Labels, int]]) -> None:
        """`node` multiplies and adds over the product of these axes."""
        self.contractions.append(Contraction(node, self.state_name(weight), tuple(axes)))

    def fallback(self, node: Node, why: str = "") -> Any:
        """Freeze every axis of every tensor argument; the outputs are inert."""
        why = why or f"no rule for {node.target}"
        self.unsupported[node] = why
        return self.frozen(node, why)

    def frozen(self, node: Node, why: str, spared: Sequence[Any] = ()) -> Any:
        """Freeze every axis of every tensor argument but those in `spared`; the outputs are inert."""
        for argument in node.all_input_nodes:
            if argument not in spared:
                self.freeze_all(argument, why)
        return self._frozen(node.meta.get("val"), why)

    def _frozen(self, value: Any, why: str) -> Any:
        """Axis values of an output on which nothing can vanish; the labels carry the reason to what they meet."""
        if isinstance(value, torch.Tensor):
            axes = [self.atoms.fresh(size_hint(size)) for size in value.shape]
            for labels in axes:
                self.freeze(labels, why)
            return axes
        if isinstance(value, list | tuple):
            return [self._frozen(item, why) for item in value]
        return None
