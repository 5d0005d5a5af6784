"""The best plan of a pool, improved: its losses are changed at random, and a change whose plan does better is kept.

A pool asks whether one currency is right for all choices; this asks whether one choice is worth more or less than was
measured alone. Every plan has the same predicted time, and those that decide the same measured one, so that nothing
but the loss has to be compared.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

import torch

from deploypruner.channels.rank_agreement import rank_correlation
from deploypruner.errors import BudgetError
from deploypruner.progress import Progress, SilentProgress
from deploypruner.search.judge import Judge, Verdict
from deploypruner.search.objectives import Objective, distance, refined
from deploypruner.search.pool import QUICK, PoolPlan, Selection, Settle, as_predicted
from deploypruner.search.solve import Solution
from deploypruner.search.time_limit import TimeLimit

# Looks at most, and those in a row that found nothing better which end it earlier.
_LOOKS, _MISSES = 48, 12
# Changes in a row that lead to a plan that was seen already, and those that tell whether a plan can be changed.
_STALE, _TRIED = 32, 6
# Of the plans that did better and better, the last ones that get a full look.
_FULL = 3
# Spearman's coefficient over at least so many plans from which on looks without repair are trusted.
_AGREES, _COMPARED = 0.7, 4


@dataclass(frozen=True)
class Refined:
    """What changing one plan step by step came to.

    Args:
        selection: With the plans that did better, as far as they got a full look, each in its place.
        looks: Plans that were looked at.
        kept: Of them, those that did better than the one before.
        repaired: Were plans reconstructed for these looks? Not where the pool has the same order without.
    """

    selection: Selection
    looks: int
    kept: int
    repaired: bool = True


def refine(
    selection: Selection,
    judge: Judge,
    solve: Callable[[Objective], Solution],
    *,
    settle: Settle = as_predicted,
    limit: TimeLimit | None = None,
    progress: Progress | None = None,
) -> Refined:
    """Change the losses of the best plan as long as that finds better ones.

    Each plan gets a quick look: on a part of the images, or on all of them without repair where the plans of the pool
    have nearly the same order with and without. The last plans that did better get a full look, which decides.

    Args:
        selection: From `select`.
        judge: The same.
        solve: The plan of an objective, of the same predicted time as the others.
        settle: Brings a plan to the same measured time as the others, before its full look.
        limit: No look begins that would end after it, as far as the longest before tells.
        progress: Counts looks.

    Source: SPDY's local search, arXiv:2201.13096, sec. 3.3; see `refined`. Quick looks and the start are ours.
    """
    limit, bar = limit or TimeLimit(), progress or SilentProgress()
    start = next((plan for plan in selection.plans if _leads_on(plan, solve)), None)
    if start is None:
        return Refined(selection, 0, 0)
    repaired = not _same_order_without_repair(selection, judge)
    search = _LocalSearch(selection, solve, partial(_quick, judge, repaired), limit)
    bar.start(_LOOKS, "search, improved")
    try:
        better = search.run(start, on_look=bar.advance)
        for plan in reversed(better[-_FULL:]):
            if not limit.allows(selection.seconds):
                limit.cut("a plan near the best one got no full look")
                break
            solution = settle(plan.objective, plan.solution)
            full = replace(plan, solution=solution, verdict=judge.look(solution.keep), full=True)
            selection = _with(selection, full)
    finally:
        bar.close()
    return Refined(selection, search.looks, len(better), repaired)


class _LocalSearch:
    """From one plan to a better one by quick looks, which are compared with one another alone."""

    def __init__(
        self,
        selection: Selection,
        solve: Callable[[Objective], Solution],
        look: Callable[[Solution], Verdict],
        limit: TimeLimit,
    ) -> None:
        self._solve, self._look, self._limit = solve, look, limit
        self._seen = [plan.solution.widths for plan in selection.plans]
        self._full_seconds = selection.seconds
        self.looks = 0

    def run(self, start: PoolPlan, *, on_look: Callable[[], None]) -> list[PoolPlan]:
        """Every plan that did better than all before it, the best last."""
        objective, best = start.objective, self._look(start.solution).loss
        better: list[PoolPlan] = []
        misses = stale = number = 0
        seconds = 0.0
        while self.looks < _LOOKS and misses < _MISSES and stale < _STALE:
            number += 1
            changed = refined(objective, number)
            found = self._new(changed)
            if found is None:
                stale += 1
                continue
            # A plan that did better is worth nothing without its full look.
            if not self._limit.allows(seconds + self._full_seconds):
                self._limit.cut(f"{self.looks} plans near the best one judged")
                break
            begun = self._limit.spent
            verdict = self._look(found)
            seconds = max(seconds, self._limit.spent - begun)
            self.looks, stale, misses = self.looks + 1, 0, misses + 1
            on_look()
            if verdict.loss < best:
                objective, best, misses = changed, verdict.loss, 0
                better.append(PoolPlan(changed, found, verdict, full=False))
        return better

    def _new(self, objective: Objective) -> Solution | None:
        """Its plan, None where there is none or it was seen already."""
        try:
            found = self._solve(objective)
        except BudgetError:
            return None
        if any(distance(found.widths, widths) == 0 for widths in self._seen):
            return None
        self._seen.append(found.widths)
        return found


def _quick(judge: Judge, repaired: bool, plan: Solution) -> Verdict:
    return judge.look(plan.keep, share=QUICK) if repaired else judge.look(plan.keep, repaired=False)


def _same_order_without_repair(selection: Selection, judge: Judge) -> bool:
    """Do looks without repair order the plans of the pool as the full ones did?"""
    full = [plan for plan in selection.plans if plan.full]
    if len(full) < _COMPARED:
        return False
    bare = [judge.look(plan.solution.keep, repaired=False).loss for plan in full]
    agreement = rank_correlation(torch.tensor(bare), torch.tensor([plan.loss for plan in full]))
    return agreement is not None and agreement >= _AGREES


def _leads_on(plan: PoolPlan, solve: Callable[[Objective], Solution]) -> bool:
    """Does another plan come of a change? Not of rules, and not where every choice is at its end."""
    if plan.objective.priced is None or not plan.full:
        return False
    with suppress(BudgetError):
        changed = (solve(refined(plan.objective, n)).widths for n in range(1, 1 + _TRIED))
        return any(distance(widths, plan.solution.widths) for widths in changed)
    return False


def _with(selection: Selection, plan: PoolPlan) -> Selection:
    """With one more plan, in its place by the losses of full looks."""
    at = sum(known.full and known.loss <= plan.loss for known in selection.plans)
    return replace(selection, plans=(*selection.plans[:at], plan, *selection.plans[at:]))
