"""How many threads, where the user left that open: what one model takes with each number, and the fastest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from deploypruner.device.cores import physical_cores
from deploypruner.latency.clock import Clock
from deploypruner.measure import DECIDING_SECONDS, Job, median_ms, paired_ratio
from deploypruner.report.units import significant
from deploypruner.runtime import Array


@dataclass(frozen=True)
class ThreadsTried:
    """What was measured, interleaved in one run.

    Args:
        fastest: The number to run with: the fewest that are as fast as any.
        ms: Each number that was tried, and the median of one inference with it.
        of: What was run: "dense int8 on openvino".
    """

    fastest: int
    ms: tuple[tuple[int, float], ...]
    of: str

    @property
    def counts(self) -> tuple[int, ...]:
        """The numbers that were tried."""
        return tuple(count for count, _ in self.ms)

    @property
    def sentence(self) -> str:
        """ "2 threads, left open: dense int8 on openvino takes 8.04 ms with 1, 4.44 with 2"."""
        (first, ms), *rest = self.ms
        times = "".join(f", {significant(more)} with {count}" for count, more in rest)
        counted = f"{self.fastest} thread{'' if self.fastest == 1 else 's'}"
        return f"{counted}, left open: {self.of} takes {significant(ms)} ms with {first}{times}"

    def to_json(self) -> dict[str, Any]:
        """For report.json; `from_json` reads it."""
        return {"fastest": self.fastest, "ms": [list(pair) for pair in self.ms], "of": self.of}

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> ThreadsTried:
        """What `to_json` wrote."""
        return cls(int(found["fastest"]), tuple((int(n), float(ms)) for n, ms in found["ms"]), str(found["of"]))


def counts_to_try() -> tuple[int, ...]:
    """Powers of two up to the physical cores of this process, and their number itself."""
    cores = physical_cores()
    return tuple(sorted({*(2**power for power in range(cores.bit_length())), cores}))


def try_threads(
    jobs: Sequence[Job], *, feeds: Sequence[Array] | None, clock: Clock, more: dict[str, Any]
) -> ThreadsTried:
    """Run models with every number of threads; the fastest model decides.

    Args:
        jobs: The same model in the forms it may run in.
        feeds: One array per input; random ones where None.
        clock: Says what they take.
        more: Arguments of the clock beside these.

    Raises:
        MeasureError: One cannot be timed.
    """
    counts = counts_to_try()
    tried = [(replace(artifact, threads=count), runtime) for artifact, runtime in jobs for count in counts]
    timings = clock.artifacts(tried, threads=max(counts), budget_s=DECIDING_SECONDS, feeds=feeds, **more).complete()
    best = min(timings, key=lambda timing: median_ms(timing.samples_ns))
    form = (best.artifact.name, best.runtime)
    its = [timing for timing in timings if (timing.artifact.name, timing.runtime) == form]
    # A thread more takes a core from everything else, so it has to gain more than what the interval leaves open.
    as_fast = [t for t in its if t is best or paired_ratio(t.samples_ns, best.samples_ns)[1][1] >= 1]
    return ThreadsTried(
        min(timing.threads for timing in as_fast),
        tuple((timing.threads, median_ms(timing.samples_ns)) for timing in its),
        " on ".join(form),
    )
