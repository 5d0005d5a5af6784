"""Time artifacts side by side: one worker process each, all alive, their blocks interleaved."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploypruner.errors import InputError, RecipeError
from deploypruner.measure.baselines import Job, baseline_index
from deploypruner.measure.cores import pick_cores
from deploypruner.measure.process import Worker
from deploypruner.measure.rounds import Effort, Progress, block_calls, run_rounds
from deploypruner.measure.statistics import noise_floor
from deploypruner.records import Timing
from deploypruner.runtime import Array, runtimes

_WARM_S = 0.5
_WARM_CALLS = 2000


@dataclass(frozen=True)
class Measured:
    """One run of the protocol.

    Args:
        timings: One per job, in the order given.
        twin: A second worker of the first job's baseline (A/A).
        floor: Noise floor of the run, relative: what the twin shows between identical workers.
        settled: False where the budget ended before every ratio was known to ±2 %.
    """

    timings: tuple[Timing, ...]
    twin: Timing
    floor: float
    settled: bool


def time_artifacts(
    jobs: Sequence[Job],
    *,
    threads: int = 1,
    budget_s: float = 12.0,
    min_rounds: int = 10,
    seed: int = 0,
    feeds: Sequence[Array] | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    progress: Progress | None = None,
) -> Measured:
    """Time every job, batch 1, and the first job's baseline twice.

    Workers share the same `threads` cores, as only one of them computes at a time. They end with this
    call, however it ends.

    Args:
        jobs: Pairs of an artifact and the name of a registered runtime.
        threads: Threads of every runtime.
        budget_s: Seconds of rounds after which none starts; loading and warm-up are not counted.
        min_rounds: Rounds that are run whatever they take; an interval needs 10.
        seed: Seed of random inputs, of the order within rounds and of the bootstrap.
        feeds: One array per input, for every artifact; random ones where None.
        input_shapes: Full shapes of random inputs by name, for dynamic dimensions; an unnamed one is 1.
        progress: Told after every round.

    Raises:
        InputError: No jobs.
        RecipeError: `threads`, `min_rounds` or `budget_s` out of range, or an unknown runtime.
        MeasureError: A worker could not load its artifact, crashed or hung; names the artifact, the
            runtime and what the worker said last.
    """
    _check(jobs, threads)
    effort = Effort(min_rounds=min_rounds, budget_s=budget_s)
    baselines = [baseline_index(jobs, runtime) for _, runtime in jobs]
    with_twin = [*jobs, jobs[baselines[0]]]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="deploypruner-")))
        workers = [
            stack.enter_context(Worker(artifact, runtime, threads=threads, log=folder / f"{number}.log"))
            for number, (artifact, runtime) in enumerate(with_twin)
        ]
        message = {"do": "open", "threads": threads, "seed": seed, "shapes": _plain(input_shapes)}
        replies = _open(workers, {**message, "feeds": _saved(feeds, folder)}, cores=pick_cores(threads))
        rounds = run_rounds(
            workers,
            block_calls([reply["call_ns"] for reply in replies], effort),
            [*baselines, baselines[0]],
            effort=effort,
            seed=seed,
            progress=progress,
        )
        memory = [worker.ask(do="memory") for worker in workers]
    timings = tuple(
        _timing(job, samples, threads=threads, replies={**reply, **used})
        for job, samples, reply, used in zip(with_twin, rounds.samples_ns, replies, memory, strict=True)
    )
    floor = noise_floor(timings[baselines[0]], timings[-1], seed=seed)
    return Measured(timings[:-1], timings[-1], floor, rounds.settled)


def _check(jobs: Sequence[Job], threads: int) -> None:
    """Refuse what would otherwise fail in every worker."""
    if not jobs:
        raise InputError("no artifacts to measure", hint="name at least one .onnx or .xml file")
    if threads < 1:
        raise RecipeError(f"threads must be >= 1, got {threads}", hint="use 1 for the steadiest timing")
    for _, runtime in jobs:
        runtimes.get(runtime)


def _plain(shapes: Mapping[str, Sequence[int]] | None) -> dict[str, list[int]]:
    return {name: [int(size) for size in shape] for name, shape in (shapes or {}).items()}


def _saved(feeds: Sequence[Array] | None, folder: Path) -> str | None:
    """Write `feeds` where workers can read them, and return the path."""
    if feeds is None:
        return None
    path = folder / "feeds.npz"
    np.savez(path, *feeds)
    return str(path)


def _open(workers: Sequence[Worker], message: Mapping[str, Any], *, cores: Sequence[int]) -> list[dict[str, Any]]:
    """Open and warm up; return what each worker said.

    Libraries are loaded by all workers at once, artifacts one at a time, so that load times are true.
    """
    for worker in workers:
        worker.tell(do="load", runtime=worker.runtime)
    for worker in workers:
        worker.hear()
        if cores:
            worker.ask(do="pin", cores=list(cores))
    opened = [worker.ask(**message, path=str(worker.artifact.path)) for worker in workers]
    warm = [worker.ask(do="warm", max_s=_WARM_S, max_calls=_WARM_CALLS) for worker in workers]
    return [{**said, **then} for said, then in zip(opened, warm, strict=True)]


def _timing(job: Job, samples_ns: NDArray[np.int64], *, threads: int, replies: Mapping[str, Any]) -> Timing:
    artifact, runtime = job
    return Timing(
        artifact=artifact,
        runtime=runtime,
        threads=threads,
        samples_ns=samples_ns,
        load_s=replies["load_s"],
        warmup=replies["calls"],
        peak_rss_bytes=replies["peak_rss_bytes"],
        settings=replies["settings"],
    )
