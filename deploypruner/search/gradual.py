"""A budget of time, met little by little while the model trains: every step solves anew for what is left.

Residual branches that the plan of one shot drops are gone from the start, and no others go: a branch that is shut in
the middle of a training takes with it what was learnt with it. The way from there is exponential,
T(s) = exp(s ln T_final + (1 - s) ln T_start), so that each step takes the same share of what is left. At each the
criterion scores the weights as they are by then, the objective that one shot chose solves for T(s), and what goes
stays gone: it has no gradient any more that could call it back.

Source: the path is that of FORCE, de Jorge et al., arXiv:2006.09081, sec. 4, with times in place of counts as in
HALP, arXiv:2110.10811, which takes 30 steps. Measured rates of exchange, and a last step that is never slower than
the plan of one shot, are ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import exp, log

import numpy as np
from torch import Tensor

from deploypruner.channels.feasible_widths import by_importance
from deploypruner.channels.learned.regime import nothing_of, settled
from deploypruner.channels.plan import Plan
from deploypruner.errors import BudgetError, InputError
from deploypruner.graph.labels.atoms import IntArray
from deploypruner.search.choices import TallyOf
from deploypruner.search.losses import Losses, kept_share, losses_from_scores, running_importance
from deploypruner.search.objectives import Objective, Space, named_objective, objectives
from deploypruner.search.remaining import Remaining, still
from deploypruner.search.solve import Solution, with_branches

Left = Mapping[str, IntArray]


@dataclass(frozen=True)
class Gradual:
    """What every step solves.

    Args:
        space: Scores of the dense model, its measured losses, and what may be cut.
        objective: Name of the one to choose by.
        planned: The plan of one shot, measured to keep the budget.
        tally_of: Predicts milliseconds.
        final_ms: What the last step may take.
    """

    space: Space
    objective: str
    planned: Plan
    tally_of: TallyOf
    final_ms: float

    def target(self, share: float) -> float:
        """Milliseconds at a share of the way, 0 to 1."""
        start = self._predicted(self.tally_of, nothing_of(self.planned.dropped))
        return exp(share * log(self.final_ms) + (1 - share) * log(start))

    def narrow(self, share: float, scores: Mapping[str, Tensor], left: Left) -> Left:
        """What stays of what is left at a share of the way; a `channels.learned.Narrow`.

        Where the last step finds nothing fast enough, every group becomes as narrow as in the plan of one shot.

        Args:
            share: Of the way, 0 to 1.
            scores: Group id -> `[C]`, of the weights as they are.
            left: Group id -> channels.
        """
        try:
            return self.solve(self.tally_of, self.target(share), scores=scores, left=left).keep
        except BudgetError:
            return self._as_planned(scores, left) if share == 1 else left

    def solve(self, tally_of: TallyOf, ms: float, *, scores: Mapping[str, Tensor], left: Left) -> Solution:
        """The best plan within a time for what is left; all of it where that is fast enough.

        Args:
            tally_of: Predicts milliseconds.
            ms: What it may take.
            scores: As in `narrow`.
            left: The same.

        Raises:
            BudgetError: No objective reaches the time.
        """
        scores, left = {g: s.detach().cpu() for g, s in scores.items()}, {**left, **nothing_of(self.planned.dropped)}
        predicted = self._predicted(tally_of, left)
        if predicted <= ms:
            return self._solution(left, predicted)
        widths = replace(self.space.constraints, depth="keep")
        space = replace(self.space, scores=scores, measured=self._measured(scores), constraints=widths)
        failed: BudgetError | None = None
        for objective in self._asked(space):
            try:
                found = objective.solve(lambda order: Remaining(tally_of, order, left), ms)
            except (BudgetError, InputError) as error:
                failed = failed or (error if isinstance(error, BudgetError) else None)
                continue
            keep = self._of_what_is_left(found.keep, left)
            return self._solution(keep, self._predicted(tally_of, keep))
        raise failed or BudgetError(f"no plan for what is left reaches {ms:.3g} ms", hint="ask for more time")

    def _asked(self, space: Space) -> Iterator[Objective]:
        first = named_objective(space, self.objective)
        yield first
        yield from (other for other in objectives(space) if other.name != first.name)

    def _measured(self, scores: Mapping[str, Tensor]) -> Losses | None:
        """Losses of what is left: what was measured on the dense model says what a unit of score is worth.

        L(w) = (L_dense(0) / S_dense) * (sum of the scores of the channels that go), S the sum of all scores of the
        group.
        """
        measured, before = self.space.measured, self.space.scores
        if measured is None:
            return None
        dense, now = ({g: s.double().clamp_min(0) for g, s in each.items()} for each in (before, scores))
        order, groups = by_importance(scores), {}
        for name, score in now.items():
            whole = float(dense[name].sum())
            rate = float(measured.groups[name][0]) / whole if whole > 0 else 0.0
            gone = np.cumsum(score.numpy()[order[name]][::-1])[::-1]
            groups[name] = rate * np.append(gone, 0.0)
        return Losses(groups, measured.branches)  # which of them go is decided

    def _of_what_is_left(self, keep: Left, left: Left) -> dict[str, IntArray]:
        """A plan for the whole model, without what is gone already; no tensor is left without an index."""
        graph = self.space.graph
        dropped = {*graph.dropped(keep), *graph.dropped(left)}
        kept = {g.id: still(np.asarray(keep.get(g.id, np.arange(g.size))), left.get(g.id)) for g in graph.groups}
        for name in graph.emptied(kept):
            kept[name] = left.get(name, np.arange(graph.group(name).size))
        return kept | nothing_of(b.id for b in graph.branches if b.id in dropped)

    def _as_planned(self, scores: Mapping[str, Tensor], left: Left) -> Left:
        """The widths of the plan of one shot, or what is left where that is less."""
        graph, planned = self.space.graph, self.planned
        widths = {g.id: min(len(g.keep), len(left.get(g.id, g.keep))) for g in planned.groups}
        order = by_importance({g: score.detach().cpu() for g, score in scores.items()})
        return self._of_what_is_left(settled(graph, order, widths) | nothing_of(planned.dropped), left)

    def _predicted(self, tally_of: TallyOf, keep: Left) -> float:
        whole = with_branches(self.space.graph, {g.id: np.arange(g.size) for g in self.space.graph.groups})
        return Remaining(tally_of, whole, keep).ms

    def _solution(self, keep: Left, ms: float) -> Solution:
        """As the solver would give it; the importance is that of the dense model's scores."""
        graph, space, dropped = self.space.graph, self.space, self.space.graph.dropped(keep)
        kept = {g.id: np.asarray(keep.get(g.id, np.arange(g.size))) for g in graph.groups}
        order = {
            g.id: np.concatenate([kept[g.id], np.setdiff1d(np.arange(g.size), kept[g.id])]) for g in graph.groups
        }
        running = running_importance(graph, space.scores, order, normalizer=space.normalizer)
        inside = {group for branch in dropped for group in graph.branch(branch).groups}
        widths = {g.id: g.size if g.id in inside else len(kept[g.id]) for g in graph.groups}
        widths |= {b.id: int(b.id not in dropped) for b in graph.branches}
        share = kept_share(losses_from_scores(graph, running), widths)
        full = {g: np.arange(widths[g]) if g in inside else np.sort(kept[g]) for g in kept} | nothing_of(dropped)
        return Solution(widths, full, ms, share, float("nan"), self._predicted(self.tally_of, {}), ms)
