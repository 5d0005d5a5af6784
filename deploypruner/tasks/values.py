"""Values: numbers of which nothing more is known."""

from __future__ import annotations

from typing import ClassVar

from deploypruner.records import RELATIVE_ERROR
from deploypruner.tasks import Array, Task, tasks
from deploypruner.tasks.relative import agreement_of, relative_error


@tasks.register("values")
class Values(Task):
    """Numbers of any shape: their relative error against the dense model's; labels are not looked at.

    Source:
        See `relative.relative_error`.
    """

    order: ClassVar[int] = 100
    agreement_kind: ClassVar[str] = RELATIVE_ERROR

    def takes(self, output: Array) -> bool:
        """Anything."""
        return True

    def resembles(self, output: Array) -> bool:
        """Whatever nothing else resembles."""
        return True

    def agreement(self, output: Array, reference: Array) -> float:
        """1 - relative error."""
        return agreement_of(relative_error(output, reference))

    def details(self, output: Array, reference: Array) -> dict[str, float]:
        """The relative error itself."""
        return {"relative error": relative_error(output, reference)}
