"""Many plans of equal predicted time, judged after reconstruction; the best goes on.

Successive halving: every plan gets a quick look on a part of the images, the better half a full one, and those that
come close to the best a brief training, where training will follow anyway. A plan for
uniform shares and one for multiply-adds are always among them, so that at this point the choice is never worse than
either.

Source: a pool of diverse solutions that are judged afterwards is Puzzletron's; successive halving is that
of Jamieson and Talwalkar, arXiv:1502.07943. The objectives and the judge are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from deploypruner.progress import Progress, SilentProgress
from deploypruner.search.judge import Judge, Verdict
from deploypruner.search.objectives import Objective
from deploypruner.search.solve import Solution
from deploypruner.search.time_limit import TimeLimit

# Part of the images of a quick look, and plans that get a full one at the least.
QUICK = 0.25
_FINALISTS = 4
# Plans whose loss is within this of the best one's are trained briefly before one is chosen, at most so many.
_CLOSE, _CONTENDERS = 1.2, 3


@dataclass(frozen=True)
class PoolEntry:
    """One plan of the pool.

    Args:
        objective: What it was chosen by.
        predicted_ms: By the latency model as it was then.
        importance: Share of the importance that stays.
        dropped: Ids of the branches that go.
        loss: Of the last look at it; what it is says `Selection.kind`.
        top1: Percent, of the same look; None without classes.
        full: Was that on all images?
        trained: Loss after a brief training, None for plans that got none.
    """

    objective: str
    predicted_ms: float
    importance: float
    dropped: tuple[str, ...]
    loss: float
    top1: float | None
    full: bool
    trained: float | None = None


@dataclass(frozen=True)
class Selection:
    """What a pool comes to.

    Args:
        objectives: The best first.
        solutions: Their plans.
        entries: Every plan that was looked at, the best first.
        kind: What their `loss` is.
        verdicts: Of their last look.
    """

    objectives: tuple[Objective, ...]
    solutions: tuple[Solution, ...]
    entries: tuple[PoolEntry, ...]
    kind: str
    verdicts: tuple[Verdict, ...] = ()


def select(
    plans: Sequence[tuple[Objective, Solution]],
    judge: Judge,
    *,
    limit: TimeLimit | None = None,
    progress: Progress | None = None,
) -> Selection:
    """Judge plans and put the best first.

    Args:
        plans: Of about the same predicted time; at least one.
        judge: Looks at them.
        limit: No look begins that would end after it; the first two plans are looked at in any case.
        progress: Counts looks.
    """
    bar, limit, seconds = progress or SilentProgress(), limit or TimeLimit(), 0.0
    finalists = max(_FINALISTS, len(plans) // 2)
    quick = QUICK if len(plans) > finalists else 1.0
    found: dict[int, tuple[Verdict, bool]] = {}
    bar.start(len(plans) + (finalists if quick < 1 else 0), "search")
    try:
        for number, (_, solution) in enumerate(plans):
            if number > 1 and not limit.allows(seconds):
                limit.cut(f"{number} of {len(plans)} plans judged")
                break
            begun = limit.spent
            found[number] = judge.look(solution.keep, share=quick), quick == 1
            seconds = max(seconds, limit.spent - begun)
            bar.advance(1, _milestone(number + 1, len(plans)))
        best = sorted(found, key=lambda n: (found[n][0].loss, n))[:finalists] if quick < 1 else []
        full: dict[int, tuple[Verdict, bool]] = {}
        seconds /= quick
        for number in best:
            if not limit.allows(seconds):
                break
            begun = limit.spent
            full[number] = judge.look(plans[number][1].keep), True
            seconds = limit.spent - begun
            bar.advance()
        if len(full) == len(best):
            found |= full  # losses on some of the images and on all of them cannot be compared
        else:
            limit.cut(f"{len(full)} of {len(best)} full looks")
    finally:
        bar.close()
    ranked = sorted(found, key=lambda n: (not found[n][1], found[n][0].loss, n))
    entries = tuple(entry_of(*plans[n], verdict, full=full) for n in ranked for verdict, full in [found[n]])
    ways, solutions = zip(*(plans[n] for n in ranked), strict=True)
    verdicts = tuple(found[n][0] for n in ranked)
    return Selection(tuple(ways), tuple(solutions), entries, judge.dense.kind, verdicts)


def train_contenders(
    selection: Selection,
    train: Callable[[Solution], Verdict],
    *,
    limit: TimeLimit | None = None,
    progress: Progress | None = None,
) -> Selection:
    """Train the plans that come close to the best one briefly, and put the best of them first.

    Args:
        selection: From `select`.
        train: Repairs a plan, trains it briefly, and judges it.
        limit: No training begins that would end after it, as far as the one before tells; one alone decides nothing.
        progress: Counts plans.
    """
    best = selection.entries[0]
    close = [n for n, e in enumerate(selection.entries) if e.full and e.loss <= _CLOSE * best.loss][:_CONTENDERS]
    if len(close) < 2:
        return selection
    limit = limit or TimeLimit()
    if not limit.allows():
        limit.cut(f"0 of {len(close)} plans trained briefly")
        return selection
    bar, losses, seconds = progress or SilentProgress(), dict[int, float](), 0.0
    bar.start(len(close), "search, trained briefly")
    try:
        for number in close:
            if not limit.allows(seconds):
                limit.cut(f"{len(losses)} of {len(close)} plans trained briefly")
                break
            begun = limit.spent
            losses[number] = train(selection.solutions[number]).loss
            seconds = max(seconds, limit.spent - begun)
            bar.advance(1, f"{len(losses)} of {len(close)} plans trained" if len(losses) == len(close) else "")
    finally:
        bar.close()
    if len(losses) < 2:
        return selection
    order = sorted(range(len(selection.entries)), key=lambda n: (n not in losses, losses.get(n, 0.0), n))
    return replace(
        selection,
        objectives=tuple(selection.objectives[n] for n in order),
        solutions=tuple(selection.solutions[n] for n in order),
        entries=tuple(replace(selection.entries[n], trained=losses.get(n)) for n in order),
        verdicts=tuple(selection.verdicts[n] for n in order),
    )


def entry_of(objective: Objective, solution: Solution, verdict: Verdict, *, full: bool) -> PoolEntry:
    """A plan with what a look at it found, on all images or on some."""
    return PoolEntry(
        objective.name,
        solution.predicted_ms,
        solution.importance,
        solution.dropped,
        verdict.loss,
        verdict.top1,
        full,
    )


def _milestone(done: int, of: int) -> str:
    return f"{done} of {of} plans judged" if done in (of // 2, of) else ""
