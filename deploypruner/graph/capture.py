"""From a user's model to a clean ATen graph with a dynamic batch axis.

The graph is torch.export's *training IR*: high-level operators (conv2d, batch_norm, scaled_dot_product_attention)
with the model's own parameters under their own names. It is never decomposed further, because decomposition
loses the train/eval switch of batch norm and multiplies the number of rules.
"""

from __future__ import annotations

import copy
import logging
import operator
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from io import StringIO
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from deploypruner.errors import TraceError
from deploypruner.graph.module import TracedModule, get_state, set_state
from deploypruner.graph.nodes import is_tensor

# torch.export specialises sizes 0 and 1 to constants, so a batch of one would be baked into the graph.
_TRACE_BATCH = 2


@dataclass(frozen=True)
class Capture:
    """A captured graph.

    Args:
        module: The graph, in eval mode, owning copies of the model's parameters.
        example_inputs: What it was traced with (batch of at least two where the batch is dynamic).
        dynamic_batch: Whether any batch size runs.
        remarks: What a user should know about the capture, one sentence each.
    """

    module: TracedModule
    example_inputs: tuple[Any, ...]
    dynamic_batch: bool
    remarks: tuple[str, ...]


def capture(model: nn.Module | ExportedProgram, example_inputs: tuple[Any, ...]) -> Capture:
    """Export `model` and clean the graph; the model itself is not touched.

    Args:
        model: A module, or a program saved by torch.export.
        example_inputs: Positional inputs; tensors with the batch on axis 0.

    Raises:
        TraceError: The model cannot be exported; the message carries torch.export's reason.
    """
    inputs = batched(example_inputs)
    remarks: tuple[str, ...] = ()
    if isinstance(model, ExportedProgram):
        program, dynamic = model, _is_dynamic(model)
        inputs = inputs if dynamic else example_inputs
    else:
        program, inputs, dynamic, remarks = _export(model, inputs, example_inputs)
    graph_module = program.module(check_guards=False)
    _inline_regions(graph_module)
    _erase_unused(graph_module)
    unused = _unused_state(program, graph_module)
    if unused:
        remarks = (
            *remarks,
            f"{len(unused)} tensors are not used at inference and were dropped: {_some(unused)}",
        )
    module = TracedModule(graph_module, graph_module.graph)
    for name, parameter in list(module.named_parameters(remove_duplicate=False)):
        if name.startswith("lifted_tensor"):
            set_state(module, name, parameter.detach())
    return Capture(module.eval(), inputs, dynamic, remarks)


def batched(example_inputs: tuple[Any, ...], size: int = _TRACE_BATCH) -> tuple[Any, ...]:
    """Repeat inputs of batch one to `size`, so that export does not bake the batch into the graph."""
    tensors = [t for t in pytree.tree_leaves(example_inputs) if isinstance(t, torch.Tensor)]
    if not tensors or any(t.ndim == 0 or t.shape[0] != 1 for t in tensors):
        return example_inputs
    return pytree.tree_map_only(torch.Tensor, lambda t: t.repeat(size, *[1] * (t.ndim - 1)), example_inputs)


def _export(
    model: nn.Module, inputs: tuple[Any, ...], as_given: tuple[Any, ...]
) -> tuple[ExportedProgram, tuple[Any, ...], bool, tuple[str, ...]]:
    """Export with a dynamic batch; where that fails, with the batch the user gave."""
    # The fused transformer path is opaque to export. train() then eval() drops caches that some models
    # fill in eval mode; the copy keeps export's fake tensors out of the user's module.
    torch.backends.mha.set_fastpath_enabled(False)
    model = copy.deepcopy(model)
    model.train()
    model.eval()
    dynamic = pytree.tree_map_only(torch.Tensor, lambda t: {0: Dim.DYNAMIC} if t.ndim else None, inputs)
    with quiet():
        try:
            # A dynamic export marks the tensors it is given, so each attempt gets clones.
            program = torch.export.export(model, _clones(inputs), strict=False, dynamic_shapes=dynamic)
            return program, inputs, True, ()
        except Exception as first:  # noqa: BLE001 - torch.export raises anything a model raises
            reason = _first_line(first)
        try:
            program = torch.export.export(model, _clones(as_given), strict=False)
        except Exception as second:
            raise _trace_error(model, as_given, second) from second
    return program, as_given, False, (f"the batch size is fixed at the example's: {reason}",)


def _trace_error(model: nn.Module, inputs: tuple[Any, ...], error: Exception) -> TraceError:
    """Tell a model that does not run on these inputs from one that runs but cannot be traced."""
    shapes = " and ".join(str(list(t.shape)) for t in pytree.tree_leaves(inputs) if isinstance(t, torch.Tensor))
    try:
        with torch.no_grad():
            model(*inputs)
    except Exception as failure:  # noqa: BLE001 - whatever the user's forward raises
        return TraceError(
            f"the model does not run on example inputs of shape {shapes}: {_first_line(failure)}",
            hint="pass example inputs of the shape, dtype and number the model takes",
        )
    return TraceError(
        f"torch.export cannot trace this model: {_first_line(error)}",
        hint="control flow that depends on tensor values must be written with torch.where or torch.cond",
    )


def _clones(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return pytree.tree_map_only(torch.Tensor, lambda t: t.detach().clone(), inputs)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep torch's warnings, log lines and graph dumps from the user: the error or the remark says enough."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _is_dynamic(program: ExportedProgram) -> bool:
    tensors = [n.meta["val"] for n in program.graph.nodes if n.op == "placeholder" and is_tensor(n)]
    names = set(program.graph_signature.user_inputs)
    user = [n.meta["val"] for n in program.graph.nodes if n.op == "placeholder" and n.name in names and is_tensor(n)]
    assert tensors, "an exported program has at least one tensor input"
    return bool(user) and all(t.ndim > 0 and isinstance(t.shape[0], torch.SymInt) for t in user)


def _inline_regions(module: GraphModule) -> None:
    """Copy the bodies of no_grad and autocast regions, which export keeps as sub-graphs, into the caller."""
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
        _inline_regions(region)
        outputs = _copy_region(module, region, region_name, node, list(node.args[position + 1 :]))
        for user in list(node.users):
            assert user.target is operator.getitem, f"unexpected use of a region's result: {user.format_node()}"
            user.replace_all_uses_with(outputs[user.args[1]])
            module.graph.erase_node(user)
        module.graph.erase_node(node)


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


def _unused_state(program: ExportedProgram, module: GraphModule) -> list[str]:
    """Parameters the inference graph never reads (auxiliary heads); batch-norm counters are not worth a word."""
    used = {node.target for node in module.graph.nodes if node.op == "get_attr"}
    by_tensor = {id(get_state(module, name)) for name in used}
    return [
        name
        for name, tensor in program.state_dict.items()
        if name not in used and id(tensor) not in by_tensor and not name.endswith("num_batches_tracked")
    ]
