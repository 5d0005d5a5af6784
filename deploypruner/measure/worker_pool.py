"""The workers of one run; whoever fails is let go and remembered, and the others go on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from deploypruner.device.connection import Device
from deploypruner.errors import MeasureError
from deploypruner.measure.baselines import Job
from deploypruner.measure.failure import Failure
from deploypruner.measure.files import needed_beside
from deploypruner.measure.process import Worker
from deploypruner.records import Artifact

_WARM_S = 0.5
_WARM_CALLS = 2000


@dataclass(frozen=True, eq=False)
class CrewMember:
    """A worker that has opened its artifact and is warm.

    Args:
        job: What it times.
        worker: Its process.
        said: Its answers to "open" and "warm".
    """

    job: Job
    worker: Worker
    said: Mapping[str, Any]


class Crew:
    """Starts workers and keeps the book of those that failed.

    Args:
        stack: Ends every worker.
        device: Where they run.
        message: What every worker is told with "open", without the path.
        cores: Cores they are pinned to; none where the system cannot pin.
    """

    def __init__(self, stack: ExitStack, device: Device, message: Mapping[str, Any], *, cores: Sequence[int]) -> None:
        self.failures: list[Failure] = []
        self.gone: set[CrewMember] = set()
        self.threads: int = message["threads"]
        self._stack, self._device = stack, device
        self._message, self._cores = message, list(cores)

    def threads_of(self, artifact: Artifact) -> int:
        """Threads that it is timed with."""
        return artifact.threads or self.threads

    def tell_round(self, blocks: Sequence[tuple[CrewMember, int]]) -> None:
        """Have members run a block of so many calls each, one after another; `Worker.block` has the answers."""
        self._device.tell_round([member.worker.block_message(calls) for member, calls in blocks])

    def hire(self, jobs: Sequence[Job]) -> list[CrewMember]:
        """Start, open and warm up one worker per job; those that could.

        Libraries are loaded by all workers at once, artifacts one at a time, so that load times are true.

        Raises:
            DeviceError: The machine they run on is lost, or has no room for the files.
        """
        for artifact, _ in jobs:
            self._device.place(artifact.path, needed_beside(artifact.path))
        workers = [self._start(job) for job in jobs]
        for worker in workers:
            with contextlib.suppress(MeasureError):  # one that is gone says so below, when it is to answer
                worker.tell(do="load", runtime=worker.runtime)
        loaded = [
            (job, worker, self._try(job, worker, self._loaded)) for job, worker in zip(jobs, workers, strict=True)
        ]
        opened = [
            (job, worker, self._try(job, worker, self._open)) for job, worker, said in loaded if said is not None
        ]
        return [
            CrewMember(job, worker, {**said, **warm})
            for job, worker, said in opened
            if said is not None and (warm := self._try(job, worker, self._warm)) is not None
        ]

    def revive(self, members: Sequence[CrewMember]) -> None:
        """Bring members back to work on a device that was lost; one that cannot be is let go.

        Raises:
            DeviceError: It is lost again.
        """
        for member in members:
            try:
                member.worker.revive()
            except MeasureError as error:
                self.fail(member, error)

    def hire_twin(self, partner: CrewMember) -> CrewMember | None:
        """A second worker of the same job; where it fails, so has the job."""
        twins = self.hire([partner.job])
        if not twins:
            self.gone.add(partner)
            return None
        return twins[0]

    def fail(self, member: CrewMember, error: MeasureError) -> None:
        """Let a member go."""
        self.gone.add(member)
        self._note(member.job, error)
        member.worker.close()

    def memory(self, member: CrewMember) -> int | None:
        """Peak resident bytes of a member's process, None where it fails at last."""
        try:
            return int(member.worker.ask(do="memory")["peak_rss_bytes"])
        except MeasureError as error:
            self.fail(member, error)
            return None

    def _start(self, job: Job) -> Worker:
        artifact, runtime = job
        threads = self.threads_of(artifact)
        return self._stack.enter_context(Worker(artifact, runtime, threads=threads, device=self._device))

    def _try(self, job: Job, worker: Worker, step: Callable[[Worker], dict[str, Any]]) -> dict[str, Any] | None:
        try:
            return step(worker)
        except MeasureError as error:
            self._note(job, error)
            worker.close()
            return None

    def _note(self, job: Job, error: MeasureError) -> None:
        failure = Failure(*job, error.message, error.hint)
        if failure not in self.failures:
            self.failures.append(failure)

    def _loaded(self, worker: Worker) -> dict[str, Any]:
        said = worker.hear()
        cores = self._cores[: self.threads_of(worker.artifact)]
        return {**said, **worker.ask(do="pin", cores=cores)} if cores else said

    def _open(self, worker: Worker) -> dict[str, Any]:
        threads = self.threads_of(worker.artifact)
        return worker.ask(do="open", **{**self._message, "threads": threads}, path=worker.artifact.path)

    def _warm(self, worker: Worker) -> dict[str, Any]:
        return worker.warm_up(max_s=_WARM_S, max_calls=_WARM_CALLS)
