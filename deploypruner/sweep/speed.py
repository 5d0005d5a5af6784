"""Predicted milliseconds of any recipe: workers are busy, so nothing is timed while trials run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from deploypruner.build.allocation import dense_jobs
from deploypruner.build.artifacts import with_dense
from deploypruner.build.dense_setting import settled
from deploypruner.build.evaluate import judge, validation_samples
from deploypruner.build.feeds import timing_feeds
from deploypruner.build.state import Build
from deploypruner.errors import DeployPrunerError
from deploypruner.graph import Graph, Keep
from deploypruner.latency import LatencyModel
from deploypruner.measure import DECIDING_SECONDS, median_ms
from deploypruner.records import Setting
from deploypruner.search.choose import INT8_AGREEMENT_DROP, INT8_DROP, choose_setting


@dataclass(frozen=True)
class TimedDense:
    """The dense model in the setting that a budget of time would be for.

    Args:
        setting: Runtime, precision and threads.
        ms: Median.
        remark: Why this setting.
        busy: That the machine was busy meanwhile, "" where it was not.
    """

    setting: Setting
    ms: float
    remark: str
    busy: str

    @property
    def doubt(self) -> str:
        """What is to be said of predictions, "" for nothing."""
        if not self.busy:
            return ""
        return (
            f"while the dense model was timed, {self.busy}; predicted milliseconds follow from that, and a sweep "
            "that begins on an idle machine has better ones"
        )

    def to_json(self) -> dict[str, Any]:
        """Readable by `from_json`."""
        return asdict(self)

    @staticmethod
    def from_json(document: dict[str, Any]) -> TimedDense:
        """The opposite of `to_json`."""
        return TimedDense(
            Setting.from_json(document["setting"]), document["ms"], document["remark"], document["busy"]
        )


@dataclass(frozen=True)
class PredictedSpeed:
    """The latency model of the setting that a budget of time would be for.

    Args:
        dense: Measured before any trial.
        model: Calibrated with that.
    """

    dense: TimedDense
    model: LatencyModel

    def to_json(self) -> dict[str, Any]:
        """Readable by `from_json`."""
        return {**self.dense.to_json(), "table": self.model.to_json()}

    @staticmethod
    def from_json(document: dict[str, Any], graph: Graph) -> PredictedSpeed:
        """The opposite of `to_json`, for the same model."""
        dense = TimedDense.from_json(document)
        return PredictedSpeed(dense, LatencyModel.from_json(document["table"], graph, dense.setting))

    def ms(self, keep: Keep) -> float:
        """Of a plan."""
        return self.model.ms(keep)

    @property
    def facts(self) -> dict[str, Any]:
        """For sweep.json."""
        dense = self.dense
        return {
            "setting": str(dense.setting),
            "dense_ms": dense.ms,
            "remark": dense.remark,
            "table": self.model.facts,
        }


def predicted_speed(build: Build) -> PredictedSpeed:
    """Time layers, and predict the rest: setting and table are those of `compile --speedup`.

    Args:
        build: Loaded and traced.

    Raises:
        DeployPrunerError: The model cannot be exported, or nothing could be timed.
    """
    dense = _timed(build)
    model = build.clock.latency_model(
        build.traced,
        dense.setting,
        seconds=build.recipe.measure.table_seconds,
        step=build.recipe.prune.step,
        seed=build.recipe.seed,
        progress=build.progress,
    )
    return PredictedSpeed(dense, model.calibrated({}, dense.ms))


def _timed(build: Build) -> TimedDense:
    build = settled(with_dense(build))
    recipe = build.recipe.measure
    jobs = dense_jobs(build)
    measured = build.clock.artifacts(
        jobs,
        threads=recipe.threads,
        budget_s=DECIDING_SECONDS,
        seed=build.recipe.seed,
        feeds=timing_feeds(build),
    )
    timed = [(timing.artifact, timing.runtime) for timing in measured.timings]
    qualities = judge(build, timed, validation_samples(build)) if len(timed) > 1 else [None]
    labelled = build.metric is not None or any(output.label is not None for output in build.tasks)
    drop = recipe.accuracy_drop
    if drop is None:
        drop = INT8_DROP if labelled else INT8_AGREEMENT_DROP
    choice = choose_setting(measured.timings, qualities, drop=drop)
    busy = measured.conditions.busy_throughout()
    return TimedDense(choice.setting, median_ms(choice.timing.samples_ns), choice.remark, busy)


def speed_if_possible(build: Build) -> tuple[PredictedSpeed | None, str]:
    """The same where it is no part of what was asked for: None, and why, where it cannot be had."""
    try:
        return predicted_speed(build), ""
    except DeployPrunerError as error:
        return None, f"no latency is predicted: {error.message}"
