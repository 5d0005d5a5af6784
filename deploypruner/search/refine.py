"""The best plan of a pool, improved: its losses are changed at random, and a change whose plan does better is kept.

A pool asks whether one currency is right for all choices; this asks whether one choice is worth more or less than was
measured alone. Every plan has the same predicted time, so that nothing but the loss has to be compared.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

from deploypruner.errors import BudgetError
from deploypruner.progress import Progress, SilentProgress
from deploypruner.search.judge import Judge
from deploypruner.search.objectives import Objective, distance, refined
from deploypruner.search.pool import QUICK, PoolPlan, Selection
from deploypruner.search.solve import Solution
from deploypruner.search.time_limit import TimeLimit

# Looks at most, and those in a row that found nothing better which end it earlier.
_LOOKS, _MISSES = 32, 12
# Changes in a row that lead to a plan that was seen already, and those that tell whether a plan can be changed.
_STALE, _TRIED = 32, 6


@dataclass(frozen=True)
class Refined:
    """What changing one plan step by step came to.

    Args:
        selection: With every plan that did better at its time, the best first.
        looks: Plans that were looked at.
        kept: Of them.
    """

    selection: Selection
    looks: int
    kept: int


def refine(
    selection: Selection,
    judge: Judge,
    solve: Callable[[Objective], Solution],
    *,
    limit: TimeLimit | None = None,
    progress: Progress | None = None,
) -> Refined:
    """Change the losses of the best plan as long as that finds better ones.

    A plan gets a quick look first, on a part of the images, and a full one where it does better there.

    Args:
        selection: From `select`.
        judge: The same.
        solve: The plan of an objective, of the same predicted time as the others.
        limit: No look begins that would end after it, as far as the longest before tells.
        progress: Counts looks.

    Source: SPDY's local search, arXiv:2201.13096, sec. 3.3; see `refined`. Quick looks and the start are ours.
    """
    limit, bar = limit or TimeLimit(), progress or SilentProgress()
    start = next((plan for plan in selection.plans if _leads_on(plan, solve)), None)
    if start is None:
        return Refined(selection, 0, 0)
    objective, best = start.objective, start.loss
    seen = [plan.solution.widths for plan in selection.plans]
    looks = kept = misses = stale = number = 0
    quick, seconds = judge.look(start.solution.keep, share=QUICK).loss, 0.0
    bar.start(_LOOKS, "search, improved")
    try:
        while looks < _LOOKS and misses < _MISSES and stale < _STALE:
            number += 1
            changed = refined(objective, number)
            try:
                found = solve(changed)
            except BudgetError:
                stale += 1
                continue
            if any(distance(found.widths, widths) == 0 for widths in seen):
                stale += 1
                continue
            if not limit.allows(seconds):
                limit.cut(f"{looks} plans near the best one judged")
                break
            begun = limit.spent
            seen.append(found.widths)
            looks, stale = looks + 1, 0
            first = judge.look(found.keep, share=QUICK).loss
            verdict = judge.look(found.keep) if first < quick else None
            seconds = max(seconds, limit.spent - begun)
            bar.advance()
            if verdict is None or verdict.loss >= best:
                misses += 1
                continue
            objective, quick, best = changed, first, verdict.loss
            kept, misses = kept + 1, 0
            selection = _with(selection, PoolPlan(changed, found, verdict, full=True))
    finally:
        bar.close()
    return Refined(selection, looks, kept)


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
