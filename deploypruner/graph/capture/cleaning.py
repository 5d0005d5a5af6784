"""Cleaning an exported graph: regions written out, guards and unread state gone."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from deploypruner.graph.execute.module import get_state


def clean(module: GraphModule, *, detach: bool = False) -> None:
    """Inline regions and erase what computes nothing, in place; see `inline_regions` for `detach`."""
    inline_regions(module, detach=detach)
    _erase_unused(module)


def inline_regions(module: GraphModule, *, detach: bool = False) -> None:
    """Copy the bodies of no_grad and autocast regions, which export keeps as sub-graphs, into the caller.

    Args:
        module: Exported; changed in place.
        detach: Let a no_grad region still stop gradients: what goes into it is detached. A graph to train needs that;
            one to score wants the gradient everywhere.
    """
    for node in list(module.graph.nodes):
        if node.op != "call_function" or not str(node.target).startswith("wrap_with"):
            continue
        position = next(
            i
            for i, a in enumerate(node.args)
            if isinstance(a, Node)
            and a.op == "get_attr"
            and isinstance(get_state(module, str(a.target)), GraphModule)
        )
        region_name = node.args[position].target
        region = get_state(module, region_name)
        inline_regions(region, detach=detach)
        inputs = list(node.args[position + 1 :])
        if detach and "set_grad_enabled" in str(node.target) and node.args[0] is False:
            inputs = [_detached(module, node, value) for value in inputs]
        outputs = _copy_region(module, region, region_name, node, inputs)
        for user in list(node.users):
            assert user.target is operator.getitem, f"unexpected use of a region's result: {user.format_node()}"
            user.replace_all_uses_with(outputs[user.args[1]])
            module.graph.erase_node(user)
        module.graph.erase_node(node)


def _detached(module: GraphModule, before: Node, value: Any) -> Any:
    if not isinstance(value, Node) or not isinstance(value.meta.get("val"), Tensor):
        return value
    with module.graph.inserting_before(before):
        stopped = module.graph.call_function(torch.ops.aten.detach.default, (value,))
    stopped.meta = dict(value.meta)
    return stopped


def _copy_region(module: GraphModule, region: GraphModule, name: str, before: Node, inputs: list[Any]) -> list[Any]:
    """Copy the nodes of `region` before node `before`; returns the nodes that hold its outputs."""
    copies: dict[Node, Any] = {}
    feeds = iter(inputs)
    with module.graph.inserting_before(before):
        for node in region.graph.nodes:
            if node.op == "placeholder":
                copies[node] = next(feeds)
            elif node.op == "output":
                return [copies[n] if isinstance(n, Node) else n for n in node.args[0]]
            elif node.op == "get_attr":
                target = f"{name}_{node.target}".replace(".", "_")
                setattr(module, target, get_state(region, node.target))
                copies[node] = module.graph.get_attr(target)
                copies[node].meta = dict(node.meta)
            else:
                copies[node] = module.graph.node_copy(node, lambda n: copies[n])
                copies[node].meta = dict(node.meta)
    raise AssertionError(f"region {name} has no output node")


def _erase_unused(module: GraphModule) -> None:
    """Erase input guards, metadata assertions and reads of state that nothing uses."""
    for node in reversed(list(module.graph.nodes)):
        guard = node.op == "call_function" and "_assert" in str(node.target)
        if (guard or node.op == "get_attr") and not node.users:
            module.graph.erase_node(node)
    module.graph.lint()
