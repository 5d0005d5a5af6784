"""The user's own metric: mAP, word error rate, whatever no task here knows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from deploypruner.errors import DeployPrunerError, InputError, said_by
from deploypruner.records import Metric
from deploypruner.runtime import Array

SIGNATURE = "metric(outputs, labels) -> float"


@dataclass(frozen=True)
class OwnMetric:
    """A function that scores all outputs of a model on all validation samples.

    It is called as `function(outputs, labels)`: outputs is what the model returns, an array `[N, ...]`, or a list of
    them where there are several; labels are those of the data in the same order: an array `[N, ...]`, a tuple of
    arrays where the data has several, or a list with an entry per sample where they are no tensors. It returns a
    number; higher is better, unless the function has an attribute `higher_is_better = False` (as torchmetrics has
    it). What `--accuracy-drop` bounds is the loss in percent of the dense model's number.

    Args:
        function: The user's.
        name: For the report.
    """

    function: Callable[[Any, Any], Any]
    name: str

    @property
    def metric(self) -> Metric:
        """As the report knows it."""
        try:
            better = bool(getattr(self.function, "higher_is_better", True))
        except Exception as error:
            raise InputError(
                f"'higher_is_better' of metric '{self.name}' raised {type(error).__name__}: {said_by(error)}",
                hint="set it to True or False",
            ) from error
        return Metric(self.name, unit="", points=None, higher_is_better=better)

    def __call__(self, outputs: Sequence[Array], labels: object) -> float:
        """Call it.

        Raises:
            InputError: It raised, or returned an infinite number. NaN is passed on, and keeps no bound.
        """
        try:
            value = float(self.function(outputs[0] if len(outputs) == 1 else list(outputs), labels))
        except DeployPrunerError:
            raise
        except (Exception, SystemExit) as error:
            raise InputError(
                f"metric '{self.name}' raised {type(error).__name__}: {said_by(error)}",
                hint=f"expected {SIGNATURE}; outputs are numpy arrays, a list of them for several outputs",
            ) from error
        if math.isinf(value):
            raise InputError(f"metric '{self.name}' returned {value}", hint="return a finite number")
        return value
