"""Many plans of equal predicted time, judged after reconstruction; the best goes on.

Successive halving: every plan gets a quick look on a part of the images, the better half is brought to the same
measured time and gets a full one, and those that come close to the best a brief training, where training will follow
anyway. A plan for
uniform shares and one for multiply-adds are always among them, so that at this point the choice is never worse than
either.

Source: a pool of diverse solutions that are judged afterwards is Puzzletron's; successive halving is that
of Jamieson and Talwalkar, arXiv:1502.07943. The objectives and the judge are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

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


Settle = Callable[[Objective, Solution], Solution]
"""The plan of an objective that takes the time when measured, given the one that is predicted to."""


def as_predicted(objective: Objective, plan: Solution) -> Solution:
    """The plan itself, where nothing is measured."""
    return plan


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
class PoolPlan:
    """One plan of the pool, with all that is known of it.

    Args:
        objective: What it was chosen by.
        solution: The plan.
        verdict: Of the last look at it.
        full: Was that on all images?
        trained: Loss after a brief training, None for plans that got none.
    """

    objective: Objective
    solution: Solution
    verdict: Verdict
    full: bool
    trained: float | None = None

    @property
    def loss(self) -> float:
        """Of the last look."""
        return self.verdict.loss

    @property
    def entry(self) -> PoolEntry:
        """What the report says of it."""
        solution, verdict = self.solution, self.verdict
        return PoolEntry(
            self.objective.name,
            solution.predicted_ms,
            solution.importance,
            solution.dropped,
            verdict.loss,
            verdict.top1,
            self.full,
            self.trained,
        )


@dataclass(frozen=True)
class Selection:
    """What a pool comes to.

    Args:
        plans: Every plan that was looked at, the best first.
        kind: What their `loss` is.
        seconds: Of the longest full look; 0 where none was made.
    """

    plans: tuple[PoolPlan, ...]
    kind: str
    seconds: float = field(default=0.0, compare=False)

    @property
    def best(self) -> PoolPlan:
        """The plan to go on with."""
        return self.plans[0]

    @property
    def entries(self) -> tuple[PoolEntry, ...]:
        """What the report says of every plan, the best first."""
        return tuple(plan.entry for plan in self.plans)


def select(
    plans: Sequence[tuple[Objective, Solution]],
    judge: Judge,
    *,
    settle: Settle = as_predicted,
    limit: TimeLimit | None = None,
    progress: Progress | None = None,
) -> Selection:
    """Judge plans and put the best first.

    Args:
        plans: Of about the same predicted time; at least one.
        judge: Looks at them.
        settle: Brings a plan to the same measured time as the others, before its full look.
        limit: No look begins that would end after it; the first two plans are looked at in any case.
        progress: Counts looks.
    """
    bar, limit, seconds = progress or SilentProgress(), limit or TimeLimit(), 0.0
    finalists = max(_FINALISTS, len(plans) // 2)
    quick = QUICK if len(plans) > finalists else 1.0
    found: dict[int, PoolPlan] = {}
    bar.start(len(plans) + (finalists if quick < 1 else 0), "search")
    try:
        for number, (objective, solution) in enumerate(plans):
            if number > 1 and not limit.allows(seconds):
                limit.cut(f"{number} of {len(plans)} plans judged")
                break
            if quick == 1:
                solution = settle(objective, solution)
            begun = limit.spent
            found[number] = PoolPlan(objective, solution, judge.look(solution.keep, share=quick), quick == 1)
            seconds = max(seconds, limit.spent - begun)
            bar.advance(1, _milestone(number + 1, len(plans)))
        best = sorted(found, key=lambda n: (found[n].loss, n))[:finalists] if quick < 1 else []
        full: dict[int, PoolPlan] = {}
        seconds /= quick
        longest = 0.0 if best else seconds
        for number in best:
            if not limit.allows(seconds):
                break
            solution = settle(found[number].objective, found[number].solution)
            begun = limit.spent
            full[number] = replace(found[number], solution=solution, verdict=judge.look(solution.keep), full=True)
            seconds = limit.spent - begun
            longest = max(longest, seconds)
            bar.advance()
        if len(full) == len(best):
            found |= full  # losses on some of the images and on all of them cannot be compared
        else:
            limit.cut(f"{len(full)} of {len(best)} full looks")
    finally:
        bar.close()
    ranked = sorted(found, key=lambda n: (not found[n].full, found[n].loss, n))
    return Selection(tuple(found[n] for n in ranked), judge.dense.kind, longest)


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
    best = selection.best.loss
    close = [n for n, p in enumerate(selection.plans) if p.full and p.loss <= _CLOSE * best][:_CONTENDERS]
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
            losses[number] = train(selection.plans[number].solution).loss
            seconds = max(seconds, limit.spent - begun)
            bar.advance(1, f"{len(losses)} of {len(close)} plans trained" if len(losses) == len(close) else "")
    finally:
        bar.close()
    if len(losses) < 2:
        return selection
    order = sorted(range(len(selection.plans)), key=lambda n: (n not in losses, losses.get(n, 0.0), n))
    return replace(selection, plans=tuple(replace(selection.plans[n], trained=losses.get(n)) for n in order))


def _milestone(done: int, of: int) -> str:
    return f"{done} of {of} plans judged" if done in (of // 2, of) else ""
