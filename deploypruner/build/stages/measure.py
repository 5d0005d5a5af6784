"""measure: accuracy and latency of every artifact on every runtime, side by side."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from deploypruner.build.eager import eager_job
from deploypruner.build.evaluate import judge, validation_samples
from deploypruner.build.feeds import timing_feeds
from deploypruner.build.joint import floats_unforeseen, too_fast
from deploypruner.build.layer_table import measured_layers
from deploypruner.build.register import stages
from deploypruner.build.stage import Again, Stage
from deploypruner.build.state import Build, Feeds
from deploypruner.build.timed import in_environments, keep_inputs, keep_run, longer, make_jobs, no_bf16
from deploypruner.measure import (
    Measured,
    find_doubts,
    make_rows,
)
from deploypruner.progress import percent
from deploypruner.recipe import BUDGETS
from deploypruner.search.certify import Certificate, certify, in_setting
from deploypruner.search.found import SearchResult

_LIBRARIES = ("openvino", "onnxruntime")


@stages.register("measure")
class Measure(Stage):
    """Evaluate each artifact on validation data, then time all of them in interleaved rounds."""

    name: ClassVar[str] = "measure"
    needs: ClassVar[tuple[str, ...]] = ("verify",)
    reads: ClassVar[tuple[str, ...]] = (
        *("measure.runtimes", "measure.allow_bf16", "measure.threads", "measure.seconds", "measure.samples", "seed"),
        *(f"prune.{name}" for name in BUDGETS),
    )
    changeable: ClassVar[tuple[str, ...]] = ("measure.seconds",)
    writes: ClassVar[tuple[str, ...]] = ("measurements/",)

    def run(self, build: Build) -> Build:
        """Give rows, raw timings and warnings."""
        recipe = build.recipe.measure
        eager, without = eager_job(build)
        jobs = in_environments(make_jobs(build.artifacts, build.measured_runtimes), build.environments)
        jobs += [eager] if eager else []
        machine = build.clock.machine.environment()
        samples = validation_samples(build)
        qualities = judge(build, jobs, samples)
        feeds = timing_feeds(build)
        with percent(build.progress, "measure") as progress:
            measured = build.clock.artifacts(
                jobs,
                threads=build.threads,
                budget_s=recipe.seconds,
                seed=build.recipe.seed,
                feeds=feeds,
                progress=progress,
            )
        judged = dict(zip(jobs, qualities, strict=True))
        known = [judged[job] for job in measured.jobs]
        rows = make_rows(measured.timings, known, floor=measured.floor, seed=build.recipe.seed)
        failures = [failure.message for failure in measured.failures]
        warnings = find_doubts(measured, machine, longer=longer(build.folder.final, recipe.seconds))
        for name in build.folder.own():
            if name.startswith("measurements/"):
                build.folder.discard(name)
        keep_run(build.folder, measured, seconds=recipe.seconds, warnings=[*failures, *warnings])
        if feeds is not None:
            keep_inputs(build.folder, feeds)
        layers, why = measured_layers(build, rows)
        certificate = None if build.found is None else _certify(build, build.found, measured, feeds=feeds)
        return replace(
            build,
            timings=measured.timings,
            rows=tuple(rows),
            certificate=certificate,
            remarks=(
                *build.remarks,
                *filter(
                    None, (_elsewhere(build), without, why, no_bf16(recipe.allow_bf16, build.clock.machine.target))
                ),
                *failures,
            ),
            layer_ms=layers,
            noise=tuple(warnings),
            environment=machine,
            noise_floor=measured.floor,
        )

    def sends_back(self, build: Build) -> Again | None:
        """The time is missed for float layers that nobody foresaw, or one that was found loses too much."""
        return floats_unforeseen(build) or too_fast(build)

    def document(self, build: Build) -> str:
        """How much was measured."""
        samples = sum(t.samples_ns.size for t in build.timings)
        assert build.noise_floor is not None, "every run of measuring has one"
        return f"{len(build.rows)} rows, {samples:,} timed inferences, noise floor {100 * build.noise_floor:.1f} %"


def _elsewhere(build: Build) -> str:
    """Which machine was timed and which one judged, where they are two; "" where they are one."""
    machine = build.clock.machine
    if not machine.elsewhere:
        return ""
    versions = ", ".join(f"{package} {found}" for package in _LIBRARIES if (found := machine.version(package)))
    return (
        f"timed on {machine.name} ({machine.target.processor}; {versions}), not on this machine; accuracy and "
        "agreement are those of the same files here"
    )


def _certify(build: Build, found: SearchResult, measured: Measured, *, feeds: Feeds | None) -> Certificate:
    """Judge the budget by this run; one that cannot tell is followed by another of the two artifacts alone."""
    goal, recipe = found.goal(build.recipe.prune.budget), build.recipe
    setting, name = found.setting, found.artifact
    first = certify(goal, setting, measured, seed=recipe.seed, artifact=name)
    pair = [in_setting(measured.timings, setting, dense=dense, artifact=name) for dense in (True, False)]
    if first.met or None in pair:
        return first
    again = build.clock.artifacts(
        [(timing.artifact, setting.runtime) for timing in pair if timing is not None],
        threads=setting.threads,
        budget_s=recipe.measure.seconds,
        seed=recipe.seed + 1,
        feeds=feeds,
    )
    return certify(goal, setting, again, seed=recipe.seed, artifact=name)
