"""The captured program every exporter starts from, in evaluation mode and with an open batch axis."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch.export import Dim, ExportedProgram

from deploypruner.errors import TraceError
from deploypruner.graph.capture import quiet

_aten = torch.ops.aten


def capture(
    module: torch.nn.Module, example_inputs: Sequence[torch.Tensor], *, dynamic_batch: bool
) -> ExportedProgram:
    """Capture `module` as a program; `module` keeps its mode and its state.

    Args:
        module: float32 module on the CPU.
        example_inputs: One tensor per input of `forward`, batch on axis 0.
        dynamic_batch: Leave axis 0 of every input open.

    Raises:
        TraceError: torch.export refused, for example because the batch size is baked into the model.
    """
    args = tuple(_at_least_two(x) if dynamic_batch else x for x in example_inputs)
    shapes = tuple({0: Dim.DYNAMIC} if x.ndim else None for x in args) if dynamic_batch else None
    with quiet():
        try:
            return torch.export.export(evaluating(module), args, dynamic_shapes=shapes, strict=False)
        except (RuntimeError, ValueError, TypeError, torch._dynamo.exc.UserError) as error:
            hint = "export with dynamic_batch=False if the model fixes its batch size" if dynamic_batch else ""
            raise TraceError(f"torch.export cannot capture the model: {_first_line(error)}", hint=hint) from error


def with_reshapes(program: ExportedProgram) -> ExportedProgram:
    """Return `program` with `view` as `reshape` and `contiguous` as `clone`, in place.

    The ONNX decompositions drop `contiguous` as a no-op and rewrite attention with other strides, after which
    a `view` that was legal no longer is. Reshape means the same and has no such condition.
    """
    graph = program.graph
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


def _at_least_two(x: torch.Tensor) -> torch.Tensor:
    """Repeat a batch of one: torch.export treats sizes 0 and 1 as constants."""
    return torch.cat([x, x]) if x.ndim and x.shape[0] == 1 else x


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
