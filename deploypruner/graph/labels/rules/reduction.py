"""Operators that reduce, order or normalise along axes, and those that work on spatial windows."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch.fx import Node

from deploypruner.graph.labels.atoms import Labels
from deploypruner.graph.labels.rules import family, rule
from deploypruner.graph.labels.rules.contraction import SPATIAL
from deploypruner.graph.labels.rules.elementwise import elementwise
from deploypruner.graph.labels.tracing import Tracing
from deploypruner.graph.nodes import is_tensor, op_name, positive

_WINDOWED = re.compile(
    r"_?(adaptive_)?(avg|max|lp)_pool(?P<n>\d)d(_with_indices)?"
    r"|_?upsample_\w+?(?P<u>\d)d(_aa)?|(reflection|replication|circular)_pad(?P<p>\d)d|fractional_max_pool(?P<f>\d)d"
)


def _dims(argument: Any, rank: int) -> list[int]:
    """Axes named by a `dim` argument; None or empty means all of them."""
    if argument is None or argument == []:
        return list(range(rank))
    return [positive(d, rank) for d in ([argument] if isinstance(argument, int) else argument)]


@rule(
    *[
        "mean",
        "sum",
        "amax",
        "amin",
        "var",
        "std",
        "linalg_vector_norm",
        "norm",
        "max",
        "min",
        "logsumexp",
        "prod",
        "any",
        "all",
        "var_mean",
        "std_mean",
    ]
)
def reduce(tracing: Tracing, node: Node, args: dict[str, Any]) -> Any:
    """Reduced axes disappear; one that may shrink makes this a statistic over what is kept."""
    x = args.get("self", args.get("input"))
    if is_tensor(args.get("other")):
        return elementwise(tracing, node, args)
    axes = tracing.axes(x)
    dims = _dims(args.get("dim"), len(axes))
    tracing.statistic(node, [axes[d] for d in dims])
    out = [None if d in dims else axes[d] for d in range(len(axes)) if args.get("keepdim") or d not in dims]
    return out if isinstance(node.meta["val"], torch.Tensor) else [out, list(out)]


@rule(
    *"softmax log_softmax _softmax cumsum cumprod roll flip sort argmax argmin topk diff kthvalue logcumsumexp "
    "median mode".split()
)
def ordered(tracing: Tracing, node: Node, args: dict[str, Any]) -> Any:
    """Every element depends on the others along the axis: it keeps its length."""
    axes = tracing.axes(node.args[0])
    dims = _dims(args.get("dim", args.get("dims")), len(axes))
    for d in dims:
        tracing.freeze(axes[d], f"{op_name(node)} along this axis depends on every position")
        axes[d] = None
    values = node.meta["val"]
    if not isinstance(values, torch.Tensor):
        return [list(axes) if t.ndim == len(axes) else _without(axes, dims) for t in values]
    return axes if values.ndim == len(axes) else _without(axes, dims)


@family(lambda node: _WINDOWED.fullmatch(op_name(node)) is not None)
def windowed(tracing: Tracing, node: Node, args: dict[str, Any]) -> Any:
    """Pooling, resampling and spatial padding keep every axis but the spatial ones."""
    match = _WINDOWED.fullmatch(op_name(node))
    assert match is not None, f"{op_name(node)} is not a windowed operator"
    spatial = int(next(n for n in match.groupdict().values() if n))
    axes = tracing.axes(node.args[0])
    for labels in axes[-spatial:]:
        tracing.freeze(labels, SPATIAL)
    out = axes[:-spatial] + [None] * spatial
    return out if isinstance(node.meta["val"], torch.Tensor) else [out, list(out)]


def _without(axes: list[Labels], dims: list[int]) -> list[Labels]:
    return [labels for d, labels in enumerate(axes) if d not in dims]
