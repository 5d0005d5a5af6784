"""Time artifacts side by side: one worker process each, all alive, their blocks interleaved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deploypruner.device.connection import Device
from deploypruner.errors import DeviceLostError, InputError, RecipeError
from deploypruner.measure.baselines import Job, baseline_index
from deploypruner.measure.failure import Failure, as_error
from deploypruner.measure.interference import Conditions, Watch
from deploypruner.measure.rounds import NARROW, MeasuringEffort, Progress, block_calls, run_rounds
from deploypruner.measure.statistics import noise_floor
from deploypruner.measure.worker_pool import Crew, CrewMember
from deploypruner.records import Timing
from deploypruner.runtime import Array, runtimes
from deploypruner.scratch import scratch

# Two workers of one file that differ by more than this say nothing about a budget.
_HOPELESS_FLOOR = 0.10
# Files timed beside the dense model while a build decides: a ratio known to 2 % takes this long on a quiet machine
# for all but the slowest models.
DECIDING_SECONDS = 6.0


@dataclass(frozen=True)
class Measured:
    """One run of the protocol.

    Args:
        timings: One per job that could be timed, in the order given.
        twin: A second worker of the first such job's baseline (A/A).
        floor: Noise floor of the run, relative: what the twin shows between identical workers.
        settled: False where the budget ended before every ratio was known as narrowly as was asked.
        failures: One per job that could not be timed, in the order they failed.
        conditions: What else the machine did meanwhile.
    """

    timings: tuple[Timing, ...]
    twin: Timing
    floor: float
    settled: bool
    failures: tuple[Failure, ...] = ()
    conditions: Conditions = field(default_factory=lambda: Conditions((), 1, 1))

    @property
    def jobs(self) -> tuple[Job, ...]:
        """What `timings` are of."""
        return tuple((timing.artifact, timing.runtime) for timing in self.timings)

    def complete(self) -> tuple[Timing, ...]:
        """`timings`, one per job.

        Raises:
            MeasureError: A job could not be timed.
        """
        if self.failures:
            raise as_error(self.failures)
        return self.timings

    @property
    def certifiable(self) -> bool:
        """Can a promise rest on these numbers? `reason` says why not."""
        return not self.reason

    @property
    def reason(self) -> str:
        """Why no budget may be certified by this run as it stands, "" where it may: one phrase for the user."""
        busy = self.conditions.busy_throughout()
        if busy:
            return busy
        if self.floor > _HOPELESS_FLOOR:
            return (
                f"two workers of the same file differ by up to {100 * self.floor:.0f} %, so the machine is not steady"
            )
        return ""


def time_artifacts(
    jobs: Sequence[Job],
    *,
    threads: int = 1,
    budget_s: float = 12.0,
    min_rounds: int = 10,
    narrow: float = NARROW,
    quantile: float = 0.95,
    seed: int = 0,
    feeds: Sequence[Array] | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    progress: Progress | None = None,
    device: Device | None = None,
) -> Measured:
    """Time every job, one call after another, and the first job's baseline twice.

    Workers share the same `threads` cores, as only one of them computes at a time. They end with this
    call, however it ends. A job whose worker fails is left out and returned as a failure; the others go on.

    Args:
        jobs: Pairs of an artifact and the name of a registered runtime.
        threads: Threads of every runtime, and most of any: an artifact may have its own number.
        budget_s: Seconds of rounds after which none starts; loading and warm-up are not counted.
        min_rounds: Rounds that are run whatever they take; an interval needs 10.
        narrow: Half width of every ratio's interval that ends the rounds: 0.02 is ±2 %.
        quantile: Rounds also go on until the samples carry this quantile.
        seed: Seed of random inputs, of the order within rounds and of the bootstrap.
        feeds: One array per input, for every artifact; random ones where None.
        input_shapes: Full shapes of random inputs by name, for dynamic dimensions.
        progress: Told after every round.
        device: The machine they are timed on; this one where None.

    Raises:
        InputError: No jobs.
        RecipeError: A number out of range, or an unknown runtime.
        MeasureError: No worker could load its artifact and run it; names each artifact, its runtime and what the
            worker said last.
        DeviceError: The device is lost, or has no room for the files.
    """
    _check(jobs, threads)
    effort = MeasuringEffort(min_rounds=min_rounds, budget_s=budget_s, narrow=narrow, quantile=quantile)
    with ExitStack() as stack:
        folder = stack.enter_context(scratch())
        device = device or stack.enter_context(Device())
        saved = None if feeds is None else _saved(feeds, folder)
        message = {"threads": threads, "seed": seed, "shapes": _plain(input_shapes), "feeds": saved}
        message["others"] = len({artifact.path for artifact, _ in jobs}) > 1
        picked, own = device.pick_cores(threads)
        crew = Crew(stack, device, message, cores=picked)
        members = device.lasting(lambda: crew.hire(jobs))
        while members:
            partner = members[baseline_index([member.job for member in members], members[0].job[1])]
            twin = _with_twin(crew, device, members, partner)
            if twin is not None:
                found = _attempt(
                    crew, members, (partner, twin), device=(device, own), effort=effort, seed=seed, progress=progress
                )
                if found is not None:
                    return found
            members = [member for member in members if member not in crew.gone]
        raise as_error(crew.failures)


def _with_twin(crew: Crew, device: Device, members: Sequence[CrewMember], partner: CrewMember) -> CrewMember | None:
    """A second worker of the same job beside the members, all of which are alive then."""
    return device.lasting(lambda: crew.hire_twin(partner), again=lambda: crew.revive(members))


def _attempt(
    crew: Crew,
    members: Sequence[CrewMember],
    pair: tuple[CrewMember, CrewMember],
    *,
    device: tuple[Device, int],
    effort: MeasuringEffort,
    seed: int,
    progress: Progress | None,
) -> Measured | None:
    """Run the rounds with everybody; None where one of the A/A pair failed, which leaves no noise floor."""
    everybody, (partner, twin) = [*members, pair[1]], pair
    jobs = [member.job for member in members]
    baselines = [baseline_index(jobs, runtime) for _, runtime in jobs]
    where, cores = device
    # Time is that of the device: how long its answers were on their way is nothing to its counters.
    watch = Watch(cores=cores, threads=crew.threads, read=where.reading, clock=lambda: where.reading().at_s)
    calls = block_calls([member.said["call_ns"] for member in everybody], effort)

    def announce(order: Sequence[int]) -> None:
        crew.tell_round([(everybody[index], calls[index]) for index in order])

    def each_round() -> None:
        for member in everybody:
            watch.waited(member.worker.waited_ns)
        watch.rounds(where.take_rounds())
        watch.look()

    def regain(error: DeviceLostError) -> None:
        where.reconnect(error)
        where.lasting(lambda: crew.revive([member for member in everybody if member not in crew.gone]))
        watch.regained()

    rounds = run_rounds(
        [member.worker for member in everybody],
        calls,
        [*baselines, everybody.index(partner)],
        effort=effort,
        seed=seed,
        progress=progress,
        announce=announce,
        each_round=each_round,
        regain=regain,
    )
    for index, error in rounds.failed.items():
        # The twin is the partner's file on the partner's runtime.
        crew.fail(partner if everybody[index] is twin else everybody[index], error)

    def peak_of(member: CrewMember) -> int | None:
        return where.lasting(lambda: crew.memory(member), again=lambda: crew.revive([member]))

    timings = {
        member: _timing(member, samples, threads=crew.threads_of(member.job[0]), peak_rss_bytes=peak)
        for member, samples in zip(everybody, rounds.samples_ns, strict=True)
        if member not in crew.gone and (peak := peak_of(member)) is not None
    }
    if partner not in timings or twin not in timings:
        return None
    return Measured(
        timings=tuple(timings[member] for member in members if member in timings),
        twin=timings[twin],
        floor=noise_floor(timings[partner], timings[twin], seed=seed),
        settled=rounds.settled,
        failures=tuple(crew.failures),
        conditions=watch.conditions(),
    )


def _check(jobs: Sequence[Job], threads: int) -> None:
    """Refuse what would otherwise fail in every worker."""
    if not jobs:
        raise InputError("no artifacts to measure", hint="name at least one .onnx, .xml or .pt2 file")
    if threads < 1:
        raise RecipeError(f"threads must be >= 1, got {threads}", hint="use 1 for the steadiest timing")
    for _, runtime in jobs:
        runtimes.get(runtime)


def _plain(shapes: Mapping[str, Sequence[int]] | None) -> dict[str, list[int]]:
    return {name: [int(size) for size in shape] for name, shape in (shapes or {}).items()}


def _saved(feeds: Sequence[Array], folder: Path) -> Path:
    """Write `feeds` to a file, and return its path."""
    path = folder / "feeds.npz"
    np.savez(path, *feeds)
    return path


def _timing(member: CrewMember, samples_ns: NDArray[np.int64], *, threads: int, peak_rss_bytes: int) -> Timing:
    artifact, runtime = member.job
    return Timing(
        artifact=artifact,
        runtime=runtime,
        threads=threads,
        samples_ns=samples_ns,
        load_s=member.said["load_s"],
        warmup=member.said["calls"],
        peak_rss_bytes=peak_rss_bytes,
        settings=member.said["settings"],
    )
