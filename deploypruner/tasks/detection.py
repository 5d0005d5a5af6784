"""Detection: boxes and their scores, one row per candidate."""

from __future__ import annotations

from typing import ClassVar

from deploypruner.tasks import Array, tasks
from deploypruner.tasks.values import Values


@tasks.register("detection")
class Detection(Values):
    """Boxes, scores, key points of candidates `[N, A, ...]`: relative error of each output; mAP is yours (--metric).

    Candidates of both models lie in the same places, so their numbers are compared before any suppression; which
    detections remain afterwards depends on thresholds that are no part of the network.
    """

    order: ClassVar[int] = 90

    def takes(self, output: Array) -> bool:
        """Any numbers."""
        return output.dtype.kind in "fiu"

    def resembles(self, output: Array) -> bool:
        """Never by itself: it takes boxes and scores together, see `recognise`."""
        return False
