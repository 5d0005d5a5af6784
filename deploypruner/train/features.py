"""The features a network makes its decision from, found in its graph, so that a pruned one can mimic the dense one's.

They are what the last convolution or linear layer before the output reads, or what is pooled for it. Both networks
are run with that value as a second output.

Source:
    Wang, Li, Wu, "Mimicking a Pruned Network from a Few Images" (MiR), arXiv:2201.02620: the features before
    global pooling, squared error, batch norm in evaluation mode. Ours: finding them in the graph, kept channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx import Graph as FxGraph
from torch.fx import Node
from torch.fx import _pytree as fx_pytree

from deploypruner.graph import Graph, Keep
from deploypruner.graph.execute.module import TracedModule
from deploypruner.graph.inputs import Inputs, as_arguments
from deploypruner.graph.labels.lazy_axes import JointAxis
from deploypruner.graph.nodes import arguments, op_name

_LAYERS = ("linear", "conv1d", "conv2d", "conv3d", "convolution", "addmm", "mm", "matmul")
_POOLS = ("mean", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "avg_pool2d")
_BETWEEN = ("dropout", "flatten", "view", "reshape", "squeeze", "clone", "contiguous", "permute", "layer_norm")


@dataclass(frozen=True)
class Features:
    """Where both networks have the same features.

    Args:
        dense: Name of the node in the dense graph.
        pruned: Name of the node in the pruned graph: another one where the last branch was dropped.
        kept: (axis, indices of the dense tensor that the pruned one has) of every axis that was cut.
    """

    dense: str
    pruned: str
    kept: tuple[tuple[int, tuple[int, ...]], ...]

    def of_dense(self, features: Tensor) -> Tensor:
        """The dense features at the channels that the pruned network has."""
        for axis, indices in self.kept:
            features = features.index_select(axis, torch.tensor(indices, device=features.device))
        return features


def find_features(graph: Graph, keep: Keep, module: nn.Module) -> Features | None:
    """The features of both networks, None where there is no graph or no layer to find them by.

    Args:
        graph: The dense model.
        keep: What `module` was cut by.
        module: The pruned module, from `graph.cut`.
    """
    if not isinstance(graph.module, TracedModule) or not isinstance(module, TracedModule):
        return None
    dense, pruned = _before_output(graph.module.graph), _before_output(module.graph)
    if dense is None or pruned is None:
        return None
    removed, kept = graph.removed(keep), []
    for axis, labels in enumerate(graph.labelling.values[dense]):
        if isinstance(labels, JointAxis):
            return None
        gone = graph.labelling.atoms.gone(labels, removed)
        if gone is not None:
            kept.append((axis, tuple(np.flatnonzero(~gone).tolist())))
    return Features(dense.name, pruned.name, tuple(kept))


def _before_output(graph: FxGraph) -> Node | None:
    """What the last layer before the first output reads, or what is pooled for it."""
    output = next(iter(graph.find_nodes(op="output")))
    needed: set[Node] = set(output.all_input_nodes[:1])
    last = None
    for node in reversed(graph.nodes):
        if node in needed and op_name(node) in _LAYERS:
            last = node
            break
        if node in needed:
            needed.update(node.all_input_nodes)
    if last is None:
        return None
    found = last.all_input_nodes[0] if "input" not in arguments(last) else arguments(last)["input"]
    if not isinstance(found, Node) or found.op != "call_function":
        return None
    at = found
    while at.op == "call_function" and op_name(at) in (*_POOLS, *_BETWEEN):
        source = at.all_input_nodes[0]
        if op_name(at) in _POOLS:
            return source if source.op == "call_function" else None
        at = source
    return found


class WithFeatures:
    """A traced module that also gives the value of one of its nodes; it shares all state with the module."""

    def __init__(self, module: TracedModule, node: str) -> None:
        graph, copies = FxGraph(), dict[Node, Node]()
        output = graph.graph_copy(module.graph, copies)
        wanted = next(n for n in module.graph.nodes if n.name == node)
        graph.output((output, copies[wanted]))
        self._spec = module._in_spec
        self._view = TracedModule(module, graph)

    def train(self, mode: bool) -> None:
        """Training or evaluation behaviour of its calls; the flags are the module's own."""
        self._view.train(mode)

    def __call__(self, inputs: Inputs, weights: Mapping[str, Tensor]) -> tuple[Any, Tensor]:
        """The module's output as a flat list, and the features; `weights` take the place of parameters."""
        leaves = tuple(fx_pytree.tree_flatten_spec(as_arguments(inputs), self._spec))
        output, features = functional_call(self._view, dict(weights), leaves) if weights else self._view(*leaves)
        return output, features
