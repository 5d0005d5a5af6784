"""assign: with --pattern auto, which pattern and how many zeros each layer gets, before anything is trained."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import ClassVar

import onnx
from onnx import numpy_helper

from deploypruner.build.artifacts import with_dense, write_int8
from deploypruner.build.feeds import timing_feeds, verification_feeds
from deploypruner.build.reach import REACHABLE
from deploypruner.build.register import stages
from deploypruner.build.results import LayerPatterns
from deploypruner.build.sparsity import remaining
from deploypruner.build.stage import Stage, stage_file
from deploypruner.build.state import Build
from deploypruner.build.zeros_in_time import out_of_reach, promise, time_goal
from deploypruner.errors import BudgetError, InputError, MeasureError
from deploypruner.graph.execute.module import get_state
from deploypruner.latency.clock import current_clock
from deploypruner.measure.kernels import kernels_or_why
from deploypruner.onnx_file import layer_called
from deploypruner.recipe import BUDGETS
from deploypruner.scratch import scratch
from deploypruner.search.found import SearchResult
from deploypruner.search.goal import Goal
from deploypruner.search.latency_search import OutOfReach
from deploypruner.search.loop import RESERVE
from deploypruner.sparsity.assign.filling import REFERENCE
from deploypruner.sparsity.assign.in_time import PatternRequest, assign
from deploypruner.sparsity.assign.solver import DENSE
from deploypruner.sparsity.patterns import AUTO, make_pattern
from deploypruner.sparsity.training import DEFAULT_SPARSITY, Assigned
from deploypruner.sparsity.training.layers import choose_layers
from deploypruner.sparsity.zeros_check import stored_as

# Ranges do not change times, so that a batch will do.
_CALIBRATION = 1


@stages.register("assign")
class Assign(Stage):
    """Quantize the pruned model as it is, time it, and fill its layers within the time of 1x4 everywhere."""

    name: ClassVar[str] = "assign"
    needs: ClassVar[tuple[str, ...]] = ("remove",)
    reads: ClassVar[tuple[str, ...]] = (
        *("prune.patterns", "sparse", "measure.threads", "quantize", "target", "seed"),
        *(f"prune.{name}" for name in BUDGETS),
    )
    writes: ClassVar[tuple[str, ...]] = (REACHABLE,)
    saves: ClassVar[tuple[str, ...]] = (stage_file("assign.json"),)

    def run(self, build: Build) -> Build:
        """Give every layer its pattern and share of zeros, and save them."""
        if AUTO not in build.recipe.prune.patterns:
            return build
        reason = cannot_run()
        if build.recipe.prune.budget.kind != "macs":
            if reason:
                raise BudgetError(
                    f"{build.recipe.prune.budget} cannot be met by zeros: {reason}", hint="use --pattern channel"
                )
            build = with_dense(build)
        patterns, held = LayerPatterns(reason), None
        if not reason:
            goal = time_goal(build)
            try:
                patterns = _assigned(build, goal)
            except OutOfReach as error:
                assert goal is not None, "the reference is in reach of itself"
                raise out_of_reach(build, goal, error) from None
            except (InputError, MeasureError) as error:
                if goal is not None:
                    raise
                patterns = LayerPatterns(error.message)
            if goal is not None:
                assert patterns.found is not None, "without one the budget is out of reach"
                held = promise(build, goal, patterns.found)
        document = patterns.to_json() | ({} if held is None else {"found": held.to_json()})
        build.folder.write_json(self.saves[0], document)
        return self.restore(build)

    def restore(self, build: Build) -> Build:
        """Read what was assigned."""
        if not build.folder.has(self.saves[0]):
            return build
        document = build.folder.read_json(self.saves[0])
        found = LayerPatterns.from_json(document)
        given = {
            found.parameters[layer.name]: Assigned(make_pattern(layer.pattern), layer.sparsity)
            for layer in found.layers
            if layer.pattern != DENSE
        }
        remarks = [f"--pattern {AUTO} leaves every layer dense: {found.reason}"] if not given else []
        remarks += [found.remark] if found.remark else []
        promise = SearchResult.from_json(document["found"]) if "found" in document else build.found
        return replace(build, assigned=given, found=promise, patterns=found, remarks=(*build.remarks, *remarks))

    def document(self, build: Build) -> str | None:
        """How many layers became what, the prediction, and what would have been kept otherwise."""
        patterns = build.patterns
        if patterns is None:
            return None
        if not build.assigned or patterns.found is None:
            return f"every layer stays dense: {patterns.reason}"
        found = patterns.found
        counts = Counter(layer.pattern for layer in found.layers)
        named = ", ".join(f"{count} {pattern}" for pattern, count in counts.most_common())
        return (
            f"{named}; {found.predicted_ms:.3g} ms predicted, {found.dense_ms:.3g} dense, "
            f"{found.budget_ms:.3g} allowed ({patterns.budget}); {100 * found.kept:.0f} % of the saliency stays, "
            f"{100 * found.reference_kept:.0f} % with {patterns.reference} everywhere"
        )


def cannot_run() -> str:
    """Why no layer could run in the sparse kernels on the machine it is for, "" where some could."""
    return kernels_or_why(current_clock().machine)[1]


def _assigned(build: Build, goal: Goal | None) -> LayerPatterns:
    """What is decided about every layer."""
    recipe = build.recipe
    rates = build.clock.kernel_rates(build.threads, say=build.say)
    sparsity = recipe.sparse.sparsity or DEFAULT_SPARSITY
    with scratch() as folder:
        fp32, int8 = write_int8(build, build.compiled, folder, batches=_CALIBRATION)
        parameters = _parameters(build, fp32)
        weights = {name: get_state(build.compiled, parameter).detach() for name, parameter in parameters.items()}
        found = assign(
            PatternRequest(
                dense=int8,
                weights=weights,
                rates=rates.rates,
                feeds=timing_feeds(build) or verification_feeds(build)[0],
                threads=build.threads,
                sparsity=sparsity,
                speedup=None if goal is None else goal.dense_ms / (goal.median_ms * (1 - RESERVE)),
                seed=recipe.seed,
                say=build.say,
                clock=build.clock,
            )
        )
    reference = f"{REFERENCE} at {100 * sparsity:.0f} %"
    return LayerPatterns(
        found=found,
        parameters={layer.name: parameters[layer.name] for layer in found.layers},
        reference=reference,
        budget=f"as long as with {reference} everywhere" if goal is None else str(goal.budget),
        reason=(
            f"with {reference} everywhere no layer is predicted to be faster than dense int8"
            if goal is None
            else f"the dense int8 model keeps {goal.budget} already"
        ),
        rates=asdict(rates.rates),
        rates_error={"sparse": rates.sparse_error, "dense": rates.dense_error, "layers": rates.layers},
        remark=rates.remark,
    )


def _parameters(build: Build, fp32: Path) -> dict[str, str]:
    """Name of a layer in the ONNX file -> its parameter, of every layer that may have zeros."""
    graph = onnx.load(fp32).graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    found = {}
    for layer in remaining(build, choose_layers(build.traced, build.recipe.sparse)):
        weight = get_state(build.compiled, layer.weight).detach().cpu().numpy()
        place = stored_as(layer.weight, weight, stored)
        if place is not None:
            found[layer_called(place.name)] = layer.weight
    return found
