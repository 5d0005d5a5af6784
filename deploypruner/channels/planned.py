"""What the compiler is told by a plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from deploypruner.graph import Graph


class Planned(Protocol):
    """A choice of channels for one model; `plan.Plan` is one."""

    @property
    def keep(self) -> Mapping[str, NDArray[np.int64]]:
        """Group id -> kept channels; id of a branch that goes -> nothing."""

    @property
    def part(self) -> str:
        """Name of the only sub-module that was traced, "" for the whole model."""

    @property
    def inputs(self) -> Any:
        """Example inputs the model was traced with, as `graph.inputs.to_json` describes them."""

    def check(self, graph: Graph) -> None:
        """Make sure that it was made for this model.

        Raises:
            PlanError: It was not.
        """
