"""What a network returns with one cut, for many cuts: each shares the dense network's way up to where it begins.

The dense network is walked node by node. Before the first node that a cut changes, the cut goes its own way from the
values the dense network holds at that moment, and the dense network goes on afterwards. So a cut costs the rest of
the network only, half a pass on average, and nothing is kept but what the two of them still need.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from deploypruner.channels.proof.masked_reference import Masked
from deploypruner.graph import Graph, Keep
from deploypruner.graph.execute.float64_interpreter import Streamed, Value, cast, writes
from deploypruner.graph.inputs import Inputs, call, map_tensors, tensors
from deploypruner.graph.nodes import writes_into


@dataclass(frozen=True)
class Cut:
    """One thing taken away, and nothing else.

    Args:
        id: Of the group or the branch.
        keep: What stays of it.
        said: For a message: "8 of 16 channels of 'layer1.0.conv1.weight:0'".
    """

    id: str
    keep: Keep
    said: str


class Sweep:
    """Runs the dense network and every cut of it on the same inputs.

    A cut group counts for nothing, exactly as if it were removed (`channels.proof.masked_reference`); a branch that
    is gone leaves its shortcut. A graph that torch.export did not make has no nodes to walk: there every cut is made
    and run whole.

    Args:
        graph: The traced model; it is not changed.
        cuts: What to take away.
        dtype: Numbers to compute with; bfloat16 stands for float32 with autocast, the last layer excepted.
    """

    def __init__(self, graph: Graph, cuts: Sequence[Cut], *, dtype: torch.dtype = torch.float32) -> None:
        self._graph, self._cuts = graph, tuple(cuts)
        self._mixed = dtype == torch.bfloat16
        self._dtype = torch.float32 if self._mixed else dtype
        self._beginning: dict[Node, list[tuple[Cut, _Branching]]] = {}
        if not isinstance(graph.module, GraphModule):
            return
        self._dense = _DenseOutputs(graph.module, self._dtype, mixed=self._mixed)
        self._channels_last = self._dense._movable
        for cut in self._cuts:
            runner = _runner(graph, cut, self._dtype, mixed=self._mixed)
            self._beginning.setdefault(runner.first(), []).append((cut, runner))

    @torch.no_grad()
    def dense(self, inputs: Inputs) -> list[Tensor]:
        """All tensors of the dense network's output."""
        if not isinstance(self._graph.module, GraphModule):
            return _run(self._graph.module, inputs, self._dtype)
        with self._autocast():
            return self._dense.outputs(self._placed(inputs))

    @torch.no_grad()
    def cuts(self, inputs: Inputs) -> Iterator[tuple[Cut, list[Tensor]]]:
        """Every cut with all tensors of its output, in the order of the graph."""
        if not isinstance(self._graph.module, GraphModule):
            for cut in self._cuts:
                yield cut, _run(self._graph.cut(self._graph.removed(cut.keep)), inputs, self._dtype)
            return
        held: dict[Node, Any] = {}
        waiting = sum(map(len, self._beginning.values()))
        steps = self._dense.steps(self._placed(inputs), held)
        while waiting:
            with self._autocast():
                node, _ = next(steps)
            for cut, runner in self._beginning.get(_after(node), ()):
                with self._autocast():
                    outputs = runner.rest(node, held)
                yield cut, outputs
                waiting -= 1

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast("cpu", torch.bfloat16) if self._mixed else nullcontext()

    def _placed(self, inputs: Inputs) -> Inputs:
        """Images with their channels last, which convolutions read faster."""

        def placed(tensor: Tensor) -> Tensor:
            return tensor.to(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor

        return map_tensors(placed, inputs) if self._channels_last else inputs


# ---------------------------------------------------------------------- the ways through the graph


class _DenseOutputs(Streamed):
    """The dense network; values keep the precision that autocast gives them.

    Args:
        module: A graph of ATen calls.
        dtype: float32 or float64.
        mixed: Is this run under autocast?
    """

    def __init__(self, module: GraphModule, dtype: torch.dtype, *, mixed: bool) -> None:
        super().__init__(module, dtype)
        _prepare(self, mixed=mixed)

    _mixed: bool
    _last: frozenset[Node]
    _movable: bool

    def call(self, node: Node, value: Value) -> Any:
        """The layers that make the output run without autocast: three digits of a class score are too few."""
        if not (self._mixed and node in self._last):
            return super().call(node, _viewable(node, value) if self._movable else value)
        with torch.autocast("cpu", enabled=False):
            return super().call(node, lambda n: _cast_all(value(n), self.dtype))

    def finish(self, result: Any) -> Any:
        """As it is under autocast."""
        return result if self._mixed else super().finish(result)


class _Branching(_DenseOutputs):
    """A way of its own from some node on."""

    _held: dict[Node, Any]
    _shared: set[int]

    def first(self) -> Node:
        """The first node whose value is not the dense network's."""
        raise NotImplementedError

    def rest(self, after: Node, held: Mapping[Node, Any]) -> list[Tensor]:
        """All tensors of the output.

        Args:
            after: The last node whose value is the dense network's.
            held: What the dense network holds behind it; not changed.
        """
        self._held = {node: value for node, value in held.items() if node.op != "get_attr"}
        self._shared = {_storage(t) for value in self._held.values() for t in tensors(value)}
        result: Any = None
        for _, value in self.steps((), self._held, after=after):
            result = value
        self._held = {}
        return tensors(result)

    def call(self, node: Node, value: Value) -> Any:
        """What is written into must be this way's own."""
        if writes(node):
            for source in node.all_input_nodes:
                if source.op != "get_attr" and writes_into(node, source):
                    self._own(value(source))
        return super().call(node, value)

    def _own(self, tensor: Tensor) -> None:
        """Copy a tensor that the dense network holds too, with all that look at the same memory."""
        place = _storage(tensor)
        if place not in self._shared:
            return
        fresh = tensor.untyped_storage().clone()

        def moved(other: Tensor) -> Tensor:
            if _storage(other) != place:
                return other
            return other.new_empty(0).set_(fresh, other.storage_offset(), other.shape, other.stride())

        for node, value in self._held.items():
            self._held[node] = pytree.tree_map_only(Tensor, moved, value)


class _CutGroup(_Branching, Masked):
    """The dense network without some channels of groups.

    Args:
        graph: From torch.export.
        keep: Group id -> channels.
        dtype: float32 or float64.
        mixed: Is this run under autocast?
    """

    def __init__(self, graph: Graph, keep: Keep, dtype: torch.dtype, *, mixed: bool) -> None:
        Masked.__init__(self, graph, keep, dtype)
        _prepare(self, mixed=mixed)

    def first(self) -> Node:
        """The first that reads, takes a statistic over or holds something that is gone."""
        return next(
            n for n in self.module.graph.nodes if n.op not in ("placeholder", "get_attr") and self._differs(n)
        )

    def _differs(self, node: Node) -> bool:
        if node.op == "output" or any(self._slices.get(self._parameter(n)) for n in node.all_input_nodes):
            return True
        statistic = self._labelling.statistics.get(node, ())
        if any(self._vanishing(labels) is not None for labels in statistic):
            return True
        return any(any(self.gone(n)) for n in (node, *node.all_input_nodes))


class _CutBranch(_Branching):
    """The dense network without a residual branch.

    Args:
        module: A graph of ATen calls.
        add: The addition that ends the branch.
        shortcut: What it returns instead.
        dtype: float32 or float64.
        mixed: Is this run under autocast?
    """

    def __init__(self, module: GraphModule, add: Node, shortcut: Node, dtype: torch.dtype, *, mixed: bool) -> None:
        super().__init__(module, dtype, mixed=mixed)
        self._add, self._shortcut = add, shortcut

    def first(self) -> Node:
        """The addition."""
        return self._add

    def call(self, node: Node, value: Value) -> Any:
        """A copy of the shortcut, because what follows may write into a sum."""
        if node is self._add:
            return value(self._shortcut).clone()
        return super().call(node, value)


def _runner(graph: Graph, cut: Cut, dtype: torch.dtype, *, mixed: bool) -> _Branching:
    residual = graph.residuals.get(cut.id)
    if residual is None:
        return _CutGroup(graph, cut.keep, dtype, mixed=mixed)
    assert isinstance(graph.module, GraphModule), "branches are found in a traced graph"
    return _CutBranch(graph.module, residual.add, residual.shortcut, dtype, mixed=mixed)


# ---------------------------------------------------------------------- helpers


def _prepare(runner: _DenseOutputs, *, mixed: bool) -> None:
    output = next(iter(runner.module.graph.find_nodes(op="output")))
    runner._mixed, runner._last = mixed, frozenset(output.all_input_nodes)
    runner._movable = not _aliased(runner.module)


def _after(node: Node) -> Node:
    """The next node that is no read of a parameter."""
    following = node.next
    while following.op == "get_attr":
        following = following.next
    return following


def _run(module: torch.nn.Module, inputs: Inputs, dtype: torch.dtype) -> list[Tensor]:
    return tensors(call(module, map_tensors(lambda t: cast(t, dtype), inputs)))


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _cast_all(value: Any, dtype: torch.dtype) -> Any:
    return pytree.tree_map_only(Tensor, lambda t: cast(t, dtype), value)


def _viewable(node: Node, value: Value) -> Value:
    """A view of contiguous memory in the traced model; here the channels may lie last."""
    if node.target is not torch.ops.aten.view.default:
        return value

    def viewable(source: Node) -> Any:
        given = value(source)
        return given.contiguous() if source is node.args[0] else given

    return viewable


def _aliased(module: GraphModule) -> bool:
    """Does a call write into something that another node looks at too, or into a view?"""
    for node in module.graph.nodes:
        if not writes(node):
            continue
        for source in node.all_input_nodes:
            if writes_into(node, source) and (len(source.users) > 1 or _is_view(source)):
                return True
    return False


def _is_view(node: Node) -> bool:
    if not isinstance(node.target, torch._ops.OpOverload) or writes(node):
        return False
    return any(returned.alias_info is not None for returned in node.target._schema.returns)
