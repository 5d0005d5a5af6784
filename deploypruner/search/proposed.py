"""The pool of plans on disk: an interrupted search judges the plans that it had made, not new ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from deploypruner.records import Setting
from deploypruner.search.objectives import Objective, Space, named_objective
from deploypruner.search.request import SearchRequest
from deploypruner.search.saved import Saved, identity_of
from deploypruner.search.solve import Solution

Plans = list[tuple[Objective, Solution]]
Measurements = list[tuple[Solution, float]]
"""Plans and the milliseconds that each took."""
_FORMAT = 2


class Proposed:
    """A file with one pool; a machine whose speed has changed since gives the closed loop something to correct.

    Args:
        saved: Where it is.
    """

    def __init__(self, saved: Saved) -> None:
        self._saved = saved

    @staticmethod
    def of(request: SearchRequest, space: Space, setting: Setting) -> Proposed:
        """The file of a search; of another model, budget, setting or worth nothing in it counts."""
        path = None if request.folder is None else request.folder / "pool.json"
        if path is None:
            return Proposed(Saved(None, ""))
        asked = (setting, request.budget, request.plans, space.normalizer, space.step, space.constraints, space.seed)
        scores, losses = {name: score.tolist() for name, score in space.scores.items()}, space.measured
        worth = losses and [{name: line.tolist() for name, line in losses.groups.items()}, dict(losses.branches)]
        return Proposed(Saved(path, identity_of(space.graph.module, _FORMAT, asked, scores, worth)))

    def plans(self, known: Sequence[Objective], space: Space) -> Plans | None:
        """What was proposed, None where nothing was."""
        if "plans" not in self._saved.entries:
            return None
        named = {objective.name: objective for objective in known}
        return [
            (named.get(name) or named_objective(space, name), _solution(plan))
            for name, plan in self._saved.entries["plans"]
        ]

    def solved(self, name: str, solve: Callable[[], Solution]) -> Solution:
        """The plan of this name that an interrupted search has come to already, or a new one."""
        key = f"plan of {name}"
        if key not in self._saved.entries:
            solution = solve()
            self._saved.add(key, _document(solution))
            return solution
        return _solution(self._saved.entries[key])

    def measured(self, name: str) -> tuple[Solution, Measurements] | None:
        """The plan that an interrupted search has come to by measuring, and what it measured for that."""
        found = self._saved.entries.get(f"measured {name}")
        return found and (_solution(found[0]), [(_solution(plan), ms) for plan, ms in found[1]])

    def add_measured(self, name: str, best: Solution, measurements: Measurements) -> None:
        """Remember what measuring came to."""
        self._saved.add(f"measured {name}", [_document(best), [(_document(plan), ms) for plan, ms in measurements]])

    def add(self, plans: Plans) -> None:
        """Remember a pool."""
        self._saved.add("plans", [(objective.name, _document(solution)) for objective, solution in plans])


def _document(solution: Solution) -> dict[str, Any]:
    keep = {name: np.asarray(kept).tolist() for name, kept in solution.keep.items()}
    loss = None if np.isnan(solution.loss) else solution.loss
    return {**asdict(solution), "keep": keep, "widths": dict(solution.widths), "loss": loss}


def _solution(plan: Mapping[str, Any]) -> Solution:
    keep = {name: np.array(kept, np.int64) for name, kept in plan["keep"].items()}
    return Solution(**{**plan, "keep": keep, "loss": float("nan") if plan["loss"] is None else plan["loss"]})
