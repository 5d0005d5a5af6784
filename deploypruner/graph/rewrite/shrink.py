"""Rewrite a traced graph without the removed channels: state, shape constants and counts.

Works on a copy. Size arguments of axes that shrink are replaced by what is kept, symbolic ones are scaled, so a
dynamic batch stays dynamic. Constants that were derived from channel counts (an attention scale) keep their old
value: that is what "masked equals removed" means.
"""

from __future__ import annotations

import copy
import operator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.fx import Graph as FxGraph
from torch.fx import Node

from deploypruner.graph.execute.module import TracedModule, get_state, set_state
from deploypruner.graph.labels.branches import drop, parameters_of
from deploypruner.graph.labels.lazy_axes import Axis, Dissolved, JointAxis
from deploypruner.graph.labels.propagate import Propagation
from deploypruner.graph.labels.rules import SIZES
from deploypruner.graph.nodes import SPLITS, arguments, op_name, positive, set_argument, shape_of, size_hint

aten = torch.ops.aten
BoolArray = NDArray[np.bool_]


def rewrite(tracing: Propagation, removed: BoolArray) -> TracedModule:
    """Return a new module of the same graph in which everything carrying a removed atom is gone.

    Args:
        tracing: Labels of the original graph; it is not changed.
        removed: Bool over atoms.
    """
    # Sharing the tensors in the memo copies the graph but no weight; _cut_state makes the only new copies.
    module = copy.deepcopy(tracing.module, memo={id(s.tensor): s.tensor for s in tracing.all_state.values()})
    _cut_state(tracing, removed, module)
    _keep_scale(tracing, removed, module)
    rewriters = [_Rewriter(tracing, removed, module, module.graph)]
    if tracing.training is not None:
        assert module.training_graph is not None, "the copy has what was copied"
        rewriters.append(_Rewriter(tracing.training, removed, module, module.training_graph))
    for rewriter in rewriters:
        rewriter.run()
    _forget(tracing, module, lost=set().union(*(r.lost for r in rewriters)))
    module.recompile()
    return module


def _cut_state(tracing: Propagation, removed: BoolArray, module: TracedModule) -> None:
    """Cut every parameter, buffer and constant; all of them become copies of their own."""
    for state in tracing.all_state.values():
        tensor = state.tensor.detach()
        for axis, labels in enumerate(state.axes):
            gone = tracing.atoms.gone(labels, removed)
            if gone is not None:
                tensor = tensor.index_select(axis, torch.as_tensor(np.flatnonzero(~gone), device=tensor.device))
        if tensor.data_ptr() == state.tensor.data_ptr():
            tensor = tensor.clone()
        is_parameter = isinstance(state.tensor, nn.Parameter)
        new = nn.Parameter(tensor, state.tensor.requires_grad) if is_parameter else tensor
        for name in state.names:
            set_state(module, name, new)


def _keep_scale(tracing: Propagation, removed: BoolArray, module: TracedModule) -> None:
    """A row of a weight norm that lost entries is divided by a smaller norm: its length makes up for that."""
    for name, (direction, dim) in tracing.normed.items():
        length = tracing.entry(get_state(tracing.module, name))
        before = torch.norm_except_dim(get_state(tracing.module, direction).detach(), 2, dim)
        after = torch.norm_except_dim(get_state(module, direction).detach(), 2, dim)
        for axis, labels in enumerate(length.axes):
            gone = tracing.atoms.gone(labels, removed)
            if gone is not None:
                before = before.index_select(axis, torch.as_tensor(np.flatnonzero(~gone), device=before.device))
        if not torch.equal(before, after):
            get_state(module, name).data.mul_(torch.where(before > 0, after / before, 1))


def _forget(tracing: Propagation, module: TracedModule, lost: set[str]) -> None:
    """Drop constant indices that were replaced, and the state of branches that are gone."""
    read = {node.target for graph in module.graphs for node in graph.find_nodes(op="get_attr")}
    for state in tracing.all_state.values():
        for name in state.names:
            if name not in read and (name in lost or not isinstance(state.tensor, nn.Parameter)):
                owner, _, leaf = name.rpartition(".")
                delattr(module.get_submodule(owner), leaf)


class _Rewriter:
    """Rewrites one graph of a module whose state is cut already."""

    def __init__(self, tracing: Propagation, removed: BoolArray, module: TracedModule, graph: FxGraph) -> None:
        self.tracing = tracing
        self.removed = removed
        self.lost: set[str] = set()
        self.module, self.graph = module, graph
        self.copies = dict(zip(tracing.graph.nodes, graph.nodes, strict=True))

    def run(self) -> None:
        """Drop branches, and adapt every call."""
        gone = self.drop()
        for node in self.tracing.graph.nodes:
            if node not in gone and node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
                self.call(node, self.copies[node])
        self.graph.eliminate_dead_code()
        self.graph.lint()

    def drop(self) -> set[Node]:
        """Take out the branches that are removed; returns the nodes that have no counterpart after that."""
        gone = set[Node]()
        for residual in self.tracing.residuals.values():
            if self.removed[residual.atom]:
                gone |= drop(self.graph, residual, self.copies)
                for name in parameters_of(self.tracing.module, self.tracing.graph, residual):
                    self.lost |= set(self.tracing.entry(get_state(self.tracing.module, name)).names)
        return gone

    def gone(self, axis: Axis) -> BoolArray | None:
        """Which indices of an axis vanish; None when none does."""
        if isinstance(axis, JointAxis):
            joint = axis.joint
            if joint.axes is None:
                gone = joint.gone(self.removed)
                slices = gone.all(axis=tuple(d for d in range(gone.ndim) if d != axis.position))
                return np.asarray(slices) if slices.any() else None
            axis = joint.axes[axis.position]
        return self.tracing.atoms.gone(axis, self.removed)

    def kept(self, axis: Axis, size: int) -> int:
        """How many of `size` indices remain."""
        gone = self.gone(axis)
        return size if gone is None else int((~gone).sum())

    # ------------------------------------------------------------------ calls

    def call(self, node: Node, new: Node) -> None:
        """Adapt one call; most operators need nothing."""
        name, values = op_name(node), self.tracing.values.get(node)
        if values is None:
            return
        dissolved = self.tracing.dissolved.get(node)
        if dissolved is not None and self.gather(node, new, dissolved):
            return
        args = arguments(node)
        if name in SIZES:
            self.sizes(node, new, SIZES[name])
        elif name == "unflatten":
            first = positive(args["dim"], len(self.tracing.values[node.args[0]]))
            self.sizes(node, new, "sizes", first)
        elif name in SPLITS:
            self.split(node, new, args)
        elif name == "slice":
            self.slice(node, new, args)
        elif name == "squeeze":
            self.squeeze(node, new)
        elif name in ("pad", "constant_pad_nd"):
            self.pad(node, new)
        elif name in ("layer_norm", "rms_norm"):
            self.sizes(node, new, "normalized_shape", len(values) - len(args["normalized_shape"]))
        elif name == "scaled_dot_product_attention" and args["scale"] is None:
            set_argument(new, "scale", float(shape_of(args["query"])[-1]) ** -0.5)
        elif node in self.tracing.counts:
            argument, labels = self.tracing.counts[node]
            set_argument(new, argument, self.kept(labels, args[argument]))

    def gather(self, node: Node, new: Node, dissolved: Dissolved) -> bool:
        """Pick by the ranks among what is kept, where indices were picked by a constant; was it done?

        A channel shuffle written as views stays what it is while the kept channels form a box.
        """
        joint = dissolved.joint
        if joint is not None and (joint.axes is not None or joint.is_box(self.removed)):
            return False
        source, axis = dissolved.source
        source_gone = self.gone(self.tracing.values[source][axis])
        if source_gone is None:
            return False
        gone = self.gone(self.tracing.values[node][dissolved.axis])
        chosen = dissolved.permutation if gone is None else dissolved.permutation[~gone]
        index = (np.cumsum(~source_gone) - 1)[chosen]
        picked = self.index_select(new, self.copies[source], dissolved.axis, index)
        new.replace_all_uses_with(picked)
        self.copies[node] = picked
        return True

    def sizes(self, node: Node, new: Node, argument: str, first: int = 0) -> None:
        """Replace the sizes of the output axes from `first` on that shrink."""
        values, shape = self.tracing.values[node], shape_of(node)
        if any(isinstance(v, JointAxis) and not v.joint.is_box(self.removed) for v in values):
            return  # on the way to a gather, which skips this view
        old = list(arguments(new)[argument])
        set_argument(
            new,
            argument,
            [self.size(values[first + i], size, shape[first + i], new) for i, size in enumerate(old)],
        )

    def size(self, axis: Axis, old: Any, full: int, new: Node) -> Any:
        """One size argument: -1 stays, a number becomes what is kept, a symbolic size is scaled by kept / full."""
        gone = self.gone(axis)
        if gone is None or (isinstance(old, int) and old == -1):
            return old
        kept = int((~gone).sum())
        if not isinstance(old, Node):
            return kept
        with self.graph.inserting_before(new):
            scaled = self.graph.call_function(operator.mul, (old, kept))
            return self.graph.call_function(operator.floordiv, (scaled, full))

    def split(self, node: Node, new: Node, args: dict[str, Any]) -> None:
        """Pieces of the sizes that remain."""
        d = positive(args["dim"] or 0, len(self.tracing.values[node.args[0]]))
        if self.gone(self.tracing.values[node.args[0]][d]) is None:
            return
        pieces = zip(node.meta["val"], self.tracing.values[node], strict=True)
        new.target = aten.split_with_sizes.default
        new.args = (new.args[0], [self.kept(values[d], size_hint(t.shape[d])) for t, values in pieces], d)
        new.kwargs = {}

    def slice(self, node: Node, new: Node, args: dict[str, Any]) -> None:
        """Ends become ranks among what is kept; a strided slice becomes an index_select."""
        d = positive(args["dim"], len(self.tracing.values[node.args[0]]))
        gone = self.gone(self.tracing.values[node.args[0]][d])
        if gone is None:
            return
        start, end, step = slice(args["start"], args["end"], args["step"] or 1).indices(len(gone))
        if step == 1:
            set_argument(new, "start", int((~gone[:start]).sum()))
            set_argument(new, "end", int((~gone[:end]).sum()))
            return
        rank = np.cumsum(~gone) - 1
        index = np.array([rank[i] for i in range(start, end, step) if not gone[i]], dtype=np.int64)
        source = new.args[0]
        assert isinstance(source, Node), "a slice has a tensor argument"
        picked = self.index_select(new, source, d, index)
        new.replace_all_uses_with(picked)
        self.copies[node] = picked

    def squeeze(self, node: Node, new: Node) -> None:
        """Name the axes that had length one: an axis with one channel left is none of them."""
        source = node.args[0]
        if all(self.gone(axis) is None for axis in self.tracing.values[source]):
            return
        shape, dims = shape_of(source), arguments(node).get("dim")
        chosen = range(len(shape)) if dims is None else [dims] if isinstance(dims, int) else dims
        new.target = aten.squeeze_.dims if "squeeze_" in str(node.target) else aten.squeeze.dims
        new.args = (new.args[0], [d for d in (positive(c, len(shape)) for c in chosen) if shape[d] == 1])
        new.kwargs = {}

    def pad(self, node: Node, new: Node) -> None:
        """Only as much padding as remains; that of axes that stay whole may be computed from the input's size."""
        widths, values = list(arguments(new)["pad"]), self.tracing.values[node]
        for i in range(len(widths) // 2):
            gone = self.gone(values[len(values) - 1 - i])
            if gone is not None:
                before, after = widths[2 * i : 2 * i + 2]
                kept_before = int((~gone[:before]).sum())
                widths[2 * i : 2 * i + 2] = [kept_before, int((~gone[len(gone) - after :]).sum())]
        set_argument(new, "pad", widths)

    def index_select(self, before: Node, source: Node, axis: int, index: NDArray[np.int64]) -> Node:
        """Insert an index_select by a constant before a node."""
        name = f"_kept_{before.name}"
        while hasattr(self.module, name):  # a module that was pruned before has its own
            name += "_again"
        self.module.register_buffer(name, torch.as_tensor(index, device=before.meta["val"].device))
        with self.graph.inserting_before(before):
            constant = self.graph.get_attr(name)
            picked = self.graph.call_function(aten.index_select.default, (source, axis, constant))
        picked.meta = dict(before.meta)
        return picked
