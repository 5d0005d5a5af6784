"""Plans of several methods brought to one measured speed-up: predicted, raced against the dense model, corrected."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from math import log
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.rivals import Keep, Plans, Subject, same
from deploypruner.errors import MeasureError
from deploypruner.graph import Graph
from deploypruner.latency import write_candidate
from deploypruner.measure import compare, median_ms, time_artifacts
from deploypruner.records import Artifact, Precision

OURS = "ours"
TOLERANCE = 0.02
PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")
_TRIES, _LOOKS = 7, 16
# Seconds between attempts on a machine that is busy.
_WAITS = (10, 30, 60, 120)


@dataclass(frozen=True)
class Track:
    """Where and how plans are raced.

    Args:
        folder: For the dense model's files.
        seconds: Of measuring, per candidate and round.
        busy: Take numbers although other programs compute: for trying things out.
    """

    folder: Path
    seconds: float
    busy: bool = False


@dataclass(frozen=True)
class Try:
    """A plan that was measured.

    Args:
        place: In its family.
        keep: The plan.
        measured: What `race` says, and what had been "predicted".
    """

    place: float
    keep: Keep
    measured: dict[str, Any]

    @property
    def ratio(self) -> float:
        """Its measured speed-up."""
        return float(self.measured["ratio"])


@dataclass
class Tuned:
    """One method on its way to the goal: predicted first, then by the measured speed-ups around the goal.

    Args:
        families: Its plans; the next family is asked where the one before does not meet the goal.
        dense_ms: Predicted, of the dense model.
        before: Measurements of earlier families.
        tries: Measurements of this one.
    """

    families: Sequence[Plans]
    dense_ms: float
    before: list[Try] = field(default_factory=list)
    tries: list[Try] = field(default_factory=list)

    def best(self, goal: float) -> Try | None:
        """What came closest to the goal."""
        return min(self.before + self.tries, key=lambda one: off(one.measured, goal), default=None)

    def following(self, goal: float) -> tuple[float, Keep] | None:
        """The next plan to measure, None where the goal is met or no other plan is left."""
        best = self.best(goal)
        if best is not None and off(best.measured, goal) <= TOLERANCE:
            return None
        found = self._following(goal) if len(self.tries) < _TRIES else None
        if found is None and len(self.families) > 1:
            self.families, self.before, self.tries = self.families[1:], self.before + self.tries, []
            return self.following(goal)
        return found

    def _following(self, goal: float) -> tuple[float, Keep] | None:
        if not self.tries:
            place = self.families[0].near(self.dense_ms / goal)
            return None if place is None else self._untried(place, 0.0, place)
        below = max((t for t in self.tries if t.ratio < goal), key=lambda t: t.ratio, default=None)
        above = min((t for t in self.tries if t.ratio >= goal), key=lambda t: t.ratio, default=None)
        low, slow = (0.0, 1.0) if below is None else (below.place, below.ratio)
        if above is None:
            return self._untried(low + (1 - low) * min(0.5, 2 * log(goal / slow)), low, 1.0)
        share = log(goal / slow) / log(above.ratio / slow)
        return self._untried(low + (above.place - low) * min(max(share, 0.1), 0.9), low, above.place)

    def _untried(self, aim: float, low: float, high: float) -> tuple[float, Keep] | None:
        """The plan at `aim`, or the nearest to it from `low` to `high` that was not measured yet."""
        places = [low + (high - low) * i / _LOOKS for i in range(_LOOKS + 1)]
        for place in [aim, *sorted(places, key=lambda place: abs(place - aim))]:
            keep = self.families[0].at(place)
            if keep is not None and not any(same(keep, one.keep) for one in self.before + self.tries):
                return place, keep
        return None


def off(measured: Mapping[str, Any], goal: float) -> float:
    """How far a measured speed-up is from the goal, relative."""
    return abs(float(measured["ratio"]) / goal - 1)


def tune(subject: Subject, families: Mapping[str, Sequence[Plans]], goal: float, track: Track) -> dict[str, Try]:
    """The plan of each method whose measured speed-up is closest to `goal`.

    All methods' candidates of a round run side by side with the dense model. A method is done once it is within
    `TOLERANCE`, or has no other plan.

    Args:
        subject: What is pruned.
        families: Method -> its families of plans, the preferred one first.
        goal: Speed-up over the dense model in the same setting.
        track: Where they are raced.
    """
    dense_ms = subject.latency.ms({})
    tuned = {name: Tuned(plans, dense_ms) for name, plans in families.items()}
    for number in count(1):
        asked = {name: plan for name, one in tuned.items() if (plan := one.following(goal)) is not None}
        if not asked:
            break
        plans = {name: keep for name, (_, keep) in asked.items()}
        for name, measured in race(subject, plans, track).items():
            place, keep = asked[name]
            predicted = dense_ms / subject.latency.ms(keep)
            tuned[name].tries.append(Try(place, keep, measured | {"predicted": predicted}))
            click.echo(
                f"round {number}: {name}: predicted {predicted:.3f}x, measured {measured['ratio']:.3f}x, "
                f"goal {goal:.3f}x" + (f" (doubtful: {measured['doubt']})" if measured["doubt"] else ""),
                err=True,
            )
    return {name: best for name, one in tuned.items() if (best := one.best(goal)) is not None}


def race(
    subject: Subject,
    plans: Mapping[str, Keep],
    track: Track,
    *,
    times: float = 1.0,
    precision: Precision | None = None,
) -> dict[str, dict[str, Any]]:
    """Method -> milliseconds, speed-up and its interval, in fresh processes side by side with the dense model.

    Args:
        subject: What is pruned.
        plans: Method -> plan.
        track: Where they are raced.
        times: As long as this many rounds of tuning.
        precision: The setting's, or another one.

    Raises:
        MeasureError: The machine stayed too busy for the numbers to say anything.
    """
    setting = subject.latency.setting
    chosen = precision or setting.precision
    dense = dense_artifact(subject, track.folder, chosen)
    with tempfile.TemporaryDirectory() as temporary:
        artifacts = [dense]
        for number, (name, keep) in enumerate(plans.items()):
            file = Path(temporary) / f"{number}.onnx"
            write_candidate(subject.graph, keep, chosen, file)
            artifacts.append(Artifact(name, file, "onnx", chosen, "channel"))
        for wait in _WAITS:
            measured = time_artifacts(
                [(artifact, setting.runtime) for artifact in artifacts],
                threads=setting.threads,
                budget_s=track.seconds * times * len(artifacts),
                narrow=0.01,
            )
            if track.busy or measured.certifiable:
                break
            click.echo(f"{measured.reason}; again in {wait} s", err=True)
            time.sleep(wait)
        else:
            hint = "stop what else is running, or pass --busy to try things out"
            raise MeasureError(f"speed-ups cannot be compared: {measured.reason}", hint=hint)
    base, *others = measured.timings
    found = {}
    for timing in others:
        against = compare(timing, base, floor=measured.floor)
        found[timing.artifact.name] = {
            "ms": median_ms(timing.samples_ns),
            "dense_ms": median_ms(base.samples_ns),
            "ratio": against.ratio,
            "ci": list(against.ratio_ci),
            "doubt": measured.reason,
        }
    return found


def dense_artifact(subject: Subject, folder: Path, precision: Precision) -> Artifact:
    """The dense model's file, written where it is not there yet."""
    path = folder / f"dense.{precision}.onnx"
    if not path.exists():
        write_candidate(subject.graph, {}, precision, path)
    return Artifact(f"dense {precision}", path, "onnx", precision, "dense")


def tune_row(
    subject: Subject,
    row: dict[str, Any],
    methods: Sequence[str],
    *,
    ways: Mapping[str, Callable[[Subject], Sequence[Plans]]],
    ours: Callable[[Subject, float], Keep],
    track: Track,
) -> None:
    """Tune what is missing in a row of results, or off its goal; then time all plans of the row together.

    Args:
        subject: What is pruned.
        row: "asked" is the speed-up; "goal" becomes that of `ours` where it is there; "plans" get the results.
        methods: Which to look at.
        ways: All but `ours`.
        ours: The plan for a speed-up.
        track: Where they are raced.
    """
    click.echo(f"latency model: {subject.latency.facts}", err=True)
    plans, asked, begun = row["plans"], row["asked"], time.perf_counter()
    if OURS in methods and OURS not in plans:
        keep = ours(subject, asked)
        _set(subject, plans, OURS, keep, race(subject, {OURS: keep}, track, times=4)[OURS])
    goal = row["goal"] = plans[OURS]["ratio"] if OURS in plans else asked
    wanted = [
        name
        for name in methods
        if name != OURS
        and (name not in plans or (off(plans[name], goal) > TOLERANCE and plans[name]["tuned_to"] != goal))
    ]
    families = {name: found for name in wanted if (found := ways[name](subject))}
    for name, best in tune(subject, families, goal, track).items():
        _set(subject, plans, name, best.keep, best.measured | {"tuned_to": goal})
    click.echo(f"tuned {', '.join(wanted) or 'nothing'} in {time.perf_counter() - begun:.0f} s", err=True)
    if not wanted:
        return
    kept, setting = {name: keep_of(found) for name, found in plans.items()}, subject.latency.setting
    for precision in PRECISIONS:
        again = race(subject, kept, track, times=2, precision=precision)
        for name, measured in again.items():
            own = precision == setting.precision
            plans[name] |= measured if own else {f"{precision} ratio": measured["ratio"]}


def _set(subject: Subject, plans: dict[str, Any], name: str, keep: Keep, measured: Mapping[str, Any]) -> None:
    """Put a method's plan into a row; runs of another plan go."""
    graph = subject.graph
    plans[name] = {
        "macs": graph.costs.macs(graph.removed(keep)) / graph.costs.macs(),
        "dropped": [branch.id for branch in graph.branches if branch.id in keep and not len(keep[branch.id])],
        "keep": kept_to_json(graph, keep),
        "runs": {},
        **measured,
    }


def kept_to_json(graph: Graph, keep: Keep) -> dict[str, list[int]]:
    """A plan without what stays whole."""
    whole = {group.id: group.size for group in graph.groups}
    return {i: [int(c) for c in kept] for i, kept in keep.items() if len(kept) < whole.get(i, 1)}


def keep_of(found: Mapping[str, Any]) -> Keep:
    """The plan in a row of results."""
    return {name: np.array(kept, dtype=np.int64) for name, kept in found["keep"].items()}
