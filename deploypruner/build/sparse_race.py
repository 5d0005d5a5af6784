"""The whole candidate decides: dense and sparse forms of one model, timed side by side before one of them is kept.

Layers are predicted one by one, and what predicts them can be wrong: their times do not add up where caches are
shared, and counters cost time. So what the layers' times proposed, every layer sparse and the dense model are each
run as a whole, and nothing slower than the dense model at its best is kept. At its best: OpenVINO takes AMX where a
CPU has it, which for networks of narrow layers is slower than AVX-512 VNNI, so there the forms are tried both ways,
and with several numbers of threads where the user left that open. Streams are not tried: each runs one inference at a
time, so that a second one cannot make an inference any faster.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploypruner.build.state import Feeds
from deploypruner.latency.clock import Clock
from deploypruner.measure import DECIDING_SECONDS, median_ms, paired_ratio
from deploypruner.records import Artifact, Environment, Timing, named_variables

DENSE = "dense"
_RUNTIME = "openvino"


@dataclass(frozen=True)
class Entrant:
    """A form that was timed.

    Args:
        form: "dense", or what the caller called it.
        environment: Variables of the process that ran it, beside its own.
        threads: That it ran with.
        ms: Median of one inference.
        ratio: Speed-up over the fastest dense entrant.
        ratio_ci: Its 95 % interval.
    """

    form: str
    environment: Environment
    threads: int
    ms: float
    ratio: float
    ratio_ci: tuple[float, float]

    def to_json(self) -> dict[str, Any]:
        """For report.json."""
        return {**vars(self), "environment": dict(self.environment), "ratio_ci": list(self.ratio_ci)}


@dataclass(frozen=True)
class Race:
    """Result of `race`.

    Args:
        entrants: All that ran, in the order they were timed in.
        kept: The one to keep; a dense one where nothing sparse is as fast.
    """

    entrants: tuple[Entrant, ...]
    kept: Entrant

    @property
    def best_dense(self) -> Entrant:
        """What every ratio is over."""
        return _fastest([entrant for entrant in self.entrants if entrant.form == DENSE])

    @property
    def setting(self) -> str:
        """What settings of the process alone give and take, in words; "" where nothing else than one was tried."""
        return "; ".join(filter(None, (self._variables, self._threads)))

    @property
    def _variables(self) -> str:
        """What the user gains by a variable of the process; "" where the default is fastest."""
        best = self.best_dense
        others = (e for e in self.entrants if (e.form, e.threads, e.environment) == (DENSE, best.threads, ()))
        default = next(others, None)
        if default is None or not best.environment:
            return ""
        gain, named = 1 / default.ratio, named_variables(best.environment)
        return (
            f"with {named} in the environment of the process the dense int8 model is {gain:.2f}x as fast as without"
        )

    @property
    def _threads(self) -> str:
        """The numbers of threads that the dense model and what is kept are fastest with; "" where one was tried."""
        tried = sorted({entrant.threads for entrant in self.entrants})
        if len(tried) == 1:
            return ""
        best, kept = self.best_dense, self.kept
        ran = f"of {', '.join(map(str, tried))} threads the dense int8 model is fastest with {best.threads}"
        if kept.form == DENSE:
            return ran
        return f"{ran}, the sparse one with {kept.threads}, each at its best {kept.ratio:.2f}x as fast"

    def to_json(self) -> dict[str, Any]:
        """For report.json."""
        return {
            "candidates": [entrant.to_json() for entrant in self.entrants],
            "kept": self.kept.form,
            "environment": dict(self.kept.environment),
            "dense_environment": dict(self.best_dense.environment),
            "threads": self.kept.threads,
            "setting": self.setting,
        }


def race(
    dense: Path,
    sparse: Mapping[str, Path],
    *,
    preferred: str,
    feeds: Feeds,
    threads: Sequence[int],
    environments: Sequence[Environment],
    clock: Clock,
    seconds: float = DECIDING_SECONDS,
) -> Race:
    """Time the dense file and the sparse ones, interleaved, each in a process of its own.

    Args:
        dense: The dense int8 file.
        sparse: Form -> file.
        preferred: Form that is kept where none is faster; one of `sparse`, or "dense".
        feeds: One array per input.
        threads: Numbers of threads of the runtime to try.
        environments: Variables of the process to try.
        clock: Says what they take.
        seconds: Of measuring.

    Raises:
        MeasureError: A file cannot be timed.
    """
    forms = {DENSE: dense, **sparse}
    jobs = [
        (Artifact(form, path, "onnx", "int8", environment=environment, threads=count), _RUNTIME)
        for count in threads
        for environment in environments
        for form, path in forms.items()
    ]
    timings = clock.artifacts(jobs, threads=max(threads), budget_s=seconds, feeds=feeds).complete()
    base = min((t for t in timings if t.artifact.name == DENSE), key=lambda t: median_ms(t.samples_ns))
    entrants = tuple(_entrant(timing, base) for timing in timings)
    kept = max(entrants, key=lambda e: (e.ratio, e.form == preferred, not e.environment, -e.threads))
    return Race(entrants, kept if kept.ratio >= 1 else _fastest([e for e in entrants if e.form == DENSE]))


def _entrant(timing: Timing, base: Timing) -> Entrant:
    ratio, interval = paired_ratio(timing.samples_ns, base.samples_ns)
    artifact, ms = timing.artifact, median_ms(timing.samples_ns)
    return Entrant(artifact.name, artifact.environment, timing.threads, ms, ratio, interval)


def _fastest(entrants: Sequence[Entrant]) -> Entrant:
    return max(entrants, key=lambda e: (e.ratio, not e.environment, -e.threads))
