"""A program saved by torch.export is a graph already: cleaned, with state of its own, compared with itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule

from deploypruner.errors import InputError
from deploypruner.graph.capture.asked_axes import Asked, Request, argument_names, resolve
from deploypruner.graph.capture.captured import Capture, aliases_of, some, traced_module, unused_state
from deploypruner.graph.capture.cleaning import clean
from deploypruner.graph.capture.opening import Opened, Opening, lengths_of, tensors_taken
from deploypruner.graph.capture.other_sizes import agrees_at, sizes_taken
from deploypruner.graph.capture.torch_export import quiet
from deploypruner.graph.execute.module import TracedModule, set_state
from deploypruner.graph.inputs import Inputs, resized, tensors
from deploypruner.graph.open_axes import Place
from deploypruner.graph.reference import Reference, run

# torch.export specialises sizes 0 and 1 to constants; two samples also tell a batch from a broadcast.
_BATCH = 2


def capture_program(program: ExportedProgram, given: Inputs, request: Request = None) -> Capture:
    """A program is a graph already; what it leaves open stays open, unless "none" or fewer axes are asked for.

    Raises:
        InputError: An axis that was asked for is a number in the program.
    """
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
    check = reference.compare(tensors(run(traced, inputs)), wanted)
    remarks = [f"{len(unused)} tensors are not used at inference and were dropped: {some(unused)}"] if unused else []
    opened = _opened(program, traced, inputs, request)
    traced.specialise(sizes=sizes_taken(traced, inputs, opened.axes))
    return Capture(traced, inputs, dynamic, (*remarks, *opened.remarks), check, open_axes=opened.axes)


def _opened(program: ExportedProgram, traced: TracedModule, inputs: Inputs, request: Request) -> Opened:
    """The open axes of a program that were not asked to be closed, and the lengths that it runs with."""
    lengths, names = lengths_of(program), argument_names(program, inputs)
    own: dict[Place, Asked | None] = {
        place: None
        for place, length in lengths.items()
        if place[1] and length.symbol and tensors(inputs)[place[0]].shape[place[1]] > 1
    }
    if request == "none":
        return Opened(remarks=(f"{len(own)} open sizes are fixed at the example's",) if own else ())
    if isinstance(request, tuple):
        asked = resolve(request, names, inputs)
        for tensor, axis in asked:
            if (tensor, axis) not in own:
                raise InputError(
                    f"axis {axis} of '{names[tensor]}' cannot stay open: the program was exported with "
                    f"{tensors(inputs)[tensor].shape[axis]} there",
                    hint="export it again with this axis in dynamic_shapes, or leave it out of --dynamic",
                )
        own = {**asked}
    if not own:
        return Opened()
    # With its guards on: they know for which lengths the path was taken that the program holds.
    with quiet():
        reference = Reference(program.module())
    return Opening(lengths, own, inputs, names, agrees=lambda case: agrees_at(traced, reference, case)).settle()


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
    user = tensors_taken(program)
    return bool(user) and all(t.ndim > 0 and isinstance(t.shape[0], torch.SymInt) for t in user)
