"""What can be had where the whole model cannot be exported: its largest sub-module that can."""

from __future__ import annotations

from torch import nn
from torch.export import ExportedProgram

from deploypruner.errors import TraceError
from deploypruner.export import Exporter
from deploypruner.graph.capture.exportable_part import largest_part
from deploypruner.graph.inputs import Inputs
from deploypruner.scratch import scratch


def with_offer(
    refused: TraceError, exporter: Exporter, model: nn.Module | ExportedProgram, inputs: Inputs
) -> TraceError:
    """The error with the part of the model that the same exporter does write, and how to go on.

    Args:
        refused: Why the whole cannot be written.
        exporter: What refused it.
        model: The user's; it is not changed.
        inputs: What it runs on.
    """

    def attempt(part: nn.Module, given: Inputs) -> None:
        with scratch() as folder:
            exporter.write(part, given, folder / f"part{exporter.suffix}", dynamic_batch=False)

    other = "write the operation with others; or take the pruned module from dp.prune, which exports nothing"
    if isinstance(model, ExportedProgram):  # its modules cannot be called
        return TraceError(refused.message, hint=other)
    try:
        found = largest_part(model, inputs, attempt)
    except TraceError:
        return TraceError(
            f"{refused.message}; no part with half of the parameters can be converted either", hint=other
        )
    return TraceError(
        f"{refused.message}; its part '{found.name}', which holds {100 * found.share:.0f} % of the parameters, "
        "can be",
        hint=f"compile model.get_submodule({found.name!r}) with dp.compile; or take the pruned module from dp.prune, "
        "which exports nothing",
    )
