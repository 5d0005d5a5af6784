"""How far a latency model can be trusted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class LatencyQuality:
    """How far a latency model can be trusted.

    Args:
        error: Median relative error of whole probes, each predicted without itself; None where all timings are
            those of other models.
        probes: Networks that were timed.
        guessed: Share of the dense model's time in operations that come and go, or whose sizes nothing explains.
        remarks: What a user should know: fewer probes for lack of time, a cache that was rebuilt.
    """

    error: float | None
    probes: int
    guessed: float
    remarks: tuple[str, ...] = ()

    @staticmethod
    def from_json(found: dict[str, Any]) -> LatencyQuality:
        """The opposite of `asdict`."""
        return LatencyQuality(**{**found, "remarks": tuple(found["remarks"])})
