"""What the pruned model must compute: the dense graph, with everything removed made to count for nothing.

What is removed counts for nothing where sums see only zeros. So every removed slice of every parameter is read as
zeros, in producers and consumers, and the graph runs as it was traced. Four kinds of operator need more:

* A *residual branch* that is gone is multiplied by zero before it is added.
* A *statistic* over channels (layer norm, group norm, a mean, weight standardisation) is taken over what is kept:
  its inputs are restricted to the kept indices, and its result is put back among zeros.
* A *weight norm* whose lengths are a parameter is taken over everything: the removed module scales them to match.
* A *product* of two computed tensors has no zeros of a parameter to rely on: a channel that a nonlinearity or a
  buffer made non-zero is set to zero in its inputs first.

The oracle shares with the remover the labels of the inputs of the last three kinds, and nothing else: no size, no
count, no index of a rewritten graph is read. It cannot tell whether a plan is good, only that the removed module is
the dense one without what the plan names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from deploypruner.graph import Graph
from deploypruner.graph.dependency import Keep
from deploypruner.graph.execute.float64_interpreter import Streamed, Value, writes
from deploypruner.graph.execute.module import get_state
from deploypruner.graph.labels.lazy_axes import Axis, JointAxis
from deploypruner.graph.labels.rules import RULES, contraction
from deploypruner.graph.nodes import arguments, op_name

BoolArray = NDArray[np.bool_]
_NORMED = ("_weight_norm", "_weight_norm_interface")
# Removed indices: (axis, bool per index) of one tensor.
Gone = list[tuple[int, BoolArray]]

_PRODUCTS = frozenset(name for name, rule in RULES.items() if rule.__module__ == contraction.__name__)


class Masked(Streamed):
    """The dense graph with everything that is not kept made to count for nothing.

    Args:
        graph: A graph from torch.export.
        keep: Group id -> kept channels.
        dtype: float64 or float32.
    """

    def __init__(self, graph: Graph, keep: Keep, dtype: torch.dtype) -> None:
        assert isinstance(graph.module, GraphModule), "the oracle runs a traced graph"
        super().__init__(graph.module, dtype)
        self._labelling = graph.labelling
        self._removed = graph.removed(keep)
        self._slices = removed_slices(graph, keep)
        self._gone: dict[Node, list[Gone]] = {}
        self._closed = {r.add: r.branch for r in graph.residuals.values() if self._removed[r.atom]}

    def read(self, node: Node) -> Any:
        """A parameter with zeros where it is removed; buffers as they are, because something may divide by them."""
        value = super().read(node)
        slices = self._slices.get(self._parameter(node))
        if not slices:
            return value
        masked = value.clone() if value.data_ptr() == get_state(self.module, str(node.target)).data_ptr() else value
        for axis, index in slices:
            masked.index_fill_(axis, index.to(masked.device), 0)
        return masked

    def call(self, node: Node, value: Value) -> Any:
        """As traced; statistics over what is kept only, products over zeros, and no branch that is gone is added."""
        if node in self._closed:
            return super().call(node, lambda n: value(n) * 0 if n is self._closed[node] else value(n))
        statistic = self._labelling.statistics.get(node)
        if statistic is not None and any(self._vanishing(labels) is not None for labels in statistic):
            return self._statistic(node, value)
        if op_name(node) in _NORMED:
            return self._normed(node, value)
        if op_name(node) in _PRODUCTS:
            return super().call(node, self._zeroed(node, value))
        return super().call(node, value)

    def _normed(self, node: Node, value: Value) -> Any:
        """A weight whose lengths make up for what its directions lose: computed whole, then zero where removed."""
        whole = super().call(node, lambda n: Streamed.read(self, n) if n.op == "get_attr" else value(n))
        results = [whole] if isinstance(whole, Tensor) else list(whole)
        for result, gone in zip(results[:1], self.gone(node)[:1], strict=True):
            for axis, indices in gone:
                result.index_fill_(axis, _positions(indices, result), 0)
        return results[0] if isinstance(whole, Tensor) else results

    def gone(self, node: Node) -> list[Gone]:
        """Removed indices of each tensor a node holds; one list for a node that holds one tensor.

        Of an axis whose length depends on the batch they hold for the traced batch only. Neither statistics nor sums
        run along such an axis, so it is left alone wherever its length is another (`_here`).
        """
        if node not in self._gone:
            value, axes = node.meta.get("val"), self._labelling.values.get(node)
            if isinstance(axes, list) and isinstance(value, list | tuple):
                self._gone[node] = [self._gone_axes(a, v) for a, v in zip(axes, value, strict=True)]
            else:
                self._gone[node] = [self._gone_axes(axes, value)]
        return self._gone[node]

    def comparable(self, node: Node) -> bool:
        """Is what remains of this value a box of known indices, so that it can be compared with the removed one?

        Not where a channel shuffle is under way (a gather replaces it), nor where the batch was traced as a symbol
        and something vanishes along it, nor of the lengths of a weight norm, which are scaled.
        """
        if node.op == "get_attr" and node.target in self._labelling.normed:
            return False
        values, value = self._labelling.values.get(node), node.meta.get("val")
        if not isinstance(values, list) or not isinstance(value, Tensor):
            return True
        joints = [axis.joint for axis in values if isinstance(axis, JointAxis)]
        symbolic = [axis for axis, size in zip(values, value.shape, strict=True) if not isinstance(size, int)]
        return all(j.is_box(self._removed) for j in joints) and all(self._vanishing(a) is None for a in symbolic)

    def _gone_axes(self, axes: list[Axis] | None, value: Any) -> Gone:
        found: Gone = []
        for axis, labels in enumerate(axes or []):
            fixed = not isinstance(value, Tensor) or isinstance(value.shape[axis], int)
            gone = self._vanishing(labels) if fixed else None
            if gone is not None:
                found.append((axis, gone))
        return found

    def _vanishing(self, axis: Axis) -> BoolArray | None:
        """Which indices of an axis vanish, None when none does."""
        if isinstance(axis, JointAxis):
            if axis.joint.axes is None:
                gone = axis.joint.gone(self._removed)
                whole = gone.all(axis=tuple(d for d in range(gone.ndim) if d != axis.position))
                return np.asarray(whole) if whole.any() else None
            axis = axis.joint.axes[axis.position]
        return self._labelling.atoms.gone(axis, self._removed)

    def _parameter(self, node: Any) -> str:
        """Name of the parameter a node reads, "" for everything else and for what may not be zero (a direction)."""
        if not isinstance(node, Node) or node.op != "get_attr":
            return ""
        state = get_state(self.module, str(node.target))
        if not isinstance(state, nn.Parameter):
            return ""
        name = self._labelling.state[id(state)].names[0]
        return "" if name in self._labelling.directions else name

    # ------------------------------------------------------------------ the two kinds that need more

    def _zeroed(self, node: Node, value: Value) -> Value:
        """Arguments of a product, with zeros where they are removed and no parameter provides them.

        A masked divisor leaves 0 / 0 in a removed channel, which times zero is still not zero; so what is not finite
        is made zero as well, where it is removed.
        """
        factors = [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), Tensor) or n.op == "get_attr"]
        computed = [n for n in factors if not self._parameter(n)]
        written = node.args[0] if writes(node) else None

        def zeroed(argument: Node) -> Any:
            tensor = value(argument)
            if argument is written or argument not in computed or not tensor.is_floating_point():
                return tensor
            gone = self.gone(argument)[0]
            if gone and (len(computed) > 1 or not tensor.sum().isfinite()):
                for axis, indices in _here(tensor, gone):
                    tensor = tensor.index_fill(axis, _positions(indices, tensor), 0)
            return tensor

        return zeroed

    def _statistic(self, node: Node, value: Value) -> Any:
        """The operator on kept indices only, its results put back among zeros."""
        assert not writes(node), f"{node.target} takes a statistic and writes it in place"

        def restricted(argument: Node) -> Any:
            tensor = value(argument)
            return restrict(tensor, self.gone(argument)[0]) if isinstance(tensor, Tensor) else tensor

        named = arguments(node)
        source = node.args[0]
        assert isinstance(source, Node), f"{node.target} has a tensor argument"
        bound = dict(self.bind(named, restricted))
        if "normalized_shape" in bound:
            bound["normalized_shape"] = list(restricted(source).shape[-len(bound["normalized_shape"]) :])
        if "num_groups" in bound:
            bound["num_groups"] = self._kept_groups(source, bound["num_groups"])
        assert isinstance(node.target, torch._ops.OpOverload), f"{node.target} is not an ATen operator"
        result = self.finish(node.target(**bound))
        if isinstance(result, Tensor):
            return _scatter(result, self.gone(node)[0])
        return [_scatter(r, gone) for r, gone in zip(result, self.gone(node), strict=True)]

    def _kept_groups(self, source: Node, groups: int) -> int:
        """Number of groups of a group norm that keep a channel; all of them must keep equally many."""
        gone = dict(self.gone(source)[0]).get(1)
        if gone is None:
            return groups
        kept = (~gone).reshape(groups, -1).sum(axis=1)
        sizes = set(kept[kept > 0].tolist())
        assert len(sizes) == 1, f"groups of a group norm would keep {sorted(sizes)} channels"
        return int((kept > 0).sum())


def removed_slices(graph: Graph, keep: Keep) -> Mapping[str, list[tuple[int, Tensor]]]:
    """Parameter name -> (axis, removed positions), as the plan's groups name them."""
    slices: dict[str, list[tuple[int, Tensor]]] = {}
    for group in graph.groups:
        if group.id not in keep:
            continue
        gone = np.setdiff1d(np.arange(group.size), keep[group.id])
        for member in group.members:
            if len(gone):
                rows = torch.as_tensor(member.index[gone].reshape(-1))
                slices.setdefault(member.parameter, []).append((member.axis, rows))
    return slices


def restrict(tensor: Tensor, gone: Gone) -> Tensor:
    """A tensor without its removed indices."""
    for axis, indices in _here(tensor, gone):
        tensor = tensor.index_select(axis, _positions(~indices, tensor))
    return tensor


def _scatter(tensor: Tensor, gone: Gone) -> Tensor:
    """The opposite of `restrict`: full size, zeros where removed."""
    for axis, indices in gone:
        if tensor.shape[axis] == (~indices).sum():
            shape = [*tensor.shape[:axis], len(indices), *tensor.shape[axis + 1 :]]
            tensor = tensor.new_zeros(shape).index_copy_(axis, _positions(~indices, tensor), tensor)
    return tensor


def _here(tensor: Tensor, gone: Gone) -> Gone:
    """Axes that are as long as they were traced."""
    return [(axis, indices) for axis, indices in gone if len(indices) == tensor.shape[axis]]


def _positions(indices: BoolArray, like: Tensor) -> Tensor:
    return torch.as_tensor(np.flatnonzero(indices), device=like.device)
