"""Normalisation layers: their parameters follow the channels; some also take statistics over them."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from deploypruner.graph.labels.atoms import Labels
from deploypruner.graph.labels.rules import rule
from deploypruner.graph.labels.tracing import Tracing
from deploypruner.graph.nodes import is_tensor, shape_of

_PARAMETER = "a normalisation over channels whose number is fixed"


@rule("batch_norm", "instance_norm")
def batch_norm(tracing: Tracing, node: Node, args: dict[str, Any]) -> list[Labels]:
    """Per-channel affine. Without running statistics it normalises by its own input (weight standardisation)."""
    out = tracing.axes(args["input"])
    channel = 1 if len(out) > 1 else 0
    for name in ("weight", "bias", "running_mean", "running_var"):
        if is_tensor(args.get(name)):
            out[channel] = tracing.unify(out[channel], tracing.axes(args[name])[0], _PARAMETER)
            tracing.role(args[name], 0, "norm")
    tracing.affine(args.get("weight"), args.get("bias"), 0, "norm")
    if not is_tensor(args.get("running_mean")):
        tracing.statistic(node, [labels for axis, labels in enumerate(out) if axis != channel])
    return out


@rule("layer_norm", "rms_norm")
def layer_norm(tracing: Tracing, node: Node, args: dict[str, Any]) -> list[Labels]:
    """Mean and variance over the last axes, which may be channels."""
    out = tracing.axes(args["input"])
    last = len(args["normalized_shape"])
    for name in ("weight", "bias"):
        if is_tensor(args.get(name)):
            for i, labels in enumerate(tracing.axes(args[name])):
                axis = len(out) - last + i
                out[axis] = tracing.unify(out[axis], labels, _PARAMETER)
                tracing.role(args[name], i, "norm")
    if last == 1:
        tracing.affine(args.get("weight"), args.get("bias"), 0, "norm")
    tracing.statistic(node, out[-last:])
    return out


@rule("group_norm")
def group_norm(tracing: Tracing, node: Node, args: dict[str, Any]) -> list[Labels]:
    """Mean and variance over the channels of each group."""
    out, channels, groups = tracing.axes(args["input"]), shape_of(args["input"])[1], args["num_groups"]
    for name in ("weight", "bias"):
        if is_tensor(args.get(name)):
            out[1] = tracing.unify(out[1], tracing.axes(args[name])[0], _PARAMETER)
            tracing.role(args[name], 0, "norm")
    tracing.affine(args.get("weight"), args.get("bias"), 0, "norm")
    if groups > 1:
        sizes = [groups, channels // groups]
        group, column = tracing.atoms.split(out[1], sizes)
        out[1] = tracing.atoms.flatten([group, column], sizes)
        tracing.counts[node] = ("num_groups", group)
    if channels // groups > 1:
        tracing.statistic(node, [out[1]])
    return out


@rule("_weight_norm", "_weight_norm_interface")
def weight_norm(tracing: Tracing, node: Node, args: dict[str, Any]) -> list[Any]:
    """V * g / |v|, the norm taken over all axes but one; what is kept of v keeps its scale (`rewrite`)."""
    v, g = tracing.axes(node.args[0]), tracing.axes(node.args[1])
    d = args["dim"] % len(v)
    v[d] = tracing.unify(v[d], g[d], "a weight norm over rows of fixed number")
    direction, length = node.args[:2]
    if isinstance(direction, Node) and direction.op == "get_attr":
        tracing.directions.add(str(direction.target))
        if isinstance(length, Node) and length.op == "get_attr":
            tracing.normed[str(length.target)] = (str(direction.target), args["dim"])
        else:
            tracing.statistic(node, [labels for axis, labels in enumerate(v) if axis != d])
    else:
        tracing.statistic(node, [labels for axis, labels in enumerate(v) if axis != d])
    if isinstance(node.meta["val"], torch.Tensor):
        return v
    return [v, [labels if axis == d else None for axis, labels in enumerate(v)]]  # the interface adds the norms
