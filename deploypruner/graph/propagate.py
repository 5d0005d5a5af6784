"""One forward pass over an exported graph that labels every axis of every tensor with removable atoms."""

from __future__ import annotations

import importlib
import operator
import pkgutil
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch.fx import Graph as FxGraph
from torch.fx import Node

from deploypruner.graph import rules
from deploypruner.graph.atoms import Labels
from deploypruner.graph.inputs import Inputs
from deploypruner.graph.joint import Axis, Dissolved, JointAxis
from deploypruner.graph.labelling import Affine, Contraction, Labelling, StateTensor
from deploypruner.graph.module import TracedModule, get_state
from deploypruner.graph.nodes import arguments, is_tensor, shape_of, size_hint
from deploypruner.graph.rules.observed import can_be_observed, observe
from deploypruner.graph.streamed import arguments_of
from deploypruner.records import Role

for _module in pkgutil.iter_modules(rules.__path__):
    importlib.import_module(f"{rules.__name__}.{_module.name}")


class Tracing(Labelling):
    """The labels of every tensor of a graph, and what the rules recorded on the way.

    Attributes:
        strict: Let a rule that fails raise, instead of freezing what it touches; tests do.
        dissolved: Nodes that pick indices of an axis: an index_select by a constant, or views that turned out to
            be one (channel shuffle).
        training: The same of the graph that runs in training mode, None where there is no other. It shares the atoms
            and all state that this graph reads; state that only training reads is its own.
    """

    strict: ClassVar[bool] = False

    def __init__(
        self,
        module: TracedModule,
        graph: FxGraph | None = None,
        of: Tracing | None = None,
        *,
        inputs: Inputs | None = None,
    ) -> None:
        super().__init__()
        self.module, self.graph, self._of, self._inputs = module, graph or module.graph, of, inputs
        if of is not None:
            self.atoms = of.atoms
        self._names: dict[int, list[str]] = {}
        for name, parameter in module.named_parameters(remove_duplicate=False):
            self._names.setdefault(id(parameter), []).append(name)
        self.dissolved: dict[Node, Dissolved] = {}
        for node in self.graph.nodes:
            self.atoms.site = node
            self._visit(node)
        other = module.training_graph if of is None else None
        self.training = None if other is None else Tracing(module, other, of=self)

    @property
    def all_state(self) -> dict[int, StateTensor]:
        """`state`, and what only training reads."""
        return self.state if self.training is None else {**self.state, **self.training.state}

    def entry(self, tensor: torch.Tensor) -> StateTensor:
        """What is known of a parameter, buffer or constant."""
        if self._of is not None and id(tensor) in self._of.state:
            return self._of.state[id(tensor)]
        return self.state[id(tensor)]

    def _visit(self, node: Node) -> None:
        if node.op == "get_attr":
            self.values[node] = self._state(node)
        elif node.op == "placeholder":
            self.values[node] = self._input(node)
        elif node.op == "output":
            torch.fx.node.map_arg(node.args, lambda n: self.freeze_all(n, "model output"))
        elif node.op == "call_function":
            self.values[node] = self._call(node)
        else:
            self.values[node] = self.fallback(node)

    def _input(self, node: Node) -> list[Labels] | None:
        """An input's shape is the caller's; its labels exist only to carry that reason to what they meet."""
        if not is_tensor(node):
            return None
        axes = [self.atoms.fresh(size) for size in shape_of(node)]
        for labels in axes:
            self.freeze(labels, "model input")
        return axes

    def _state(self, node: Node) -> list[Labels] | None:
        tensor = get_state(self.module, str(node.target))
        if not isinstance(tensor, torch.Tensor):
            return None
        if id(tensor) not in self.state and (self._of is None or id(tensor) not in self._of.state):
            self.state[id(tensor)] = StateTensor([], tensor, [self.atoms.fresh(size) for size in tensor.shape])
        entry = self.entry(tensor)
        for name in (str(node.target), *self._names.get(id(tensor), ())):
            if name not in entry.names:
                entry.names.append(name)
        return list(entry.axes)

    def _call(self, node: Node) -> Any:
        if node.target is operator.getitem:
            outputs = self.values[node.args[0]]
            return outputs[int(str(node.args[1]))] if isinstance(outputs, list) else None
        if not isinstance(node.meta.get("val"), torch.Tensor | list | tuple):
            return None  # arithmetic on sizes
        rule = rules.find(node)
        if rule is None:
            return self._observed(node)
        try:
            return rule(self, node, arguments(node))
        except Exception as error:  # a rule meets arguments it was not written for; freezing is always right
            if self.strict:
                raise
            return self.fallback(node, f"the rule for {node.target} does not apply ({type(error).__name__})")

    def _observed(self, node: Node) -> Any:
        """Run an operator without a rule, where something it takes may shrink and the inputs are known."""
        may_shrink = can_be_observed(node) and any(self._may_shrink(a) for a in node.all_input_nodes)
        values = self._arguments.get(node) if may_shrink else None
        found = None if values is None else observe(self, node, values)
        return self.fallback(node) if found is None else found

    @cached_property
    def _arguments(self) -> dict[Node, dict[Node, Any]]:
        """What every operator without a rule is called with, on the example inputs."""
        unknown = {n for n in self.module.graph.nodes if n.op == "call_function" and can_be_observed(n)}
        return {} if self._inputs is None else arguments_of(self.module, unknown, self._inputs)

    def _may_shrink(self, node: Node) -> bool:
        return is_tensor(node) and any(self.atoms.live(axis) is not None for axis in self.axes(node))

    # ------------------------------------------------------------------ what rules call

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
