"""A program saved by torch.export is a graph already: cleaned, with state of its own, compared with itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule

from deploypruner.graph.captured import Capture, aliases_of, some, traced_module, unused_state
from deploypruner.graph.exporting import quiet
from deploypruner.graph.inputs import Inputs, call, resized, tensors
from deploypruner.graph.module import set_state
from deploypruner.graph.nodes import is_tensor
from deploypruner.graph.other_sizes import sizes_taken
from deploypruner.graph.reference import Reference, seeded
from deploypruner.graph.regions import clean

# torch.export specialises sizes 0 and 1 to constants; two samples also tell a batch from a broadcast.
_BATCH = 2


def capture_program(program: ExportedProgram, given: Inputs) -> Capture:
    """A program is a graph already."""
    dynamic = _is_dynamic(program)
    inputs = resized(given, _BATCH) if dynamic else given
    with quiet():
        module, reference = program.module(check_guards=False), Reference(program.module(check_guards=False))
    wanted = reference.outputs(inputs)
    clean(module)
    unused = unused_state(program, module)
    aliases = aliases_of(program, module)
    _own_objects(module)
    traced = traced_module(module, aliases)
    with torch.no_grad(), seeded(inputs, 0):
        check = reference.compare(tensors(call(traced, inputs)), wanted)
    remarks = [f"{len(unused)} tensors are not used at inference and were dropped: {some(unused)}"] if unused else []
    opened = _open_sizes_of(program)
    if opened:
        remarks.append(
            f"the program leaves sizes open ({', '.join(opened)}): so does the pruned module, and the exported files "
            f"are fixed at the example's"
        )
    else:
        traced.specialise(sizes=sizes_taken(traced, inputs))
    return Capture(traced, inputs, dynamic, tuple(remarks), check)


def _open_sizes_of(program: ExportedProgram) -> list[str]:
    """Open axes of the inputs beside the batch, in a person's words: "axis 2 of 'x'"."""
    names = set(program.graph_signature.user_inputs)
    user = [n for n in program.graph.nodes if n.op == "placeholder" and n.name in names and is_tensor(n)]
    return [
        f"axis {axis} of '{node.name}'"
        for node in user
        for axis, size in enumerate(node.meta["val"].shape)
        if axis and isinstance(size, torch.SymInt)
    ]


def _own_objects(module: GraphModule) -> None:
    """New parameters over the same storage, and copies of the buffers, so that the program keeps its own."""
    made: dict[int, Tensor] = {}
    for name, tensor in [*module.named_parameters(remove_duplicate=False), *module.named_buffers()]:
        if id(tensor) not in made:
            data = tensor.detach()
            shared = isinstance(tensor, nn.Parameter)
            made[id(tensor)] = nn.Parameter(data, tensor.requires_grad) if shared else data.clone()
        set_state(module, name, made[id(tensor)])


def _is_dynamic(program: ExportedProgram) -> bool:
    names = set(program.graph_signature.user_inputs)
    user = [n.meta["val"] for n in program.graph.nodes if n.op == "placeholder" and n.name in names and is_tensor(n)]
    return bool(user) and all(t.ndim > 0 and isinstance(t.shape[0], torch.SymInt) for t in user)
