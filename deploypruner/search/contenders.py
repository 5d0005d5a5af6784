"""The closed loop for the best plans of a pool in turn, until none that is left promises more.

What the loop ends with is not the plan that was judged: where that one took too long, a branch more may be gone, and
another plan of the pool be the better one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from deploypruner.errors import BudgetError
from deploypruner.latency import LatencyModel
from deploypruner.search.bench import CandidateBench
from deploypruner.search.loop import LoopOutcome, Round, Trial, close_loop
from deploypruner.search.objectives import Objective
from deploypruner.search.selection import Chosen, Contender
from deploypruner.search.solve import Solution
from deploypruner.search.time_limit import TimeLimit


@dataclass(frozen=True)
class Closed:
    """What the closed loops end with.

    Args:
        outcome: Of the loop that is taken, with the rounds of all.
        objective: What it solved for.
        tried: Every plan that was measured, with the name of what it was chosen by.
    """

    outcome: LoopOutcome
    objective: Objective
    tried: tuple[tuple[str, Solution], ...]


def close_contenders(
    chosen: Chosen,
    bench: CandidateBench,
    *,
    limit: TimeLimit,
    say: Callable[[str], None],
    on_round: Callable[[Round], None],
) -> Closed:
    """Close the loop for the best plan, and for the next one where the loop came to less than that one promises.

    Args:
        chosen: The contenders, and their judge.
        bench: Measures candidates.
        limit: No loop after the first begins after it.
        say: Told why a further contender is tried.
        on_round: Told about every round.

    Raises:
        BudgetError: No contender was measured within the goal; that of the first one.
    """
    best: tuple[tuple[bool, float], LoopOutcome, Objective] | None = None
    tried, rounds, failed = list[tuple[str, Solution]](), list[Round](), list[BudgetError]()
    for number, contender in enumerate(chosen.contenders):
        if number:
            if not _promises_more(contender, best and best[0], limit):
                break
            reached = "kept no budget" if best is None else f"came to {best[0][1]:.3g}"
            say(f"the plan before {reached}; {contender.loss:.3g} is promised by {contender.objective.name}")
        try:
            outcome = _close(contender, chosen, bench, limit, on_round=on_round, tried=tried)
        except BudgetError as error:
            failed.append(error)
            continue
        rounds += outcome.rounds
        compared = best is not None or (number + 1 < len(chosen.contenders) and limit.allows())
        rank = not outcome.line.met, _loss(chosen, contender, outcome.solution) if compared else contender.loss
        if best is None or rank < best[0]:
            best = rank, outcome, contender.objective
    if best is None:
        raise failed[0]
    _, outcome, objective = best
    return Closed(replace(outcome, rounds=tuple(rounds)), objective, tuple(tried))


def _promises_more(contender: Contender, rank: tuple[bool, float] | None, limit: TimeLimit) -> bool:
    return limit.allows() and (rank is None or (False, contender.loss) < rank)


def _loss(chosen: Chosen, contender: Contender, plan: Solution) -> float:
    """By the judge of the pool, which has seen the plan that the loop began with."""
    if plan is contender.plan or chosen.judge is None:
        return contender.loss
    return chosen.judge.look(plan.keep).loss


def _close(
    contender: Contender,
    chosen: Chosen,
    bench: CandidateBench,
    limit: TimeLimit,
    *,
    on_round: Callable[[Round], None],
    tried: list[tuple[str, Solution]],
) -> LoopOutcome:
    """One loop, which begins with the plan that was judged."""
    name, first = contender.objective.name, [] if contender.plan is None else [contender.plan]

    def solve(model: LatencyModel, ms: float) -> Solution:
        return first.pop() if first else contender.objective.solve(model.tally, ms)

    def measure(plan: Solution) -> Trial:
        trial = bench.trial(plan.keep, chosen.goal)
        chosen.seen.add(name, plan, measured_ms=trial.assessment.model_ms)
        tried.append((name, plan))
        return trial

    outcome = close_loop(
        chosen.goal,
        contender.model,
        solve=solve,
        measure=measure,
        on_round=on_round,
        over=lambda: not limit.allows(),
    )
    if outcome.cut:
        limit.cut(
            f"round {len(outcome.rounds)} of the closed loop the last, though another might use more of the budget"
        )
    return outcome
