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
from deploypruner.search.judge import Judge, Verdict
from deploypruner.search.objectives import Objective, distance, refined
from deploypruner.search.pool import QUICK, Selection, entry_of
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
    start = next((n for n in range(len(selection.entries)) if _leads_on(selection, n, solve)), None)
    if start is None:
        return Refined(selection, 0, 0)
    objective, solution, best = selection.objectives[start], selection.solutions[start], selection.entries[start].loss
    seen = [known.widths for known in selection.solutions]
    looks = kept = misses = stale = number = 0
    quick, seconds = judge.look(solution.keep, share=QUICK).loss, 0.0
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
            selection = _with(selection, changed, found, verdict)
    finally:
        bar.close()
    return Refined(selection, looks, kept)


def _leads_on(selection: Selection, number: int, solve: Callable[[Objective], Solution]) -> bool:
    """Does another plan come of a change? Not of rules, and not where every choice is at its end."""
    objective, entry, solution = selection.objectives[number], selection.entries[number], selection.solutions[number]
    if objective.priced is None or not entry.full:
        return False
    with suppress(BudgetError):
        return any(distance(solve(refined(objective, n)).widths, solution.widths) for n in range(1, 1 + _TRIED))
    return False


def _with(selection: Selection, objective: Objective, solution: Solution, verdict: Verdict) -> Selection:
    """With one more plan, in its place by the losses of full looks."""
    entry = entry_of(objective, solution, verdict, full=True)
    at = sum(known.full and known.loss <= entry.loss for known in selection.entries)
    return replace(
        selection,
        objectives=(*selection.objectives[:at], objective, *selection.objectives[at:]),
        solutions=(*selection.solutions[:at], solution, *selection.solutions[at:]),
        entries=(*selection.entries[:at], entry, *selection.entries[at:]),
        verdicts=(*selection.verdicts[:at], verdict, *selection.verdicts[at:]),
    )
