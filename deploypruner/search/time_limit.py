"""The time that a search may take, from its first measurement to the last round of its closed loop."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class TimeLimit:
    """When it is over nothing begins that a plan can be had without, and `cuts` says what was left out.

    Args:
        minutes: From now on.
        clock: Seconds.

    Attributes:
        reserve: Seconds to leave for what comes after: the rounds of the closed loop.
        cuts: What was left out or shortened, in words that follow "the time for the search ended: ".
    """

    minutes: float = float("inf")
    clock: Callable[[], float] = time.monotonic
    reserve: float = 0.0
    cuts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._begun = self.clock()

    @property
    def spent(self) -> float:
        """Seconds since it began."""
        return self.clock() - self._begun

    @property
    def left(self) -> float:
        """Seconds until nothing further may begin; below zero when it is over."""
        return 60 * self.minutes - self.reserve - self.spent

    def allows(self, seconds: float = 0.0) -> bool:
        """May something begin that is expected to take so long?"""
        return self.left > 0 and seconds <= self.left

    def cut(self, what: str) -> None:
        """Remember that something was left out."""
        self.cuts.append(what)

    @property
    def remark(self) -> str:
        """What was cut, for the user; "" for nothing."""
        if not self.cuts:
            return ""
        more = f", and {self.spent / 60:.1f} were needed" if self.spent > 60 * self.minutes else ""
        return f"the time for the search (--search-minutes {self.minutes:g}{more}) ended: {', '.join(self.cuts)}"
