"""Attention that computes its scale from the width of its queries, in a model that keeps its own class.

softmax(q k^T / sqrt(d)) reads d from the tensors it is given. Removing columns must not change the scale, and the
rewritten graph states the old one; a class that leaves it to torch gets it from larger queries instead, by a factor
sqrt(d' / d) on the rows of the layer that makes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.fx import Node

from deploypruner.graph.execute.module import get_state
from deploypruner.graph.labels.labelling import Labelling
from deploypruner.graph.nodes import arguments, op_name, shape_of, size_hint

# Layer -> axis of its output that its weight's rows become.
_MAKERS = {"linear": -1, "conv1d": 1, "conv2d": 1, "layer_norm": -1, "rms_norm": -1}


@dataclass(frozen=True)
class Fold:
    """Rows of a layer's weight and bias to multiply.

    Args:
        names: The weight and, where there is one, the bias.
        rows: Bool over the rows that remain.
        factor: What to multiply them by.
    """

    names: tuple[str, ...]
    rows: NDArray[np.bool_]
    factor: float

    def apply(self, module: nn.Module) -> None:
        """Multiply, in place."""
        with torch.no_grad():
            for name in self.names:
                tensor = get_state(module, name)
                tensor[torch.as_tensor(self.rows, device=tensor.device)] *= self.factor


def folds(labelling: Labelling, removed: NDArray[np.bool_]) -> list[Fold]:
    """One for each attention without a scale of its own whose query columns shrink."""
    found, dropped = [], labelling.dropped_nodes(removed)
    for node, values in labelling.values.items():
        if node in dropped or not isinstance(values, list) or op_name(node) != "scaled_dot_product_attention":
            continue
        args = arguments(node)
        width = shape_of(args["query"])[-1]
        axis = labelling.values[args["query"]][-1]
        gone = labelling.atoms.gone(axis.labels() if hasattr(axis, "labels") else axis, removed)
        if args["scale"] is not None or gone is None:
            continue
        kept = int((~gone).sum())
        fold = _fold(labelling, removed, args["query"], (kept / width) ** 0.5)
        if fold is not None and fold not in found:
            found.append(fold)
    return found


def _fold(labelling: Labelling, removed: NDArray[np.bool_], query: Node, factor: float) -> Fold | None:
    """Where the factor can go, None where the queries are not made by one layer."""
    made = _maker(query)
    if made is None:
        return None
    maker, between = made
    args = arguments(maker)
    parameters = [args[key] for key in ("weight", "bias") if isinstance(args.get(key), Node)]
    if not parameters or any(p.op != "get_attr" for p in parameters):
        return None
    rows = _reaching(labelling, maker, between)
    if rows is None:
        return None
    axis = labelling.values[parameters[0]][0]
    gone = labelling.atoms.gone(axis, removed)
    kept = rows if gone is None else rows[~gone]
    return Fold(tuple(str(p.target) for p in parameters), kept, factor)


def _maker(query: Node) -> tuple[Node, list[Node]] | None:
    """The one layer everything in `query` is computed from, and the calls between them."""
    seen: dict[Node, None] = {}
    makers: dict[Node, None] = {}
    stack = [query]
    while stack:
        node = stack.pop()
        if node in seen or node in makers or node.op == "get_attr" or not _holds_tensor(node):
            continue
        if node.op != "call_function":
            return None
        if op_name(node) in _MAKERS:
            makers[node] = None
            continue
        seen[node] = None
        stack.extend(node.all_input_nodes)
    if len(makers) != 1:
        return None
    return next(iter(makers)), list(seen)


def _reaching(labelling: Labelling, maker: Node, between: list[Node]) -> NDArray[np.bool_] | None:
    """Bool over the maker's output channels: which of them the queries depend on, by differentiating."""
    made = torch.randn(shape_of(maker), generator=torch.Generator().manual_seed(0), requires_grad=True)
    values: dict[Node, Any] = {maker: made}
    wanted = set(between)
    query = between[0] if between else maker

    def value(node: Node) -> Any:
        if node in values:
            return values[node]
        if node.op == "get_attr":
            return next(s.tensor for s in labelling.state.values() if str(node.target) in s.names).float()
        meta = node.meta.get("val")
        return size_hint(meta) if isinstance(meta, int | torch.SymInt) else meta

    for node in maker.graph.nodes:
        if node in wanted:
            args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), value)
            assert callable(node.target), f"{node.name} is not a call"
            values[node] = node.target(*args, **kwargs)
    (grad,) = torch.autograd.grad(values[query].square().sum(), made)
    axis = _MAKERS[op_name(maker)] % made.ndim
    used: NDArray[np.bool_] = grad.abs().movedim(axis, 0).flatten(1).sum(1).numpy() > 0
    return used


def _holds_tensor(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) or (
        isinstance(value, list | tuple) and any(isinstance(v, Tensor) for v in value)
    )
