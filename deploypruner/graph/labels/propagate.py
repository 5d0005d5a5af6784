"""One forward pass over an exported graph that labels every axis of every tensor with removable atoms."""

from __future__ import annotations

import importlib
import operator
import pkgutil
from functools import cached_property
from typing import Any

import torch
from torch.fx import Graph as FxGraph
from torch.fx import Node

from deploypruner.graph.execute.float64_interpreter import arguments_of
from deploypruner.graph.execute.module import TracedModule, get_state
from deploypruner.graph.inputs import Inputs
from deploypruner.graph.labels import rules
from deploypruner.graph.labels.atoms import Labels
from deploypruner.graph.labels.labelling import StateTensor
from deploypruner.graph.labels.rules.observed import can_be_observed, observe
from deploypruner.graph.labels.tracing import Tracing
from deploypruner.graph.nodes import arguments, is_tensor, shape_of

for _module in pkgutil.iter_modules(rules.__path__):
    importlib.import_module(f"{rules.__name__}.{_module.name}")


class Propagation(Tracing):
    """The labels of every tensor of a graph, and what the rules recorded on the way.

    Attributes:
        training: The same of the graph that runs in training mode, None where there is no other. It shares the atoms
            and all state that this graph reads; state that only training reads is its own.
    """

    def __init__(
        self,
        module: TracedModule,
        graph: FxGraph | None = None,
        of: Propagation | None = None,
        *,
        inputs: Inputs | None = None,
    ) -> None:
        super().__init__(module, of)
        self.graph, self._inputs = graph or module.graph, inputs
        if of is not None:
            self.atoms = of.atoms
        self._names: dict[int, list[str]] = {}
        for name, parameter in module.named_parameters(remove_duplicate=False):
            self._names.setdefault(id(parameter), []).append(name)
        for node in self.graph.nodes:
            self.atoms.site = node
            self._visit(node)
        other = module.training_graph if of is None else None
        self.training = None if other is None else Propagation(module, other, of=self)

    @property
    def all_state(self) -> dict[int, StateTensor]:
        """`state`, and what only training reads."""
        return self.state if self.training is None else {**self.state, **self.training.state}

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
