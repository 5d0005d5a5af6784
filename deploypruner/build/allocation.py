"""What a choice of widths goes by: scores for a budget of MACs; worth and runtimes for one of time."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from deploypruner.build.criterion import normalizer_name
from deploypruner.build.feeds import evaluated_at_once, training_batches
from deploypruner.build.stage import stage_file
from deploypruner.build.state import Build
from deploypruner.build.timed import best_files, in_environments
from deploypruner.channels.allocate import allocate
from deploypruner.channels.feasible_widths import by_importance
from deploypruner.channels.plan import Plan
from deploypruner.errors import RecipeError
from deploypruner.measure import Job
from deploypruner.recipe.budget import Budget
from deploypruner.search.measured import MeasuredWorth
from deploypruner.search.worth import measure_worth

WORTH = stage_file("worth.json")
"""What was measured of widths and branches, for these weights, samples and cuts."""

_WORTH_BATCH = 32


def plan_in_macs(build: Build, scores: Mapping[str, Tensor], budget: Budget) -> Plan:
    """The plan for a budget of MACs as the recipe wants it chosen, whatever the scores."""
    recipe = build.recipe.prune
    return allocate(
        build.traced,
        scores,
        budget,
        criterion=build.criterion,
        scope=recipe.scope,
        normalizer=normalizer_name(recipe, build.criterion),
        step=recipe.step,
        constraints=recipe.constraints,
    )


def measured_worth(
    build: Build, scores: Mapping[str, Tensor], *, enough: Callable[[float], bool] = lambda seconds: False
) -> MeasuredWorth:
    """What widths and branches are worth, measured on training samples; finished batches survive a kill."""
    batch = evaluated_at_once(build, _WORTH_BATCH)
    count = -(-build.recipe.search.worth_samples // batch)
    return measure_worth(
        build.traced,
        by_importance(scores),
        list(training_batches(build, batch_size=batch, count=count)),
        loss=build.loss,
        branches=build.recipe.prune.depth == "auto",
        file=build.folder.claim(WORTH),
        progress=build.progress,
        enough=enough,
    )


def dense_jobs(build: Build) -> list[Job]:
    """The dense model in every runtime and precision that may be chosen, runtimes together.

    Raises:
        RecipeError: None of the runtimes opens the ONNX files that layers are timed in.
    """
    measure = build.recipe.measure
    names = build.measured_runtimes
    wanted = ("fp32", "int8") if measure.precision == "auto" else (measure.precision,)
    dense = [a for a in build.artifacts if a.pattern == "dense" and a.precision in wanted]
    jobs = [(artifact, name) for name in names for artifact in best_files(dense, name)]
    if not jobs:
        raise RecipeError(
            f"a budget of time needs a runtime that opens ONNX, not {', '.join(names)}",
            hint="name --runtime openvino or onnxruntime as well, or give --macs",
        )
    return in_environments(jobs, build.environments)
