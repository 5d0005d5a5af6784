"""pt2: torch's own archive, weights and graph without pickled code."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch

from deploypruner.export import Exporter, exporters
from deploypruner.export.program import capture, quiet
from deploypruner.graph.inputs import Inputs
from deploypruner.graph.open_axes import OpenAxis


@exporters.register("pt2")
class Pt2(Exporter):
    """torch.export archive, for PyTorch itself."""

    suffix: ClassVar[str] = ".pt2"
    format: ClassVar[str] = "pt2"

    def write(
        self,
        module: torch.nn.Module,
        example_inputs: Inputs,
        path: Path,
        *,
        dynamic_batch: bool,
        open_axes: Sequence[OpenAxis] = (),
    ) -> None:
        """See `Exporter.write`."""
        program = capture(module, example_inputs, dynamic_batch=dynamic_batch, open_axes=open_axes)
        # Example inputs and source lines would otherwise travel with the file.
        program.example_inputs = None
        _forget_history(program)
        # Through memory: torch's own writer ends the whole process where the disk is full.
        archive = io.BytesIO()
        with quiet():
            torch.export.save(program, archive)
        path.write_bytes(archive.getbuffer())


def _forget_history(program: torch.export.ExportedProgram) -> None:
    """Drop each node's ancestry: it holds memory addresses, which would make every file different."""
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("from_node", None)
