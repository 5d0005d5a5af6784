"""What each kind of model source hands to `load_model`, before any check."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn
from torch.export import ExportedProgram

from deploypruner.graph.inputs import Inputs
from deploypruner.sources.preprocessing import Preprocessing

Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class ModelRequest:
    """What the user asked for.

    Args:
        source: MODEL as typed.
        weights: File given with --weights.
        input_shapes: Shapes given with --input-shape, batch included.
        trust_pickle: Whether code inside the file may run.
    """

    source: str
    weights: Path | None = None
    input_shapes: Shapes | None = None
    trust_pickle: bool = False


@dataclass(frozen=True)
class FoundModel:
    """A model as its source gave it.

    Args:
        module: The model, on any device, in any dtype and mode.
        name: Short title.
        example_inputs: Inputs that the source carries, None where it carries none.
        input_shape: Shape of the one input, batch 1 included, where the source knows it.
        integers_below: The input is integers in [0, integers_below) and not floats; 0 = floats.
        preprocessing: How the source says its images are prepared.
        task: What the source says the first output is, "" where it does not say.
        classes: Names of the classes of that output, in their order; none where it does not say.
    """

    module: nn.Module | ExportedProgram
    name: str
    example_inputs: Inputs | None = None
    input_shape: tuple[int, ...] | None = None
    integers_below: int = 0
    preprocessing: Preprocessing | None = None
    task: str = ""
    classes: tuple[str, ...] = ()
