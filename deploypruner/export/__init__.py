"""Exporters: what writes a module to a file that a runtime can load. Adding one is one file, `to_<name>.py`.

A build writes one file of every format. `quantize` writes ONNX, fp32 and int8, of which the IR is made; what has no
such detour is written from the module itself as `model<suffix>`, compared with it in every runtime that opens the
file, and timed where the user names one of these runtimes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch

from deploypruner.graph.inputs import Inputs
from deploypruner.graph.open_axes import OpenAxis
from deploypruner.registries import exporters


class Exporter(ABC):
    """Writes one file format.

    Attributes:
        suffix: File name ending, with the dot; some runtime opens it.
        format: What `records.Artifact.format` calls it.
        from_module: Does a build write it from the module? False for ONNX and what is made of ONNX.
    """

    suffix: ClassVar[str]
    format: ClassVar[str]
    from_module: ClassVar[bool] = True

    @abstractmethod
    def write(
        self,
        module: torch.nn.Module,
        example_inputs: Inputs,
        path: Path,
        *,
        dynamic_batch: bool,
        open_axes: Sequence[OpenAxis] = (),
    ) -> None:
        """Write `module` in evaluation mode to `path`; the module itself is not changed.

        Args:
            module: float32 module on the CPU.
            example_inputs: Positional or keyword inputs of `forward`, batch on axis 0; the file's inputs are
                called as the arguments are.
            path: File to write, ending in `suffix`. The caller makes it atomic.
            dynamic_batch: Leave the batch of every input open. False bakes the example's batch in.
            open_axes: Other axes that stay open. All that are not named here have the example's length in the file.

        Raises:
            TraceError: The module cannot be captured, or has no counterpart in this format.
        """


def from_module() -> tuple[type[Exporter], ...]:
    """Those that a build writes from the module, by name."""
    return tuple(cls for cls in map(exporters.get, exporters) if cls.from_module)


__all__ = ["Exporter", "exporters", "from_module"]
