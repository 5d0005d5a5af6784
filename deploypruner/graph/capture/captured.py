"""What capturing a model gives, and the module it is in: state under the user's names, constants as buffers."""

from __future__ import annotations

from dataclasses import dataclass

from torch.export import ExportedProgram
from torch.fx import GraphModule

from deploypruner.graph.execute.module import TracedModule, get_state, set_state
from deploypruner.graph.inputs import Inputs
from deploypruner.graph.open_axes import OpenAxis
from deploypruner.records import Check


@dataclass(frozen=True)
class Capture:
    """A captured graph.

    Args:
        module: The graph in eval mode, under the user's names. Parameters are new objects over the storage of
            the user's own, so training this module in place would train the user's model: copy it first.
            Buffers are its own.
        example_inputs: Two samples where the batch is dynamic, what was given otherwise.
        dynamic_batch: Whether any batch size runs.
        remarks: What a user should know about the capture, one sentence each.
        check: Traced graph against the model, on the example inputs.
        trains_differently: How it differs from the model in training mode, or why that is not known; "" where it
            does not differ.
        open_axes: Axes beside the batch that are open, because they were asked for or are in the program.
    """

    module: TracedModule
    example_inputs: Inputs
    dynamic_batch: bool
    remarks: tuple[str, ...]
    check: Check
    trains_differently: str = ""
    open_axes: tuple[OpenAxis, ...] = ()


def traced_module(module: GraphModule, aliases: dict[str, str]) -> TracedModule:
    """The module that switches modes; constants made in forward are buffers, tied tensors have all their names."""
    traced = TracedModule(module, module.graph)
    for name, used in aliases.items():
        set_state(traced, name, get_state(traced, used))
    for name, parameter in list(traced.named_parameters(remove_duplicate=False)):
        if name.startswith("lifted_tensor"):
            set_state(traced, name, parameter.detach())
    return traced.eval()


def has_state(module: TracedModule, name: str) -> bool:
    """Does a graph that only training has read it?"""
    try:
        get_state(module, name)
    except AttributeError:
        return False
    return True


def aliases_of(program: ExportedProgram, module: GraphModule) -> dict[str, str]:
    """Other names of tied tensors -> the one name the graph reads them by."""
    used = {id(get_state(module, str(n.target))): str(n.target) for n in module.graph.find_nodes(op="get_attr")}
    known = set(used.values())
    return {k: used[id(t)] for k, t in program.state_dict.items() if id(t) in used and k not in known}


def some(names: list[str]) -> str:
    """The first few names, for a remark."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def unused_state(program: ExportedProgram, module: GraphModule) -> list[str]:
    """Parameters the inference graph never reads (auxiliary heads); batch-norm counters are not worth a word."""
    used = {node.target for node in module.graph.nodes if node.op == "get_attr"}
    by_tensor = {id(get_state(module, str(name))) for name in used}
    return [
        name
        for name, tensor in program.state_dict.items()
        if name not in used and id(tensor) not in by_tensor and not name.endswith("num_batches_tracked")
    ]
