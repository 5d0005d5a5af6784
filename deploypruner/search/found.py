"""What the search for a latency found, in a form that survives an interrupted build."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from math import inf, isfinite, nan
from typing import Any

from pydantic import TypeAdapter, ValidationError

from deploypruner.errors import InputError
from deploypruner.recipe.budget import Budget
from deploypruner.records import Setting
from deploypruner.search.candidates import Candidate
from deploypruner.search.final import JudgedPlan
from deploypruner.search.goal import Goal
from deploypruner.search.loop import Round
from deploypruner.search.pool import PoolEntry


@dataclass(frozen=True)
class SearchResult:
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
        judged: The plan itself, judged like those of the pool; None where nothing was.
        cut: What the search left out because its time was over, "" for nothing.
        artifact: Name of the one the budget is about, "" for the pruned one of the setting.
        gave_up: A setting in which the dense model is faster and loses too much, "" for none.
        pace: The latency that was found to keep the accuracy, "" where one was asked for.
        paces: Milliseconds that earlier passes found and that lost too much in the end.
        candidates: Plans that were looked at or measured on the way.
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
    pool: tuple[PoolEntry, ...] = ()
    judged_by: str = ""
    judged: JudgedPlan | None = None
    cut: str = ""
    artifact: str = ""
    gave_up: str = ""
    pace: str = ""
    paces: tuple[float, ...] = ()
    candidates: tuple[Candidate, ...] = ()

    def goal(self, budget: Budget) -> Goal:
        """What the budget means in this setting."""
        return Goal(Budget(latency=self.pace) if self.pace else budget, self.dense_ms, self.tail)

    def to_json(self) -> dict[str, Any]:
        """JSON form, readable by `from_json`."""
        document = asdict(self)
        for part in _judged_parts(document):  # a plan whose outputs are no numbers is endlessly bad
            part["loss"] = part["loss"] if isfinite(part["loss"]) else None
        if self.judged is not None:
            document["judged"] |= {"verdict": self.judged.verdict.to_json(), "dense": self.judged.dense.to_json()}
        return document

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> SearchResult:
        """Read what `to_json` wrote.

        Raises:
            InputError: The document is damaged.
        """
        document = deepcopy(dict(document))
        try:
            for part in _judged_parts(document):
                part["loss"] = inf if part["loss"] is None else part["loss"]
                if part.get("gap"):
                    part["gap"] = {name: nan if value is None else value for name, value in part["gap"].items()}
            return TypeAdapter(SearchResult).validate_python(document)
        except (ValidationError, KeyError, TypeError) as error:
            why = error.errors()[0]["msg"].lower() if isinstance(error, ValidationError) else f"{error} is missing"
            raise InputError(f"the saved search is damaged: {why}", hint="leave out --resume") from error


def _judged_parts(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The parts of a document that have a loss."""
    judged = document.get("judged")
    return [*document.get("pool", ()), *([judged["verdict"], judged["dense"]] if judged else ())]
