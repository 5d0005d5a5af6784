"""What the stage `learn` needs for the iterative schedule under a budget of time: where to go, and being there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from deploypruner.build.allocation import dense_jobs, measured_worth
from deploypruner.build.artifacts import with_dense
from deploypruner.build.criterion import normalizer_name
from deploypruner.build.feeds import timing_feeds
from deploypruner.build.state import Build
from deploypruner.channels.feasible_widths import by_importance
from deploypruner.channels.plan import Plan, make_plan
from deploypruner.errors import BudgetError
from deploypruner.graph.labels.atoms import IntArray
from deploypruner.latency import LatencyModel
from deploypruner.search.bench import CandidateBench
from deploypruner.search.certify import DENSE_MIXED
from deploypruner.search.found import SearchResult
from deploypruner.search.gradual import Gradual
from deploypruner.search.loop import RESERVE, Round, close_loop
from deploypruner.search.measured import losses_from_worth
from deploypruner.search.objectives import Space


@dataclass(frozen=True)
class Toward:
    """A budget of time to train toward.

    Args:
        gradual: Solves every step.
        model: Predicts milliseconds, right for the plan of one shot.
        found: How that plan keeps the budget.
    """

    gradual: Gradual
    model: LatencyModel
    found: SearchResult


def toward_time(build: Build) -> Toward | None:
    """Where the training has to go; None under a budget of MACs.

    The latency model comes out of the user's cache folder, where `allocate` put it, and is corrected by what was
    measured of the plan of one shot. The goal is that plan's time, so that both can be compared, but no more than the
    budget leaves after its reserve.
    """
    found, scores, recipe = build.found, build.scores, build.recipe.prune
    if found is None or found.measured_ms is None:
        return None
    assert scores is not None, "stage 'score' has not run"
    model = build.clock.latency_model(
        build.traced,
        found.setting,
        seconds=build.recipe.measure.table_seconds,
        step=recipe.step,
        seed=build.recipe.seed,
        progress=build.progress,
    ).calibrated(build.planned.keep, found.measured_ms)
    order = by_importance(scores)
    space = Space(
        build.traced,
        scores,
        normalizer_name(recipe, build.criterion),
        recipe.step,
        recipe.constraints,
        measured=losses_from_worth(build.traced, measured_worth(build, scores), scores, order),
        seed=build.recipe.seed,
    )
    final_ms = min(found.measured_ms, found.goal(recipe.budget).median_ms * (1 - RESERVE))
    return Toward(Gradual(space, found.objective, build.planned, model.tally, final_ms), model, found)


def arrived(
    build: Build, toward: Toward, keep: Mapping[str, IntArray], scores: Mapping[str, Tensor]
) -> tuple[Build, Plan, SearchResult]:
    """Measure the plan that training ended in, and cut a little more of it where it misses the budget.

    What is cut here is not trained for any more; `recover` follows. Where no plan is measured within the budget the
    one of the training stays, and the last measurement of the build refuses it.

    Args:
        build: So far.
        toward: Where it had to go.
        keep: Group id -> channels that are left; branch id -> nothing, of a branch that is gone.
        scores: Of the last ranking.

    Returns:
        The build with the dense model's files, the plan, and how it was found.
    """
    build = with_dense(build)
    found, gradual, recipe = toward.found, toward.gradual, build.recipe.prune
    goal, setting = found.goal(recipe.budget), found.setting
    alike = [a for a, r in dense_jobs(build) if (a.precision, r) == (setting.precision, setting.runtime)]
    dense = next((a for a in alike if setting.floats and a.name == DENSE_MIXED), alike[0])
    rounds: list[Round] = []
    with CandidateBench(
        build.traced, setting, dense, feeds=timing_feeds(build), seed=build.recipe.seed, clock=build.clock
    ) as bench:
        try:
            outcome = close_loop(
                goal,
                toward.model,
                solve=lambda model, ms: gradual.solve(model.tally, ms, scores=scores, left=keep),
                measure=lambda solution: bench.trial(solution.keep, goal),
                on_round=rounds.append,
            )
            line, chosen = outcome.line, outcome.solution.keep
        except BudgetError as error:
            if not rounds:
                raise
            build.say(f"remark: {error.message}; the plan of the training stays")
            line, chosen = rounds[0], keep
    build.say(f"trained toward {gradual.final_ms:.3g} ms: measured {rounds[0].measured_ms:.3g} ms")
    plan = make_plan(build.traced, chosen, criterion=build.criterion, scope="latency", step=recipe.step)
    reached = replace(
        found,
        importance=line.importance,
        predicted_ms=line.predicted_ms,
        measured_ms=line.measured_ms,
        rounds=found.rounds + tuple(rounds),
        judged=None,  # that was the plan of one shot
    )
    return build, plan, reached
