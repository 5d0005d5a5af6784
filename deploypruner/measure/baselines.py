"""Which artifact another one is compared with."""

from __future__ import annotations

from collections.abc import Sequence

from deploypruner.records import Artifact, Precision

Job = tuple[Artifact, str]
"""An artifact and the name of the runtime that is to execute it."""


def dense_index(jobs: Sequence[Job], runtime: str, precision: Precision) -> int | None:
    """Index of the dense model of `precision` on `runtime`, None where it is not in the set."""
    for index, (artifact, name) in enumerate(jobs):
        if name == runtime and artifact.pattern == "dense" and artifact.precision == precision:
            return index
    return None


def baseline_index(jobs: Sequence[Job], runtime: str) -> int:
    """Index of the baseline of `runtime`: the dense fp32 model, or else the first job there."""
    dense = dense_index(jobs, runtime, "fp32")
    if dense is not None:
        return dense
    return next(index for index, (_, name) in enumerate(jobs) if name == runtime)
