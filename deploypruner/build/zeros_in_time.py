"""A budget of time that zeros are to meet: what it means, the promise, and what to say where it is out of reach."""

from __future__ import annotations

from math import ceil, floor

from deploypruner.build.feeds import timing_feeds
from deploypruner.build.reach import save_reachable
from deploypruner.build.state import Build
from deploypruner.build.timed import SPARSE, in_environments
from deploypruner.measure import DECIDING_SECONDS
from deploypruner.records import Setting
from deploypruner.search.found import SearchResult
from deploypruner.search.goal import Goal
from deploypruner.search.latency_search import OutOfReach
from deploypruner.sparsity.assign.in_time import Assignment

_RUNTIME = "openvino"
# Of what is predicted to be the fastest, for an offer that can be kept.
_RESERVE = 0.05


def time_goal(build: Build) -> Goal | None:
    """What a budget of time means for the dense int8 model in OpenVINO, None for a budget of another kind.

    Raises:
        MeasureError: The dense model cannot be timed.
    """
    recipe = build.recipe
    if recipe.prune.budget.kind == "macs":
        return None
    dense = next(artifact for artifact in build.artifacts if artifact.name == "dense int8")
    measured = build.clock.artifacts(
        in_environments([(dense, _RUNTIME)], build.environments),
        threads=build.threads,
        budget_s=DECIDING_SECONDS,
        seed=recipe.seed,
        feeds=timing_feeds(build),
    )
    (dense_timing,) = measured.complete()
    return Goal.of(recipe.prune.budget, dense_timing)


def promise(build: Build, goal: Goal, assigned: Assignment) -> SearchResult:
    """What the final artifact is held to.

    Args:
        build: So far.
        goal: From `time_goal`.
        assigned: What every layer gets.
    """
    return SearchResult(
        Setting(_RUNTIME, "int8", build.threads, environment=build.environments.get(_RUNTIME, ())),
        goal.dense_ms,
        goal.tail,
        importance=assigned.kept,
        predicted_ms=goal.dense_ms * assigned.predicted_ms / assigned.dense_ms,
        remark="to be met by zeros, in OpenVINO's int8",
        artifact=SPARSE,
    )


def out_of_reach(build: Build, goal: Goal, error: OutOfReach) -> OutOfReach:
    """The error with the budget as the user gave it; also saved as reachable.json."""
    best, budget = error.numbers["reachable"], goal.budget
    if budget.speedup is not None:
        reached, offer = f"{best:.3g}x", f"--speedup {floor(100 * (1 - _RESERVE) * best) / 100:g}"
    else:
        ms = goal.dense_ms / best * goal.tail
        reached = f"{ms:.3g} ms"
        offer = f"--latency {ceil(100 * ms / (1 - _RESERVE)) / 100:g}ms"
    said = OutOfReach(
        f"{budget} is out of reach of zeros alone: with the sparsest layers {reached} is predicted, and the dense "
        f"int8 model takes {goal.dense_ms:.3g} ms",
        hint=f"about {offer} can be reached; removing channels (--pattern channel) may reach further",
        numbers={"kind": budget.kind, "requested": goal.requested, "reachable": best, "dense_ms": goal.dense_ms},
    )
    save_reachable(build.folder, said, said.numbers)
    return said
