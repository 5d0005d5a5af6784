"""The captured program every exporter starts from, in evaluation mode and with an open batch axis."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch.export import ExportedProgram

from deploypruner.errors import TraceError, said_by
from deploypruner.export.spelled_out import spell_out
from deploypruner.graph.capture.stochastic_depth import without_stochastic_depth
from deploypruner.graph.capture.torch_export import quiet
from deploypruner.graph.inputs import Inputs, as_arguments, as_inputs, batch_size, resized
from deploypruner.graph.open_axes import OpenAxis, export_shapes
from deploypruner.graph.recurrent import open_sequences

_aten = torch.ops.aten


def capture(
    module: torch.nn.Module, example_inputs: Inputs, *, dynamic_batch: bool, open_axes: Sequence[OpenAxis] = ()
) -> ExportedProgram:
    """Capture `module` as a program; `module` keeps its mode and its state.

    Args:
        module: float32 module on the CPU.
        example_inputs: Positional or keyword inputs of `forward`, batch on axis 0.
        dynamic_batch: Leave the batch of every input open.
        open_axes: Other axes that stay open.

    Raises:
        TraceError: torch.export refused, for example because the batch size is baked into the model.
    """
    inputs = as_inputs(example_inputs)
    if dynamic_batch:
        # torch.export treats sizes 0 and 1 as constants.
        inputs = resized(inputs, max(2, batch_size(inputs)))
    shapes = export_shapes(inputs, open_axes, batch=dynamic_batch)
    args, kwargs = as_arguments(inputs)
    with quiet(), open_sequences():
        try:
            return torch.export.export(evaluating(module), args, kwargs, dynamic_shapes=shapes, strict=False)
        except Exception as error:
            hint = "export with dynamic_batch=False if the model fixes its batch size" if dynamic_batch else ""
            raise TraceError(f"torch.export cannot capture the model: {said_by(error)}", hint=hint) from error


def with_reshapes(program: ExportedProgram) -> ExportedProgram:
    """Return `program` with `view` as `reshape` and `contiguous` as `clone`, without stochastic depth, in place.

    The ONNX decompositions drop `contiguous` as a no-op and rewrite attention with other strides, after which
    a `view` that was legal no longer is. Reshape means the same and has no such condition.
    """
    graph = program.graph
    without_stochastic_depth(graph)
    spell_out(graph)
    for node in graph.nodes:
        if node.target is _aten.view.default:
            node.target = _aten.reshape.default
        elif node.target is _aten.contiguous.default:
            node.target = _aten.clone.default
            node.args = node.args[:1]
            node.kwargs = {"memory_format": torch.contiguous_format}
    program.graph_module.recompile()
    return program


def evaluating(module: torch.nn.Module) -> torch.nn.Module:
    """A copy of `module` in evaluation mode.

    A copy even where the mode is right, because capture may leave fake tensors in cached attributes.
    """
    with quiet():
        return copy.deepcopy(module).eval()
