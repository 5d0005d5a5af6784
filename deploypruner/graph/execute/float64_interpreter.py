"""Run a module in another precision without a second copy of its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.fx import _pytree as fx_pytree
from torch.fx.node import map_aggregate
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from deploypruner.graph.execute.mode_flags import any_mode_argument
from deploypruner.graph.execute.module import TracedModule, get_state
from deploypruner.graph.execute.shared_weights import sharing_copy
from deploypruner.graph.inputs import Inputs, call, map_tensors, tensors
from deploypruner.graph.nodes import arguments, op_name
from deploypruner.graph.reference import seeded

Value = Callable[[Node], Any]

_COMPLEX = {torch.float64: torch.complex128, torch.float32: torch.complex64}
_NOISE = frozenset("rand randn rand_like randn_like normal uniform".split())
_CASTS = (torch.Tensor.float, torch.Tensor.half, torch.Tensor.bfloat16, torch.Tensor.double)


class TensorRunner(Protocol):
    """Something that turns inputs into output tensors in one precision."""

    def outputs(self, inputs: Inputs) -> list[Tensor]:
        """All tensors of the output, in order, detached."""


def runner(module: nn.Module, dtype: torch.dtype) -> TensorRunner:
    """The cheapest way to run this module in that precision; the module is not changed."""
    return Streamed(module, dtype) if isinstance(module, TracedModule) else Converted(module, dtype)


class Streamed:
    """An exported graph in evaluation mode, node by node.

    A parameter is converted when its first reader needs it and freed after its last, as every other value is; the
    data types that export wrote into the graph (casts, new tensors) are converted where they are used. A smaller
    module draws fewer random numbers, so noise is one half everywhere and no dropout drops.

    Args:
        module: A graph of ATen calls in any mode; it is not changed.
        dtype: float64 or float32, what every floating-point number is converted to.
    """

    def __init__(self, module: GraphModule, dtype: torch.dtype) -> None:
        self.module = module
        self.dtype = dtype
        self.at: Node | None = None
        self._dying = last_uses(module.graph)
        switches = {node: any_mode_argument(node, False) for node in module.graph.nodes}
        self._evaluating = {node: {name: setting} for node, (name, setting) in switches.items() if name}
        self._writes = any(writes(node) for node in module.graph.nodes)

    @torch.no_grad()
    def outputs(self, inputs: Inputs) -> list[Tensor]:
        """All tensors of the output, in order."""
        result: Any = None
        with seeded(inputs, 0):
            for _, value in self.steps(inputs):
                result = value
        return tensors(result)

    def steps(
        self, inputs: Inputs, held: dict[Node, Any] | None = None, *, after: Node | None = None
    ) -> Iterator[tuple[Node, Any]]:
        """Every node but the reads of parameters, with its value; the output comes last.

        `at` is the node being run, for whoever catches what it raises; `held` has the values somebody still needs.
        With `after`, only the nodes behind that one run, on the values in `held`; the inputs are not looked at.
        """
        feeds = iter(() if after else self._leaves(inputs))
        held = {} if held is None else held

        def value(node: Node) -> Any:
            if node not in held:
                held[node] = self.read(node)
            return held[node]

        nodes = iter(self.module.graph.nodes)
        while after is not None and next(nodes) is not after:
            pass
        for node in nodes:
            if node.op == "get_attr":
                continue
            self.at = node
            if node.op == "placeholder":
                held[node] = next(feeds)
            elif node.op == "output":
                held[node] = map_aggregate(node.args[0], lambda a: value(a) if isinstance(a, Node) else a)
            else:
                held[node] = self.call(node, value)
            yield node, held[node]
            for dead in self._dying[node]:
                held.pop(dead, None)
        self.at = None

    def read(self, node: Node) -> Any:
        """A parameter, buffer or constant in this precision."""
        state = get_state(self.module, str(node.target))
        if not isinstance(state, Tensor):
            return state
        converted = cast(state.detach(), self.dtype)
        return converted.clone() if self._writes and converted.data_ptr() == state.data_ptr() else converted

    def call(self, node: Node, value: Value) -> Any:
        """The result of one call; `value` gives the arguments."""
        assert callable(node.target), f"an exported graph only calls functions, not '{node.format_node()}'"
        if node in self._evaluating:
            args, kwargs = (), {**self.bind(arguments(node), value), **self._evaluating[node]}
        else:
            args, kwargs = self.bind((node.args, node.kwargs), value)
        result = self.finish(node.target(*args, **kwargs))
        return result.fill_(0.5) if op_name(node) in _NOISE else result

    def bind(self, arguments: Any, value: Value) -> Any:
        """Nested arguments with nodes replaced by their values and data types by this precision."""

        def bound(argument: Any) -> Any:
            if isinstance(argument, Node):
                return value(argument)
            return _wider(argument, self.dtype) if isinstance(argument, torch.dtype) else argument

        return map_aggregate(arguments, bound)

    def finish(self, result: Any) -> Any:
        """A result in this precision: new tensors come in torch's default data type."""
        if isinstance(result, Tensor):
            return cast(result, self.dtype)
        return pytree.tree_map_only(Tensor, lambda t: cast(t, self.dtype), result)

    def _leaves(self, inputs: Inputs) -> list[Any]:
        """Inputs in the order of the placeholders; each run gets tensors of its own to write into."""
        own = map_tensors(lambda t: cast(t.detach().clone(), self.dtype), inputs)
        arguments = ((), own) if isinstance(own, dict) else (own, {})
        return fx_pytree.tree_flatten_spec(arguments, self.module._in_spec)


class _Watched(Streamed):
    """A run in float64 that keeps what some nodes are called with."""

    def __init__(self, module: GraphModule, nodes: set[Node]) -> None:
        super().__init__(module, torch.float64)
        self._watch = nodes
        self.found: dict[Node, dict[Node, Any]] = {}

    def call(self, node: Node, value: Value) -> Any:
        """See `Streamed.call`."""
        if node in self._watch:
            held = {n: value(n) for n in node.all_input_nodes}
            self.found[node] = pytree.tree_map_only(Tensor, lambda t: t.detach().clone(), held)
        return super().call(node, value)


def arguments_of(module: GraphModule, nodes: set[Node], inputs: Inputs) -> dict[Node, dict[Node, Any]]:
    """Copies of the arguments of some calls when the graph runs on these inputs in float64, by the node they are.

    Where the graph does not run in float64, only the calls before that are known.
    """
    watched = _Watched(module, nodes)
    with suppress(Exception):
        watched.outputs(inputs)
    return watched.found


class Converted:
    """Any other module: a converted copy, with the casts inside its code converted as well.

    Args:
        module: A module in any mode; it is not changed.
        dtype: float64 or float32.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        self.dtype = dtype
        copied = sharing_copy(module)
        self.module = copied.double() if dtype == torch.float64 else copied.float()

    @torch.no_grad()
    def outputs(self, inputs: Inputs) -> list[Tensor]:
        """All tensors of the output, in order."""
        own = map_tensors(lambda t: cast(t.detach().clone(), self.dtype), inputs)
        with _Casts(self.dtype), seeded(inputs, 0):
            return tensors(call(self.module, own))


class _Casts(TorchFunctionMode):
    """While active, every floating-point result has one data type, whatever the code asks for."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _CASTS:
            func, args, kwargs = torch.Tensor.to, (args[0], self.dtype), {}
        args, kwargs = pytree.tree_map_only(torch.dtype, lambda d: _wider(d, self.dtype), (args, kwargs or {}))
        return pytree.tree_map_only(Tensor, lambda t: cast(t, self.dtype), func(*args, **kwargs))


def cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Floating-point and complex tensors in this precision; integers and flags as they are."""
    return tensor.to(_wider(tensor.dtype, dtype))


def _wider(old: torch.dtype, dtype: torch.dtype) -> torch.dtype:
    if old.is_complex:
        return _COMPLEX[dtype]
    return dtype if old.is_floating_point else old


def writes(node: Node) -> bool:
    """Does this call write into one of its arguments?"""
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def last_uses(graph: Graph) -> dict[Node, list[Node]]:
    """Node -> the values nobody reads after it, itself included if nobody reads it at all."""
    last: dict[Node, Node] = {}
    for node in graph.nodes:
        for source in (node, *node.all_input_nodes):
            last[source] = node
    dying: dict[Node, list[Node]] = {node: [] for node in graph.nodes}
    for value, node in last.items():
        dying[node].append(value)
    return dying
