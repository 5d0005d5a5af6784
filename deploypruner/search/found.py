"""What the search for a latency found, in a form that survives an interrupted build."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pydantic import TypeAdapter, ValidationError

from deploypruner.budget import Budget
from deploypruner.errors import InputError
from deploypruner.records import Setting
from deploypruner.search.goal import Goal
from deploypruner.search.loop import Round
from deploypruner.search.pool import Entry


@dataclass(frozen=True)
class Found:
    """The outcome of a search under a budget of time.

    Args:
        setting: Runtime, precision and threads the budget is for.
        dense_ms: Median of the dense model there.
        tail: Its quantile / its median, for a budget about a quantile.
        importance: Share of the importance that stays.
        predicted_ms: Of the plan, by the latency model as it was then.
        measured_ms: Of the plan, see `Round.measured_ms`.
        rounds: Candidates that were exported and measured.
        remark: Why this setting.
        table: How the latency model was made: seconds, probes, error, ...
        objective: What the plan was chosen by, see `search.objectives`; "" where nothing had to be cut.
        pool: Plans that were judged before that one was chosen, the best first.
        judged_by: What their loss is.
        keeps: Predicted milliseconds of the fastest plan that keeps the quality without training, where this one was
            not judged to; None where it was, or nothing was judged.
        artifact: Name of the one the budget is about, "" for the pruned one of the setting.
    """

    setting: Setting
    dense_ms: float
    tail: float
    importance: float = 1.0
    predicted_ms: float | None = None
    measured_ms: float | None = None
    rounds: tuple[Round, ...] = ()
    remark: str = ""
    table: dict[str, Any] = field(default_factory=dict)
    objective: str = ""
    pool: tuple[Entry, ...] = ()
    judged_by: str = ""
    keeps: float | None = None
    artifact: str = ""

    def goal(self, budget: Budget) -> Goal:
        """What the budget means in this setting."""
        return Goal(budget, self.dense_ms, self.tail)

    def to_json(self) -> dict[str, Any]:
        """JSON form, readable by `from_json`."""
        return asdict(self)

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> Found:
        """Read what `to_json` wrote.

        Raises:
            InputError: The document is damaged.
        """
        try:
            return TypeAdapter(Found).validate_python(document)
        except ValidationError as error:
            raise InputError(
                f"the saved search is damaged: {error.errors()[0]['msg'].lower()}", hint="leave out --resume"
            ) from error
