"""Where the output of a layer arrives: the sum behind it, and what the dense network has there.

A residual branch is right when the stream after its addition is. So its last layer is solved towards the dense
stream, minus the shortcut as the pruned network has it, and makes up for what earlier cuts did to the shortcut. Where
the branches that follow were dropped, the stream to reach is the one after the last of them. A dropped branch is an
addition that the pruned graph lacks.

Source:
    He, Zhang, Sun, "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017, sec. 3.3: the target of a
    branch's last layer is Y1 + Y2 - Y1', the dense sum minus the shortcut as it is. Ours: through batch norm and
    layer scale, past dropped branches, the relu behind the sum, and the constant that the batch norm takes in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from deploypruner.graph.execute.float64_interpreter import Streamed, Value
from deploypruner.graph.execute.module import TracedModule, get_state
from deploypruner.graph.nodes import arguments, op_name, positive, shape_of

_PASS = ("dropout", "feature_dropout", "alpha_dropout", "clone", "contiguous", "alias", "detach")
_VIEWS = ("view", "reshape", "_unsafe_view")
# A channel whose factor is smaller than this share of the largest carries nothing that could be corrected.
_NOTHING = 1e-6


@dataclass(frozen=True)
class Stream:
    """The way from a layer to the sum it is added to.

    Args:
        chain: Calls of the pruned graph from the layer on, each linear in every channel alone.
        other: What the pruned network adds to it; None where nothing is added.
        target: The node of the dense graph whose value is to be reached.
        axis: Channels of that value.
        rectified: Whether nothing but a relu reads the sum, so that values below zero are all the same.
    """

    chain: tuple[Node, ...]
    other: Node | None
    target: Node
    axis: int
    rectified: bool


@dataclass(frozen=True)
class Aim:
    """What a layer is asked for on one batch, in the form of its own output.

    Args:
        missing: The stream it should give minus the one it gives; zero where nothing is asked.
        wanted: The stream it should give, zero where nothing is asked.
        factor: What one unit of its output adds to the stream.
    """

    missing: Tensor
    wanted: Tensor
    factor: Tensor


def find_stream(
    layer: Node, dense: Mapping[str, Node], order: Mapping[Node, int], module: TracedModule
) -> Stream | None:
    """Where the output of a layer arrives, None where that is no sum.

    Args:
        layer: Of the pruned graph.
        dense: Name -> node of the dense graph.
        order: Node -> place, of the pruned graph.
        module: The pruned module.
    """
    axis = len(shape_of(layer)) - 1 if op_name(layer) == "linear" else 1
    chain: list[Node] = []
    at, other = layer, None
    while len(at.users) == 1:
        user = next(iter(at.users))
        if not all(n is at or n.op == "get_attr" or order[n] < order[layer] for n in user.all_input_nodes):
            break
        if op_name(user) == "add":
            other = _added(user, at)
            at = user if other is not None else at
            break
        after = _axis_after(user, at, axis)
        if after is None:
            break
        chain.append(user)
        at, axis = user, after
    if at.name not in dense:
        return None
    target = _after_dropped(dense[at.name], dense, {node.name for node in order})
    rectified = bool(at.users) and all(op_name(user) == "relu" for user in at.users)
    # Without a shortcut to lean on, a relu between was measured to do harm: the stem of a ResNet-20.
    if other is None and (rectified or target is dense[at.name]):
        return None
    return Stream(tuple(chain), other, target, axis, rectified)


def aim(stream: Stream, runner: Streamed, value: Value, *, given: Tensor, target: Tensor) -> Aim:
    """What the layer should have added on one batch.

    Args:
        stream: Where it arrives.
        runner: Of the pruned module.
        value: What the pruned network has computed so far.
        given: The layer's output as it is.
        target: The dense stream at the kept channels.
    """
    with torch.enable_grad():
        start = given.detach().requires_grad_()
        reached = start * 1  # an in-place call may follow
        for before, node in zip((None, *stream.chain), stream.chain, strict=False):
            reached = _step(runner, node, before, reached, value)
    here = reached.detach() if stream.other is None else reached.detach() + value(stream.other)
    missing = target - here
    if stream.rectified:
        target = target.clamp_min(0)
        missing = (target - here).masked_fill((target <= 0) & (here <= 0), 0)

    def back(tensor: Tensor) -> Tensor:
        return torch.autograd.grad(reached, start, tensor, retain_graph=True)[0]

    factor = back(torch.ones_like(reached))
    usable = factor.abs() > _NOTHING * factor.abs().max()
    inverse = torch.where(usable, 1 / factor.masked_fill(~usable, 1), 0)
    return Aim(back(missing) * inverse, back(target) * inverse, factor * usable)


def mean_behind(layer: Node, module: TracedModule) -> str:
    """Name of a running mean that can take in a constant in place of the layer's bias, "" where there is none."""
    users = list(layer.users)
    if arguments(layer)["bias"] is not None or len(users) != 1 or op_name(users[0]) != "batch_norm":
        return ""
    mean = arguments(users[0])["running_mean"]
    if not isinstance(mean, Node):
        return ""
    readers = [
        n
        for n in module.graph.find_nodes(op="get_attr")
        if get_state(module, str(n.target)) is get_state(module, str(mean.target))
    ]
    return str(mean.target) if sum(len(n.users) for n in readers) == 1 else ""


def _step(runner: Streamed, node: Node, before: Node | None, reached: Tensor, value: Value) -> Any:
    """One call of the chain; what it reads beside the chain is known."""
    source = next(n for n in node.all_input_nodes if n.op != "get_attr") if before is None else before
    return runner.call(node, lambda n: reached if n is source else value(n))


def _added(addition: Node, operand: Node) -> Node | None:
    """The other operand of `a + b` of equal shapes."""
    args = arguments(addition)
    operands = [args["self"], args["other"]]
    if args.get("alpha", 1) != 1 or not all(isinstance(n, Node) for n in operands):
        return None
    others = [n for n in operands if n is not operand]
    if len(others) != 1 or shape_of(others[0]) != shape_of(operand):
        return None
    return others[0] if isinstance(others[0], Node) else None


def _axis_after(node: Node, source: Node, axis: int) -> int | None:
    """Axis of the channels behind one call, None where it is not linear in every channel alone."""
    op = op_name(node)
    if op in _PASS:
        return axis
    if op == "batch_norm":
        args = arguments(node)
        return axis if args["input"] is source and axis == 1 and isinstance(args["running_mean"], Node) else None
    if op == "mul":
        return axis if _scales(node, source, axis) else None
    old, new = shape_of(source), node.meta.get("val")
    if not isinstance(new, Tensor):
        return None
    if op in _VIEWS:
        return _axis_in_view(old, shape_of(node), axis)
    if op == "permute":
        return [positive(d, len(old)) for d in arguments(node)["dims"]].index(axis)
    if op == "transpose":
        args = arguments(node)
        swap = [positive(args[name], len(old)) for name in ("dim0", "dim1")]
        return swap[1 - swap.index(axis)] if axis in swap else axis
    return None


def _axis_in_view(old: list[int], new: list[int], axis: int) -> int | None:
    if axis == len(old) - 1 and old[-1] == new[-1]:
        return len(new) - 1
    return axis if axis == 1 and old[:2] == new[:2] else None


def _scales(node: Node, source: Node, axis: int) -> bool:
    """Is this a product with a number, or with a parameter that has one entry per channel?"""
    args = arguments(node)
    others = [n for n in (args["self"], args["other"]) if n is not source]
    if len(others) != 1 or not isinstance(others[0], Node):
        return len(others) == 1
    if others[0].op != "get_attr":
        return False
    rank, shape = len(shape_of(source)), shape_of(others[0])
    return all(size == 1 or place + rank - len(shape) == axis for place, size in enumerate(shape))


def _after_dropped(node: Node, dense: Mapping[str, Node], present: set[str]) -> Node:
    """The sum of the last of the dropped branches that follow directly, `node` where none does."""
    while True:
        stream = [node, *(user for user in node.users if op_name(user) == "relu")]
        additions = [
            user
            for place in stream
            for user in place.users
            if op_name(user) == "add" and user.name not in present and _added(user, place) is not None
        ]
        if not additions:
            return node
        node = dense[additions[0].name]
