"""Reading and editing the nodes of an exported ATen graph: shapes, arguments by name, source lines."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch.fx import Node

# Operators that cut a tensor into several along one axis, `dim`.
SPLITS = ("split", "chunk", "split_with_sizes", "tensor_split", "unsafe_chunk", "unsafe_split")


def size_hint(size: int | torch.SymInt) -> int:
    """The size seen while tracing; the analysis always works on this number."""
    return size if isinstance(size, int) else int(size.node.hint)


def is_tensor(value: Any) -> bool:
    """Is this argument a node that holds one tensor?"""
    return isinstance(value, Node) and isinstance(value.meta.get("val"), torch.Tensor)


def shape_of(node: Any) -> list[int]:
    """Traced shape of the tensor a node holds."""
    return [size_hint(size) for size in node.meta["val"].shape]


def op_name(node: Node) -> str:
    """ "aten.relu_.default" -> "relu": in-place variants follow the rule of the functional op."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return ""
    name = node.target._schema.name.split("::")[1]
    return name if name.startswith("__") else name.rstrip("_")


def arguments(node: Node) -> dict[str, Any]:
    """Argument name -> value, defaults filled in from the operator's schema."""
    bound: dict[str, Any] = {}
    assert isinstance(node.target, torch._ops.OpOverload), f"{node.target} is not an ATen operator"
    for position, argument in enumerate(node.target._schema.arguments):
        if position < len(node.args) and not argument.kwarg_only:
            bound[argument.name] = node.args[position]
        elif argument.name in node.kwargs:
            bound[argument.name] = node.kwargs[argument.name]
        else:
            bound[argument.name] = argument.default_value if argument.has_default_value() else None
    return bound


def set_argument(node: Node, name: str, value: Any) -> None:
    """Set one argument of an ATen call by its schema name."""
    assert isinstance(node.target, torch._ops.OpOverload), f"{node.target} is not an ATen operator"
    for position, argument in enumerate(node.target._schema.arguments):
        if argument.name == name:
            if position < len(node.args) and not argument.kwarg_only:
                node.update_arg(position, value)
            else:
                node.update_kwarg(name, value)
            return
    raise AssertionError(f"{node.target} has no argument '{name}'")


def writes_into(user: Node, node: Node) -> bool:
    """Does `user` write into the tensor of `node` in place?"""
    if not isinstance(user.target, torch._ops.OpOverload):
        return False
    return any(
        position < len(user.args)
        and user.args[position] is node
        and argument.alias_info is not None
        and argument.alias_info.is_write
        for position, argument in enumerate(user.target._schema.arguments)
    )


def positive(dim: int, rank: int) -> int:
    """Axis number counted from the front."""
    return dim + rank if dim < 0 else dim


def where(node: Any) -> str:
    """Last line of the user's model behind a node: "resnet.py:93 (layer1.0)"; "" when unknown.

    A front end without nodes gives the name of the module or parameter instead.
    """
    if not isinstance(node, Node):
        return node if isinstance(node, str) else ""
    modules = list((node.meta.get("nn_module_stack") or {}).values())
    module = modules[-1][0] if modules else ""
    frames = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    frames = [f for f in frames if "/torch/nn/" not in f[0]] or frames
    line = "/".join(frames[-1][0].split("/")[-2:]) + ":" + frames[-1][1] if frames else ""
    return f"{line} ({module})" if line and module else line or module
