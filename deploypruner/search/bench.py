"""Candidates on the bench: cut, exported, and timed beside the dense model."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType

from deploypruner.graph import Graph
from deploypruner.latency import write_candidate
from deploypruner.latency.clock import Clock, current_clock
from deploypruner.measure import DECIDING_SECONDS
from deploypruner.quantize.placement import placement_in
from deploypruner.records import Artifact, Setting
from deploypruner.runtime import Array
from deploypruner.scratch import scratch
from deploypruner.search.goal import Goal
from deploypruner.search.loop import Keep, Trial


class CandidateBench:
    """Times candidates of one graph in one setting; a context manager that keeps their files while it is open.

    Args:
        graph: The traced model.
        setting: Where candidates run.
        dense: The dense model's file for that setting.
        feeds: One array per input, None for random ones.
        seconds: Of measuring, per candidate.
        seed: Of the rounds.
        clock: Says how long they take; that of this machine where None.
    """

    def __init__(
        self,
        graph: Graph,
        setting: Setting,
        dense: Artifact,
        *,
        feeds: Sequence[Array] | None = None,
        seconds: float = DECIDING_SECONDS,
        seed: int = 0,
        clock: Clock | None = None,
    ) -> None:
        self.graph, self.setting, self.dense = graph, setting, dense
        self._feeds, self._seconds, self._seed = feeds, seconds, seed
        self._clock = clock or current_clock()
        self._files = ExitStack()
        self._count = 0

    def __enter__(self) -> CandidateBench:
        self._folder = self._files.enter_context(scratch())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.close()

    def trial(self, keep: Keep, goal: Goal) -> Trial:
        """Export the model with only `keep` and measure it.

        Raises:
            TraceError: It cannot be exported.
            MeasureError: It cannot be measured.
        """
        self._count += 1
        path = self._folder / f"candidate{self._count}.onnx"
        placement = placement_in(self.setting.runtime)
        write_candidate(
            self.graph, keep, self.setting.precision, path, floats=self.setting.floats, placement=placement
        )
        artifact = Artifact(f"candidate {self._count}", path, "onnx", self.setting.precision, "channel")
        artifact = replace(artifact, environment=self.setting.environment)
        measured = self._clock.artifacts(
            [(self.dense, self.setting.runtime), (artifact, self.setting.runtime)],
            threads=self.setting.threads,
            budget_s=self._seconds,
            seed=self._seed + self._count,
            feeds=self._feeds,
        )
        dense, timing = measured.complete()
        return Trial(
            assessment=goal.assess(timing, dense, seed=self._seed),
            profile=self._clock.profile(path, self.setting, feeds=self._feeds),
            doubt=measured.reason,
        )
