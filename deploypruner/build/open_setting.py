"""What the user left open of how a model is run: threads, and the instructions that a runtime may use.

OpenVINO takes AMX where a CPU has it, which for networks of narrow layers is slower than AVX-512 VNNI. So what one
model takes is measured with every number of threads and in every environment that its runtime offers, and everything
that is timed after that is timed in what was fastest: the dense model as what others are compared with, candidates of
a search, the table of layers, and the files that are handed over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from deploypruner.device.machine import Machine
from deploypruner.latency.clock import Clock
from deploypruner.measure import DECIDING_SECONDS, Job, median_ms, paired_ratio
from deploypruner.records import Environment, Timing, named_variables
from deploypruner.report.units import ratio, significant
from deploypruner.runtime import Array, runtimes


@dataclass(frozen=True)
class EnvironmentTried:
    """What one runtime took in every environment that it offers, interleaved in one run.

    Args:
        runtime: Its name.
        of: What was run: "dense int8 on openvino".
        fastest: The environment to run in: none, unless a variable gains more than what the interval leaves open.
        ms: Each environment, and the median of one inference in it.
    """

    runtime: str
    of: str
    fastest: Environment
    ms: tuple[tuple[Environment, float], ...]

    @property
    def sentence(self) -> str:
        """What the variables give: the time without them, the time with each, and which one it is to be."""
        times = dict(self.ms)
        with_each = ", ".join(f"{significant(ms)} with {named_variables(name)}" for name, ms in self.ms if name)
        said = f"{self.of} takes {significant(times[()])} ms as it is, {with_each}"
        if not self.fastest:
            return f"{said} in the environment of the process, which gains nothing"
        gain = ratio(times[()] / times[self.fastest])
        name = named_variables(self.fastest)
        return f"{said}: with {name} in the environment of the process it is {gain} as fast"

    def to_json(self) -> dict[str, Any]:
        """For report.json; `from_json` reads it."""
        tried = [{"environment": dict(name), "ms": ms} for name, ms in self.ms]
        return {"runtime": self.runtime, "of": self.of, "environment": dict(self.fastest), "tried": tried}

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> EnvironmentTried:
        """What `to_json` wrote."""
        tried = tuple((tuple(one["environment"].items()), float(one["ms"])) for one in found["tried"])
        return cls(str(found["runtime"]), str(found["of"]), tuple(found["environment"].items()), tried)


@dataclass(frozen=True)
class SettingTried:
    """What was measured, interleaved in one run.

    Args:
        fastest: The number of threads to run with: the fewest that are as fast as any.
        ms: Each number that was tried, and the median of one inference with it.
        of: What was run with each: "dense int8 on openvino".
        environments: Of the runtimes that offer more than one.
    """

    fastest: int
    ms: tuple[tuple[int, float], ...]
    of: str
    environments: tuple[EnvironmentTried, ...] = ()

    @property
    def counts(self) -> tuple[int, ...]:
        """The numbers of threads that were tried."""
        return tuple(count for count, _ in self.ms)

    @property
    def chosen(self) -> Mapping[str, Environment]:
        """Runtime -> the environment to run int8 in, of those that offer more than one."""
        return {tried.runtime: tried.fastest for tried in self.environments}

    @property
    def sentence(self) -> str:
        """ "2 threads, left open: dense int8 on openvino takes 8.04 ms with 1, 4.44 with 2"."""
        said = [tried.sentence for tried in self.environments]
        return "; ".join([self._threads, *said] if len(self.ms) > 1 else said)

    def remarks(self, environments: Mapping[str, Environment]) -> list[str]:
        """What the user gains by variables that int8 files were timed with: a process that lacks them gains nothing.

        Args:
            environments: Runtime -> variables, as they were in the end.
        """
        used = [t for t in self.environments if t.fastest and environments.get(t.runtime) == t.fastest]
        return [f"{t.sentence}; every int8 file was timed so, and the lines that load the file set it" for t in used]

    @property
    def _threads(self) -> str:
        (first, ms), *rest = self.ms
        times = "".join(f", {significant(more)} with {count}" for count, more in rest)
        counted = f"{self.fastest} thread{'' if self.fastest == 1 else 's'}"
        return f"{counted}, left open: {self.of} takes {significant(ms)} ms with {first}{times}"

    def to_json(self) -> dict[str, Any]:
        """For report.json; `from_json` reads it."""
        return {
            "fastest": self.fastest,
            "ms": [list(pair) for pair in self.ms],
            "of": self.of,
            "environments": [tried.to_json() for tried in self.environments],
        }

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> SettingTried:
        """What `to_json` wrote."""
        return cls(
            int(found["fastest"]),
            tuple((int(n), float(ms)) for n, ms in found["ms"]),
            str(found["of"]),
            tuple(map(EnvironmentTried.from_json, found["environments"])),
        )


def counts_to_try(machine: Machine) -> tuple[int, ...]:
    """Powers of two up to the physical cores that processes may use there, and their number itself."""
    cores = machine.physical_cores
    return tuple(sorted({*(2**power for power in range(cores.bit_length())), cores}))


def try_settings(
    jobs: Sequence[Job], counts: Sequence[int], *, feeds: Sequence[Array] | None, clock: Clock, more: dict[str, Any]
) -> SettingTried:
    """Run models with every number of threads in every environment; the fastest model decides about the threads.

    Args:
        jobs: The same model in the forms it may run in.
        counts: Numbers of threads.
        feeds: One array per input; random ones where None.
        clock: Says what they take.
        more: Arguments of the clock beside these.

    Raises:
        MeasureError: One cannot be timed.
    """
    tried = [
        (replace(artifact, threads=count, environment=environment), runtime)
        for artifact, runtime in jobs
        for count in counts
        for environment in runtimes.get(runtime).environments(artifact.precision, clock.machine.target)
    ]
    timings = clock.artifacts(tried, threads=max(counts), budget_s=DECIDING_SECONDS, feeds=feeds, **more).complete()
    best = min(timings, key=_ms)
    its = [t for t in timings if (_form(t), t.artifact.environment) == (_form(best), best.artifact.environment)]
    # A thread more takes a core from everything else, so it has to gain more than what the interval leaves open.
    threads = min(timing.threads for timing in its if _as_fast(timing, best))
    environments = []
    for form in dict.fromkeys(map(_form, timings)):
        of_form = [timing for timing in timings if _form(timing) == form and timing.threads == threads]
        if len(of_form) > 1:
            environments.append(_environments(of_form))
    return SettingTried(
        threads, tuple((t.threads, _ms(t)) for t in its), " on ".join(_form(best)), tuple(environments)
    )


def _environments(timings: Sequence[Timing]) -> EnvironmentTried:
    """Of one form with one number of threads. A variable is one thing more to remember, so it has to gain, too."""
    best = min(timings, key=_ms)
    default = next(timing for timing in timings if not timing.artifact.environment)
    fastest = default if _as_fast(default, best) else best
    ms = tuple((timing.artifact.environment, _ms(timing)) for timing in timings)
    return EnvironmentTried(best.runtime, " on ".join(_form(best)), fastest.artifact.environment, ms)


def _ms(timing: Timing) -> float:
    return median_ms(timing.samples_ns)


def _form(timing: Timing) -> tuple[str, str]:
    return timing.artifact.name, timing.runtime


def _as_fast(timing: Timing, best: Timing) -> bool:
    """Is it the best, or may it be as fast?"""
    return timing is best or paired_ratio(timing.samples_ns, best.samples_ns)[1][1] >= 1
